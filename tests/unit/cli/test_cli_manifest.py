import hashlib
from pathlib import Path

import pytest

from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.reasons import Reason
from finetuning_api.sources import relocation_name
from finetuning_cli.manifest import load_manifest
from finetuning_workload.errors import UserError

JOB = """\
apiVersion: finetuning.dev/v1alpha1
kind: FineTuningJob
metadata: {name: demo}
spec:
  model: {source: models/tiny}
  dataset: {source: ./rows.jsonl, prompt: "{a}", completion: "{b}"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "models" / "tiny" / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def load(folder: Path) -> FineTuningJob:
    (resource,) = load_manifest(folder / "job.yaml").resources
    assert isinstance(resource, FineTuningJob)
    return resource


def test_relative_paths_start_at_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")

    spec = load(folder).spec

    assert spec.model.source == f"file://{folder}/models/tiny"
    assert spec.dataset.source == f"file://{folder}/rows.jsonl"


def test_file_is_pinned_by_its_checksum_and_folder_by_its_content(folder: Path) -> None:
    spec = load(folder).spec

    assert spec.dataset.checksum == f"sha256:{hashlib.sha256(b'{}' + chr(10).encode()).hexdigest()}"
    assert (spec.model.revision or "").startswith("sha256-")


def test_changed_content_is_another_artifact(folder: Path) -> None:
    before = load(folder).spec
    (folder / "rows.jsonl").write_text("{}\n{}\n")
    (folder / "models" / "tiny" / "config.json").write_text('{"x": 1}')
    after = load(folder).spec

    assert relocation_name(before.dataset) != relocation_name(after.dataset)
    assert relocation_name(before.model) != relocation_name(after.model)


def test_pin_of_the_user_is_kept(folder: Path) -> None:
    checksum = f"sha256:{'0' * 64}"
    (folder / "job.yaml").write_text(JOB.replace("./rows.jsonl,", f"./rows.jsonl, checksum: '{checksum}',"))

    assert load(folder).spec.dataset.checksum == checksum


def test_missing_path_is_told_with_its_field(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()

    with pytest.raises(UserError, match=r"spec\.dataset\.source: there is no .*rows\.jsonl") as caught:
        load(folder)

    assert caught.value.reason is Reason.SOURCE_NOT_FOUND


def test_every_mistake_is_told_with_its_line(folder: Path) -> None:
    (folder / "job.yaml").write_text(JOB.replace("metadata", "metadat").replace("prompt", "promt"))

    with pytest.raises(UserError) as caught:
        load(folder)

    assert "job.yaml:3: metadat" in caught.value.message
    assert "job.yaml:6: spec.dataset.promt" in caught.value.message


def test_secrets_and_config_maps_beside_the_job_serve_it(folder: Path) -> None:
    more = """\
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {HF_TOKEN: plain}
data: {OTHER: c2VjcmV0}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: rows}
data: {rows.jsonl: "{}"}
binaryData: {more.bin: AAE=}
"""
    (folder / "job.yaml").write_text(JOB + more)

    manifest = load_manifest(folder / "job.yaml")

    assert manifest.secrets.documents == {"token": {"HF_TOKEN": "plain", "OTHER": "secret"}}
    assert manifest.config_maps == {"rows": {"rows.jsonl": b"{}", "more.bin": b"\0\1"}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("---\napiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {A: '%'}", "data.A of the Secret 's'"),
        ("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {../a: x}", "is no name of a file"),
        ("---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}", "Pod is not a kind that runs on one machine"),
        (f"---\n{JOB}", "holds FineTuningJob demo twice"),
    ],
)
def test_documents_that_cannot_serve_are_refused(folder: Path, more: str, message: str) -> None:
    (folder / "job.yaml").write_text(f"{JOB}{more}\n")

    with pytest.raises(UserError) as caught:
        load_manifest(folder / "job.yaml")

    assert message in caught.value.message


def test_server_is_refused_on_one_machine(folder: Path) -> None:
    document = """\
apiVersion: finetuning.dev/v1alpha1
kind: InferenceServer
metadata: {name: web}
spec: {model: {source: "hf://a/b"}}
"""
    (folder / "job.yaml").write_text(document)

    with pytest.raises(UserError, match="needs a cluster") as caught:
        load_manifest(folder / "job.yaml")

    assert caught.value.reason is Reason.UNSUPPORTED


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_manifest(tmp_path / "nothing.yaml")

"""Pushing with the real clients: what is pushed is what a relocation brings back, file by file."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from tests.support.hub import Hub
from tests.support.loopback import Fault, Trouble
from tests.support.needs import require_program
from tests.support.registry import SmallRegistry, docker_registry
from tests.support.relocator import JOB, Ended, Relocator, assert_refused, files_in, reference

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import PushConfig, PushResult
from finetuning_workload.artifact import Manifest, read_manifest, write_manifest

WEIGHTS = bytes(range(256)) * 40_000
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "README.md": b"---\nlibrary_name: transformers\n---\n# demo\n",
    "tokenizer/extra.json": b"{}",
}
EVERYTHING = ["*"]


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = require_program("docker-registry", install="apt-get install docker-registry")
    with docker_registry(program, folder=tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def relocator(tmp_path: Path) -> Relocator:
    return Relocator(tmp_path / "home")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    for path, data in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    complete(folder)
    return folder


def complete(folder: Path) -> Manifest:
    return write_manifest(
        folder,
        source="hf://acme/base",
        resolved_revision=None,
        content_format="safetensors",
        created_at=datetime.now(UTC),
        tool="test",
    )


def push(relocator: Relocator, folder: Path, to: str, *, digest: str | None = None, **fields: object) -> Ended:
    manifest = read_manifest(folder)
    assert manifest is not None
    config = PushConfig(
        job=JOB, path=str(folder), digest=digest or manifest.digest, destination=reference(to, fields), stall_seconds=3
    )
    return relocator.run(config)


def result(ended: Ended) -> PushResult:
    assert isinstance(ended.words.result, PushResult), f"{ended.words}\n{ended.log}"
    return ended.words.result


def test_what_was_pushed_to_a_registry_is_relocated_back_with_the_same_digest(
    debian: str, relocator: Relocator, artifact: Path, tmp_path: Path
) -> None:
    to = f"oci://{debian}/acme/demo:v1"
    pushed = result(push(relocator, artifact, to))

    back = relocator.relocate(to, tmp_path / "back", include=EVERYTHING)

    assert back.exit_code == ExitCode.DONE, back.log
    assert files_in(tmp_path / "back") == FILES
    assert back.artifact.resolved_revision == pushed.revision
    manifest = read_manifest(artifact)
    assert manifest is not None
    assert back.artifact.digest == manifest.digest
    assert pushed.transferred_bytes == manifest.total_bytes


def test_pushing_the_same_again_sends_nothing_and_gives_the_same_revision(
    debian: str, relocator: Relocator, artifact: Path
) -> None:
    to = f"oci://{debian}/acme/twice:v1"
    first = result(push(relocator, artifact, to))
    # The same files in another artifact, made at another time.
    complete(artifact)
    second = result(push(relocator, artifact, to))
    assert (second.revision, second.transferred_bytes) == (first.revision, 0)


def test_the_manifest_in_the_registry_says_what_it_is_and_nothing_of_secrets(
    debian: str, relocator: Relocator, artifact: Path
) -> None:
    relocator.environment |= {"SOURCE_SECRET_USERNAME": "writer", "SOURCE_SECRET_PASSWORD": "s3cret"}
    ended = push(relocator, artifact, f"oci://{debian}/acme/told:v1")
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    found = httpx2.get(f"http://{debian}/v2/acme/told/manifests/v1", headers=accept).json()
    assert found["annotations"]["org.opencontainers.image.base.name"] == "hf://acme/base"
    assert [layer["annotations"]["org.opencontainers.image.title"] for layer in found["layers"]] == sorted(FILES)
    assert "s3cret" not in json.dumps(found) + ended.log


def test_a_registry_that_wants_a_login_says_so(relocator: Relocator, artifact: Path) -> None:
    with SmallRegistry(login=("writer", "s3cret")) as registry:
        ended = push(relocator, artifact, f"oci://{registry.address}/acme/demo:v1")
        assert_refused(ended, "AuthenticationRequired", "USERNAME", "PASSWORD")


def test_a_digest_is_no_place_to_push_to(debian: str, relocator: Relocator, artifact: Path) -> None:
    ended = push(relocator, artifact, f"oci://{debian}/acme/demo", revision=f"sha256:{'0' * 64}")
    assert_refused(ended, "InvalidSpec", "Name a tag")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def test_what_was_pushed_to_a_hub_is_relocated_back_from_a_private_repository(
    hub: Hub, relocator: Relocator, artifact: Path, tmp_path: Path
) -> None:
    relocator.environment["SOURCE_SECRET_HF_TOKEN"] = "hf_valid"
    pushed = result(push(relocator, artifact, "hf://acme/demo", endpoint=hub.url))

    back = relocator.relocate("hf://acme/demo", tmp_path / "back", endpoint=hub.url, include=EVERYTHING)

    assert back.exit_code == ExitCode.DONE, back.log
    assert files_in(tmp_path / "back") == FILES
    assert back.artifact.resolved_revision == pushed.revision
    assert hub.is_private("acme/demo")


def test_a_repository_that_is_there_keeps_what_it_holds_and_its_visibility(
    hub: Hub, relocator: Relocator, artifact: Path
) -> None:
    hub.add_model("acme/known", {"LICENSE": b"Apache-2.0"})
    relocator.environment["SOURCE_SECRET_HF_TOKEN"] = "hf_valid"
    result(push(relocator, artifact, "hf://acme/known", endpoint=hub.url))
    assert hub.files("acme/known") == FILES | {"LICENSE": b"Apache-2.0"}
    assert not hub.is_private("acme/known")


def test_a_branch_of_a_hub_is_made_where_it_is_not_there(hub: Hub, relocator: Relocator, artifact: Path) -> None:
    hub.add_model("acme/branched", {"LICENSE": b"Apache-2.0"})
    relocator.environment["SOURCE_SECRET_HF_TOKEN"] = "hf_valid"
    result(push(relocator, artifact, "hf://acme/branched", endpoint=hub.url, revision="tuned"))
    assert hub.files("acme/branched") == {"LICENSE": b"Apache-2.0"}
    assert hub.files("acme/branched", "tuned") == FILES | {"LICENSE": b"Apache-2.0"}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_hub_wants_a_token_that_may_write(hub: Hub, relocator: Relocator, artifact: Path, token: str | None) -> None:
    if token:
        relocator.environment["SOURCE_SECRET_HF_TOKEN"] = token
    ended = push(relocator, artifact, "hf://acme/demo", endpoint=hub.url)
    assert_refused(ended, "AuthenticationRequired", "HF_TOKEN")
    assert "hf_wrong" not in ended.log


def test_a_hub_that_is_out_of_order_is_tried_again(hub: Hub, relocator: Relocator, artifact: Path) -> None:
    relocator.environment["SOURCE_SECRET_HF_TOKEN"] = "hf_valid"
    hub.fail("/api/repos/create", Fault(Trouble.STATUS, times=99))
    ended = push(relocator, artifact, "hf://acme/demo", endpoint=hub.url)
    assert_refused(ended, "SourceUnavailable", "503", exit_code=ExitCode.ENVIRONMENT)


def test_an_artifact_that_is_not_the_one_that_was_asked_for_is_not_pushed(
    debian: str, relocator: Relocator, artifact: Path
) -> None:
    ended = push(relocator, artifact, f"oci://{debian}/acme/wrong:v1", digest=f"sha256:{'0' * 64}")
    assert_refused(ended, "ArtifactCorrupt", "expected sha256:000")
    assert httpx2.get(f"http://{debian}/v2/acme/wrong/tags/list").status_code == 404


def test_a_damaged_artifact_is_not_pushed(debian: str, relocator: Relocator, artifact: Path) -> None:
    (artifact / "config.json").write_bytes(b'{"model_type": "LLAMA"}')
    ended = push(relocator, artifact, f"oci://{debian}/acme/damaged:v1")
    assert_refused(ended, "ArtifactCorrupt", "config.json")


def test_a_registry_that_is_not_there_is_told(relocator: Relocator, artifact: Path) -> None:
    ended = push(relocator, artifact, "oci://127.0.0.1:9/acme/demo:v1")
    assert_refused(ended, "NetworkUnreachable", "127.0.0.1:9", exit_code=ExitCode.ENVIRONMENT)

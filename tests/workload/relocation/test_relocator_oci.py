"""oci:// with the oras client: against Debian's docker-registry, and against a small one that can misbehave."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.loopback import Fault, Trouble
from tests.support.needs import require_program
from tests.support.registry import SmallRegistry, docker_registry, push
from tests.support.relocator import Relocator, assert_refused, files_in

from finetuning_api.reasons import ExitCode

WEIGHTS = bytes(range(256)) * 4000
MODEL = {"config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = require_program("docker-registry", install="apt-get install docker-registry")
    with docker_registry(program, folder=tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def small() -> Iterator[SmallRegistry]:
    with SmallRegistry() as running:
        yield running


def test_what_oras_pushed_is_what_arrives(debian: str, relocator: Relocator, destination: Path, tmp_path: Path) -> None:
    digest = push(debian, "acme/tiny:v1", MODEL, folder=tmp_path / "push")
    ended = relocator.relocate(f"oci://{debian}/acme/tiny:v1", destination)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == MODEL
    assert ended.artifact.resolved_revision == digest
    assert ended.artifact.transferred_bytes == len(WEIGHTS) + 2


def test_a_digest_pins_an_artifact_whose_tag_moved(
    debian: str, relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    digest = push(debian, "acme/moved:v1", MODEL, folder=tmp_path / "old")
    push(debian, "acme/moved:v1", {**MODEL, "config.json": b'{"newer": 1}'}, folder=tmp_path / "new")
    relocator.relocate(f"oci://{debian}/acme/moved@{digest}", destination)
    assert files_in(destination) == MODEL


def test_an_endpoint_stands_in_for_the_registry_of_the_source(
    debian: str, relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    push(debian, "acme/mirrored:v1", MODEL, folder=tmp_path / "push")
    source = "oci://registry.example.org/acme/mirrored"
    ended = relocator.relocate(source, destination, endpoint=f"http://{debian}", revision="v1")
    assert ended.exit_code == ExitCode.DONE, ended.log


def test_unknown_tags_and_names_are_told_apart(
    debian: str, relocator: Relocator, destination: Path, tmp_path: Path
) -> None:
    push(debian, "acme/known:v1", MODEL, folder=tmp_path / "push")
    wrong_tag = relocator.relocate(f"oci://{debian}/acme/known:v9", destination)
    assert_refused(wrong_tag, "RevisionNotFound", "'v9'")
    wrong_name = relocator.relocate(f"oci://{debian}/acme/absent:v1", destination)
    assert wrong_name.words.reason in {"RevisionNotFound", "SourceNotFound"}
    assert wrong_name.exit_code == ExitCode.USER_ERROR


def test_an_artifact_is_measured_by_its_manifest(small: SmallRegistry, relocator: Relocator) -> None:
    digest = small.add("acme/tiny", "v1", MODEL)
    measured = relocator.measure(f"oci://{small.address}/acme/tiny:v1").measured
    assert (measured.size_bytes, measured.files) == (len(WEIGHTS) + 2, 2)
    assert measured.resolved_revision == digest


def test_a_cut_layer_goes_on_where_it_stopped(small: SmallRegistry, relocator: Relocator, destination: Path) -> None:
    small.add("acme/tiny", "v1", MODEL)
    path = small.blob_path("acme/tiny", WEIGHTS)
    small.fail(path, Fault(Trouble.CUT, after_bytes=700_000))
    relocator.relocate(f"oci://{small.address}/acme/tiny:v1", destination)
    assert files_in(destination) == MODEL
    assert [seen.range_start > 0 for seen in small.requests_for(path)] == [False, True]


def test_a_layer_with_wrong_bytes_is_never_used(small: SmallRegistry, relocator: Relocator, destination: Path) -> None:
    small.add("acme/tiny", "v1", MODEL)
    small.fail(small.blob_path("acme/tiny", WEIGHTS), Fault(Trouble.WRONG_BYTES, after_bytes=7, times=9))
    ended = relocator.relocate(f"oci://{small.address}/acme/tiny:v1", destination)
    assert_refused(ended, "ChecksumMismatch", exit_code=ExitCode.ENVIRONMENT)


def test_a_manifest_that_is_not_the_pinned_one_is_refused(
    small: SmallRegistry, relocator: Relocator, destination: Path
) -> None:
    digest = small.add("acme/tiny", "v1", MODEL)
    small.fail(f"/v2/acme/tiny/manifests/{digest}", Fault(Trouble.WRONG_BYTES, after_bytes=3, times=9))
    ended = relocator.relocate(f"oci://{small.address}/acme/tiny", destination, revision=digest)
    assert_refused(ended, "ChecksumMismatch", digest, exit_code=ExitCode.ENVIRONMENT)


def test_a_packed_folder_is_refused_with_what_to_do(
    small: SmallRegistry, relocator: Relocator, destination: Path
) -> None:
    small.add("acme/folder", "v1", {"model": b"tar"}, **{"io.deis.oras.content.unpack": "true"})
    ended = relocator.relocate(f"oci://{small.address}/acme/folder:v1", destination)
    assert_refused(ended, "Unsupported", "packed folder", "oras push")


def test_a_layer_whose_title_leaves_the_folder_is_refused(
    small: SmallRegistry, relocator: Relocator, destination: Path
) -> None:
    small.add("acme/evil", "v1", {"../../evil.json": b"{}"})
    ended = relocator.relocate(f"oci://{small.address}/acme/evil:v1", destination)
    assert_refused(ended, "UnsafeContent", "../../evil.json")


@pytest.mark.parametrize("form", ["keys", "docker"])
def test_a_registry_that_wants_a_login_gets_it(relocator: Relocator, destination: Path, form: str) -> None:
    with SmallRegistry(login=("reader", "s3cret")) as registry:
        registry.add("acme/tiny", "v1", MODEL)
        source = f"oci://{registry.address}/acme/tiny:v1"
        assert_refused(relocator.relocate(source, destination), "AuthenticationRequired", "USERNAME", "PASSWORD")
        if form == "keys":
            given = {"SOURCE_SECRET_USERNAME": "reader", "SOURCE_SECRET_PASSWORD": "s3cret"}
        else:
            encoded = base64.b64encode(b"reader:s3cret").decode()
            given = {"SOURCE_SECRET_.dockerconfigjson": json.dumps({"auths": {registry.address: {"auth": encoded}}})}
        relocator.environment |= given
        ended = relocator.relocate(source, destination)
        assert ended.exit_code == ExitCode.DONE, ended.log
        assert "s3cret" not in ended.log


def test_a_registry_elsewhere_must_speak_tls(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("oci://r.example.org/a/b:v1", destination, endpoint="http://r.example.org")
    assert_refused(ended, "InvalidSpec", "TLS", "https://")


def test_a_registry_that_is_not_there_is_told_soon(relocator: Relocator, destination: Path) -> None:
    ended = relocator.relocate("oci://127.0.0.1:9/a/b:v1", destination)
    assert_refused(ended, "NetworkUnreachable", "127.0.0.1:9", exit_code=ExitCode.ENVIRONMENT)

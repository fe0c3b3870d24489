"""hf:// with huggingface_hub against a hub on loopback that can refuse, stall, cut and lie."""

import hashlib
import signal
import struct
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.support.hub import Hub
from tests.support.loopback import Fault, Trouble
from tests.support.relocator import JOB, STALL_SECONDS, Relocator, assert_refused, files_in, reference, wait_until

from finetuning_api.reasons import ExitCode
from finetuning_api.runconfig import RelocateConfig
from finetuning_workload.artifact import read_manifest

NAME = "acme/tiny"
WEIGHTS = struct.pack("<Q", 2) + b"{}" + bytes(range(256)) * 4000
MODEL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "README.md": b"# tiny",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as running:
        yield running


def test_a_model_arrives_whole_with_the_commit_it_was_resolved_to(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    commit = hub.add_model(NAME, MODEL)
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    size = sum(len(data) for data in MODEL.values())
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == MODEL
    assert ended.artifact.resolved_revision == commit
    assert (ended.artifact.size_bytes, ended.artifact.transferred_bytes) == (size, size)
    assert ended.artifact.format == "safetensors"


def test_a_complete_artifact_asks_nothing_of_the_network(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    first = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    asked = len(hub.seen)
    second = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert len(hub.seen) == asked
    assert second.artifact == first.artifact.model_copy(update={"transferred_bytes": 0})


def test_a_damaged_file_is_the_only_one_that_is_fetched_again(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL)
    first = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    (destination / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    second = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert files_in(destination) == MODEL
    assert (second.artifact.digest, second.artifact.transferred_bytes) == (first.artifact.digest, len(WEIGHTS))


def test_a_damaged_manifest_is_made_again(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    first = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    (destination / "manifest.json").write_text('{"source": ')
    second = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert second.artifact.digest == first.artifact.digest


def test_a_repaired_artifact_stays_at_its_first_revision(hub: Hub, relocator: Relocator, destination: Path) -> None:
    commit = hub.add_model(NAME, MODEL)
    relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    hub.add_model(NAME, {**MODEL, "config.json": b'{"model_type": "gpt2"}'})
    (destination / "config.json").unlink()
    repaired = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert repaired.artifact.resolved_revision == commit
    assert files_in(destination) == MODEL


@pytest.mark.parametrize("revision", ["v1", "commit"])
def test_a_pinned_revision_is_what_arrives(hub: Hub, relocator: Relocator, destination: Path, revision: str) -> None:
    commit = hub.add_model(NAME, MODEL)
    hub.tag(NAME, "v1", commit)
    hub.add_model(NAME, {**MODEL, "README.md": b"newer"})
    pin = commit if revision == "commit" else revision
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, revision=pin)
    assert ended.artifact.resolved_revision == commit
    assert files_in(destination) == MODEL


def test_a_data_set_repository_is_taken_as_it_is(hub: Hub, relocator: Relocator, destination: Path) -> None:
    files = {"data/train.jsonl": b'{"a": 1}\n', "data/test.parquet": b"PAR1", "README.md": b"about", "load.py": b"1"}
    hub.add_dataset("acme/rows", {**files, ".gitattributes": b"*.parquet filter=lfs"})
    ended = relocator.relocate("hf://datasets/acme/rows", destination, endpoint=hub.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == files


def test_one_file_of_a_repository_is_taken_alone(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_dataset("acme/rows", {"data/train.jsonl": b'{"a": 1}\n', "data/test.jsonl": b"{}"})
    relocator.relocate("hf://datasets/acme/rows#data/train.jsonl", destination, endpoint=hub.url)
    assert files_in(destination) == {"train.jsonl": b'{"a": 1}\n'}


def test_a_model_is_measured_without_its_bytes(hub: Hub, relocator: Relocator) -> None:
    commit = hub.add_model(NAME, {**MODEL, "pytorch_model.bin": b"x" * 5000})
    measured = relocator.measure(f"hf://{NAME}", endpoint=hub.url).measured
    assert measured.size_bytes == sum(len(data) for data in MODEL.values())
    assert (measured.files, measured.resolved_revision) == (len(MODEL), commit)
    assert not hub.requests_for(hub.bytes_path(NAME, "model.safetensors"))


def test_what_training_does_not_need_is_left_out(hub: Hub, relocator: Relocator, destination: Path) -> None:
    extra = {
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "tf_model.h5": b"h5",
        "flax.msgpack": b"flax",
        "modeling_tiny.py": b"import os",
        "logo.png": b"png",
        ".gitattributes": b"",
        "model.Q4.gguf": b"GGUF",
        "original/consolidated.safetensors": WEIGHTS,
        "training_args.bin": b"pickle",
    }
    hub.add_model(NAME, {**MODEL, **extra})
    relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert files_in(destination) == MODEL


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.json"], [], {"config.json", "tokenizer.json"}),
        ([], ["*.md", "tokenizer*"], {"config.json", "model.safetensors"}),
        (["*.json", "README.md"], ["token*"], {"config.json", "README.md"}),
    ],
)
def test_patterns_choose_files(
    hub: Hub, relocator: Relocator, destination: Path, *, include: list[str], exclude: list[str], expected: set[str]
) -> None:
    hub.add_model(NAME, MODEL)
    relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, include=include, exclude=exclude)
    assert set(files_in(destination)) == expected


def test_a_pickle_only_model_is_refused_before_its_bytes(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, {"config.json": b"{}", "pytorch_model.bin": b"\x80\x02."})
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "UnsafeContent", "pytorch_model.bin", "pickles only", "safetensors")
    assert not hub.requests_for(hub.bytes_path(NAME, "pytorch_model.bin"))
    assert not destination.exists()


def test_a_pickle_under_another_name_is_refused(hub: Hub, relocator: Relocator, destination: Path) -> None:
    pickle = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07collect\x94."
    hub.add_model(NAME, {**MODEL, "model.safetensors": pickle})
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "UnsafeContent", "model.safetensors is a pickle")
    assert not destination.exists()


def test_several_gguf_files_ask_for_a_choice(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, {"a.Q4.gguf": b"GGUF1", "a.Q8.gguf": b"GGUF2"})
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "Unsupported", "a.Q4.gguf", "a.Q8.gguf", "#")


@pytest.mark.parametrize("path", ["../evil.json", "a/../../evil.json", "/etc/evil.json", "a\\evil.json", "C:evil.json"])
def test_paths_that_leave_the_folder_are_refused(hub: Hub, relocator: Relocator, destination: Path, path: str) -> None:
    hub.add_model(NAME, {**MODEL, path: b"{}"})
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "UnsafeContent", repr(path))
    assert not destination.exists()


def test_names_that_differ_by_case_only_are_refused(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, {**MODEL, "Config.json": b"{}"})
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "UnsafeContent", "config.json", "Config.json")


def test_a_source_without_the_file_names_its_neighbours(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    ended = relocator.relocate(f"hf://{NAME}#tokeniser.json", destination, endpoint=hub.url)
    assert_refused(ended, "SourceNotFound", "tokeniser.json", "tokenizer.json")


def test_patterns_that_fit_nothing_name_what_is_there(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, include=["*.gguf"])
    assert_refused(ended, "SourceNotFound", "include", "model.safetensors")


def test_an_unknown_repository_is_not_found(hub: Hub, relocator: Relocator, destination: Path) -> None:
    relocator.environment["HF_TOKEN"] = "hf_valid"
    ended = relocator.relocate("hf://acme/absent", destination, endpoint=hub.url)
    assert_refused(ended, "SourceNotFound", "hf://acme/absent")


def test_a_private_repository_asks_for_a_token_and_says_where_it_goes(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL, private=True)
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "AuthenticationRequired", "401", "HF_TOKEN", "secretRef")


def test_a_wrong_token_names_the_secret_that_holds_it(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    relocator.environment["SOURCE_SECRET_HF_TOKEN"] = "hf_expired"
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, secret_ref={"name": "hub-login"})
    assert_refused(ended, "AuthenticationRequired", "'hub-login'", "HF_TOKEN")
    assert "hf_expired" not in ended.log + ended.words.model_dump_json()


@pytest.mark.parametrize("variable", ["SOURCE_SECRET_HF_TOKEN", "SOURCE_SECRET_token", "HF_TOKEN"])
def test_a_token_opens_a_private_repository(hub: Hub, relocator: Relocator, destination: Path, variable: str) -> None:
    hub.add_model(NAME, MODEL, private=True, gated=True)
    relocator.environment[variable] = "hf_valid"
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == MODEL


def test_a_gated_repository_without_a_token_asks_for_one(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL, gated=True)
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "AuthenticationRequired", "HF_TOKEN")


def test_a_gated_repository_asks_to_accept_its_license(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL, gated=True, license_accepted=False)
    relocator.environment["HF_TOKEN"] = "hf_valid"
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "AccessDenied", "403", "license", f"{hub.url}/{NAME}")


def test_a_wrong_revision_is_named(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, revision="v9")
    assert_refused(ended, "RevisionNotFound", "'v9'", f"hf://{NAME}")


def test_a_folder_checksum_that_differs_leaves_nothing(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    expected = f"sha256:{'0' * 64}"
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, checksum=expected)
    assert_refused(ended, "ChecksumMismatch", expected)
    assert not destination.exists()


def test_the_checksum_of_one_file_is_its_sha256(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    expected = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
    source = f"hf://{NAME}#model.safetensors"
    ended = relocator.relocate(source, destination, endpoint=hub.url, checksum=expected)
    assert ended.exit_code == ExitCode.DONE, ended.log


def test_a_cut_connection_goes_on_where_it_stopped(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    path = hub.bytes_path(NAME, "model.safetensors")
    hub.fail(path, Fault(Trouble.CUT, after_bytes=700_000))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    starts = [seen.range_start for seen in hub.requests_for(path)]
    assert files_in(destination) == MODEL
    assert starts == [0, 700_000]
    assert ended.artifact.transferred_bytes == sum(len(data) for data in MODEL.values())


def test_a_connection_that_is_always_cut_gives_up_and_keeps_what_came(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL)
    path = hub.bytes_path(NAME, "model.safetensors")
    hub.fail(path, Fault(Trouble.CUT, after_bytes=0, times=100))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "SourceUnavailable", NAME, exit_code=ExitCode.ENVIRONMENT)
    assert read_manifest(destination) is None


def test_a_stall_fails_with_its_reason_and_the_next_run_goes_on(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL)
    path = hub.bytes_path(NAME, "model.safetensors")
    hub.fail(path, Fault(Trouble.STALL, after_bytes=600_000))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, stall_seconds=STALL_SECONDS)
    assert_refused(ended, "DownloadStalled", "model.safetensors", f"{STALL_SECONDS} s", exit_code=ExitCode.ENVIRONMENT)
    assert read_manifest(destination) is None
    again = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert again.exit_code == ExitCode.DONE, again.log
    assert files_in(destination) == MODEL
    assert [seen.range_start for seen in hub.requests_for(path)] == [0, 600_000]


def test_wrong_bytes_are_fetched_once_more(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    for path in ("model.safetensors", "config.json"):
        hub.fail_file(NAME, path, Fault(Trouble.WRONG_BYTES, after_bytes=5))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert files_in(destination) == MODEL


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_bytes_that_stay_wrong_are_never_used(hub: Hub, relocator: Relocator, destination: Path, path: str) -> None:
    hub.add_model(NAME, MODEL)
    hub.fail_file(NAME, path, Fault(Trouble.WRONG_BYTES, after_bytes=5, times=100))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "ChecksumMismatch", path, exit_code=ExitCode.ENVIRONMENT)
    assert read_manifest(destination) is None


def test_a_broken_server_is_asked_three_times(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    question = f"/api/models/{NAME}"
    hub.fail(question, Fault(Trouble.STATUS, status=HTTPStatus.BAD_GATEWAY, times=2))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert ended.exit_code == ExitCode.DONE, ended.log
    assert len(hub.requests_for(question)) == 3


def test_a_server_that_stays_broken_is_unavailable(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    hub.fail(f"/api/models/{NAME}", Fault(Trouble.STATUS, status=HTTPStatus.SERVICE_UNAVAILABLE, times=100))
    ended = relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url)
    assert_refused(ended, "SourceUnavailable", "503", exit_code=ExitCode.ENVIRONMENT)


def test_sigterm_stops_in_the_middle_and_the_next_run_goes_on(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL)
    path = hub.bytes_path(NAME, "model.safetensors")
    hub.fail(path, Fault(Trouble.STALL, after_bytes=500_000))
    config = RelocateConfig(
        job=JOB, source=reference(f"hf://{NAME}", {"endpoint": hub.url}), destination=str(destination)
    )
    process = relocator.start(config)
    under_way = destination / ".partial" / "files" / "model.safetensors"
    wait_until(lambda: under_way.exists() and under_way.stat().st_size > 0)
    process.send_signal(signal.SIGTERM)
    ended = relocator.finish(process)
    assert (ended.exit_code, ended.words.reason) == (ExitCode.INTERRUPTED, "Interrupted")
    again = relocator.run(config)
    assert again.exit_code == ExitCode.DONE, again.log
    assert files_in(destination) == MODEL
    assert hub.requests_for(path)[1].range_start > 0


def test_sigkill_loses_nothing_that_had_arrived(hub: Hub, relocator: Relocator, destination: Path) -> None:
    hub.add_model(NAME, MODEL)
    path = hub.bytes_path(NAME, "model.safetensors")
    hub.fail(path, Fault(Trouble.STALL, after_bytes=500_000))
    config = RelocateConfig(
        job=JOB, source=reference(f"hf://{NAME}", {"endpoint": hub.url}), destination=str(destination)
    )
    process = relocator.start(config)
    under_way = destination / ".partial" / "files" / "model.safetensors"
    wait_until(lambda: under_way.exists() and under_way.stat().st_size > 0)
    process.kill()
    process.communicate()
    assert read_manifest(destination) is None
    again = relocator.run(config)
    assert again.exit_code == ExitCode.DONE, again.log
    assert files_in(destination) == MODEL
    assert again.artifact.transferred_bytes < sum(len(data) for data in MODEL.values())
    assert len(hub.requests_for(f"/{NAME}/resolve/{again.artifact.resolved_revision}/config.json")) == 1


def test_a_changed_file_is_not_glued_to_the_bytes_of_the_old_one(
    hub: Hub, relocator: Relocator, destination: Path
) -> None:
    hub.add_model(NAME, MODEL)
    hub.fail_file(NAME, "model.safetensors", Fault(Trouble.STALL, after_bytes=600_000))
    relocator.relocate(f"hf://{NAME}", destination, endpoint=hub.url, stall_seconds=STALL_SECONDS)
    newer = {**MODEL, "model.safetensors": WEIGHTS[::-1]}
    commit = hub.add_model(NAME, newer)
    config = RelocateConfig(
        job=JOB,
        source=reference(f"hf://{NAME}", {"endpoint": hub.url}),
        destination=str(destination),
        resolved_revision=commit,
    )
    assert relocator.run(config).exit_code == ExitCode.DONE
    assert files_in(destination) == newer

"""What cannot be served or talked to is refused in a sentence, before anything is started."""

import socket
from pathlib import Path

import pytest
from tests.support.objects import World, failed, job
from typer.testing import CliRunner, Result

from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_cli.main import app

KEY = ("FineTuningJob", "demo")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def stored(world: World, folder: Path) -> Path:
    store = Store(Layout.at(folder))
    for resource in world.objects.values():
        store.save(resource)
    return folder


@pytest.fixture
def relocated(tmp_path: Path) -> Path:
    """Return a state whose job has its inputs and is not trained yet."""
    world = World()
    world.add(job())
    world.settle()
    world.finish_relocations()
    return stored(world, tmp_path)


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_unknown_name_is_told_with_what_there_is(relocated: Path, command: str) -> None:
    done = run(command, "other", "--state", relocated)

    assert done.exit_code == 1
    assert "holds no object named 'other'" in done.stderr
    assert "demo" in done.stderr


def test_port_in_use_is_told(relocated: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "demo", "--state", relocated, "--port", str(port))

    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        f"error: cannot listen on port {port} of 127.0.0.1: Address already in use",
        "  Choose another one with --port or --host.",
    ]


def test_nothing_is_served_before_the_base_model_is_there(tmp_path: Path) -> None:
    world = World()
    world.add(job())
    world.settle()

    done = run("serve", "demo", "--state", stored(world, tmp_path))

    assert done.stderr.splitlines() == [
        "error: demo has no tuned model yet (Relocating)",
        "  See how far it is: finetune status demo",
    ]


def test_job_that_failed_before_its_adapter_is_not_served(tmp_path: Path) -> None:
    world = World()
    world.add(job())
    world.settle()
    world.finish_relocations()
    world.finish(KEY, "preflight", failed())

    assert "demo has no tuned model yet (Failed)" in run("serve", "demo", "--state", stored(world, tmp_path)).stderr


def test_chat_does_not_wait_for_a_training(relocated: Path) -> None:
    assert "error: demo has no tuned model yet" in run("chat", "demo", "--state", relocated).stderr


def test_chat_without_a_name_needs_one_tuned_job(relocated: Path) -> None:
    told = run("chat", "--state", relocated).stderr

    assert told.splitlines()[0] == f"error: {relocated} holds no tuned model"
    assert "--url" in told


def test_manifest_of_a_job_that_was_not_run_says_how_to_run_it(tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(
        "apiVersion: finetuning.dev/v1alpha1\nkind: FineTuningJob\nmetadata: {name: demo}\n"
        'spec: {model: {source: "hf://a/b"}, dataset: {source: "s3://a/b.jsonl"}}\n'
    )

    done = run("serve", manifest, "--state", tmp_path / "state")

    assert done.stderr.splitlines() == [
        f"error: demo was not run in {tmp_path / 'state'}",
        f"  Run it first: finetune run {manifest}",
    ]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/", "http://"])
def test_address_that_is_none_is_refused(url: str) -> None:
    assert f"--url: {url!r} is no address of a server" in run("chat", "--url", url).stderr


def test_server_that_nobody_runs_is_told() -> None:
    done = run("chat", "--url", "http://127.0.0.1:9")

    assert done.exit_code == 1
    assert "the server at http://127.0.0.1:9 does not answer /v1/models" in done.stderr
    assert "Traceback" not in done.output


def test_folder_of_tokens_must_be_there(relocated: Path) -> None:
    done = run("serve", "demo", "--state", relocated, "--tokens", "nowhere")

    assert "--tokens: there is no folder nowhere" in done.stderr

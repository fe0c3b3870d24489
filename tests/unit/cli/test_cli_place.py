from pathlib import Path

import pytest
from tests.support.objects import job
from typer.testing import CliRunner

from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_cli.main import app
from finetuning_cli.place import PlaceOptions, local_state
from finetuning_workload.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without a state, on a machine without a cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def with_state(folder: Path) -> None:
    Store(Layout.at(folder / ".finetuning")).save(job("demo"))


@pytest.fixture
def with_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "kubeconfig").write_text("")
    monkeypatch.setenv("KUBECONFIG", str(folder / "kubeconfig"))


LOCAL = Path(".finetuning")


@pytest.mark.usefixtures("with_state", "with_cluster")
@pytest.mark.parametrize(
    ("name", "place"), [("demo", LOCAL), (None, LOCAL), ("other", None), ("ftj/demo", None)], ids=str
)
def test_state_folder_gets_what_it_holds_and_the_cluster_the_rest(name: str | None, place: Path | None) -> None:
    assert local_state(PlaceOptions(), name) == place


@pytest.mark.usefixtures("with_cluster")
@pytest.mark.parametrize("name", ["demo", None])
def test_without_a_state_folder_it_is_the_cluster(name: str | None) -> None:
    assert local_state(PlaceOptions(), name, destructive=True) is None


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["demo", None])
def test_without_a_cluster_it_is_this_machine(name: str | None) -> None:
    assert local_state(PlaceOptions(), name) == LOCAL


@pytest.mark.usefixtures("with_state")
@pytest.mark.parametrize(
    "options",
    [
        PlaceOptions(cluster=True),
        PlaceOptions(namespace="team"),
        PlaceOptions(context="prod"),
        PlaceOptions(kubeconfig=Path("file")),
    ],
    ids=str,
)
def test_any_option_of_the_cluster_means_the_cluster(options: PlaceOptions) -> None:
    assert local_state(options, "demo") is None


@pytest.mark.usefixtures("with_cluster")
def test_a_named_folder_means_that_folder() -> None:
    assert local_state(PlaceOptions(state=Path("elsewhere")), "demo") == Path("elsewhere")


def test_folder_and_cluster_together_are_refused() -> None:
    with pytest.raises(UserError, match="--state names a folder"):
        local_state(PlaceOptions(state=Path("a"), namespace="team"), "demo")


@pytest.mark.usefixtures("with_state", "with_cluster")
def test_a_name_mistyped_here_deletes_nothing_there() -> None:
    with pytest.raises(UserError, match="holds no object named 'dem'") as caught:
        local_state(PlaceOptions(), "dem", destructive=True)

    assert caught.value.hint == "If you mean the cluster: finetune delete dem --cluster"


@pytest.mark.usefixtures("with_state", "with_cluster")
def test_looking_elsewhere_is_said(folder: Path) -> None:
    done = CliRunner().invoke(app, ["status", "other"])

    assert f"{folder}/.finetuning holds no object named 'other': looks in the cluster" in done.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "command", [["apply", "-f", "job.yaml"], ["wait", "demo"], ["cancel", "demo"], ["status", "demo", "--cluster"]]
)
def test_commands_for_a_cluster_say_that_none_is_configured(command: list[str]) -> None:
    done = CliRunner().invoke(app, command)

    assert done.exit_code == 1
    assert "no cluster is configured: there is no " in done.stderr
    assert "Without a cluster: finetune run FILE" in done.stderr

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.objects import World, failed, job, succeeded
from typer.testing import CliRunner

from finetuning_api.base import ObjectMeta
from finetuning_api.evaluationjob import EvaluationJob, EvaluationJobSpec
from finetuning_api.finetuningjob import FineTuningJob
from finetuning_api.metrics import EvaluationRow, GateResult, Metric, Verdict
from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import LastWords
from finetuning_cli.commands.prompt import render
from finetuning_cli.display import LiveDisplay, duration
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.lock import state_lock
from finetuning_cli.local.store import Store
from finetuning_cli.main import app
from finetuning_cli.output import number, results_table
from finetuning_client.models import Question
from finetuning_operator.reconcile.plan import StepPhase, StepState
from finetuning_workload.errors import UserError

RUNNER = CliRunner()
KEY = ("FineTuningJob", "demo")


def finished() -> World:
    world = World()
    world.add(job())
    world.settle()
    world.finish_relocations()
    for owner, step in ((KEY, "preflight"), (KEY, "train"), (("EvaluationJob", "demo-evaluation"), "evaluate")):
        world.finish(owner, step)
    return world


def stored(folder: Path) -> Path:
    store = Store(Layout.at(folder))
    for resource in finished().objects.values():
        store.save(resource)
    return folder


def wide(table: object) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_help_does_not_import_what_commands_need() -> None:
    heavy = ("pydantic", "torch", "httpx", "datasets")
    code = f"import sys, finetuning_cli.main; print([name for name in {heavy} if name in sys.modules])"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_report_shows_table_interval_and_verdict(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["report", "demo", "--state", str(stored(tmp_path))])

    assert done.exit_code == 0
    assert "exact-match" in done.stdout
    assert "Pass" in done.stdout


@pytest.mark.parametrize("form", ["yaml", "json", "table"])
def test_status_has_three_forms(tmp_path: Path, form: str) -> None:
    done = RUNNER.invoke(app, ["status", "demo", "-o", form, "--state", str(stored(tmp_path))])

    assert done.exit_code == 0
    assert "Complete" in done.stdout


def test_status_of_an_empty_place_says_that_nothing_was_run(tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["status", "--state", str(tmp_path / "nothing")])
    assert done.exit_code == 0
    assert f"nothing was run in {tmp_path / 'nothing'} yet" in done.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("command", [["report"], ["status"], ["logs"], ["delete"], ["prompt"]])
def test_unknown_name_is_told_with_what_there_is(tmp_path: Path, command: list[str]) -> None:
    arguments = [*command, "nobody", *(["hello"] if command == ["prompt"] else [])]
    done = RUNNER.invoke(app, [*arguments, "--state", str(stored(tmp_path))])

    assert done.exit_code == 1
    assert "no object named 'nobody'" in done.stderr
    assert "Traceback" not in done.stderr


def test_validate_reports_every_mistake_of_every_file(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(
        "apiVersion: finetuning.dev/v1alpha1\nkind: Relocation\nmetadata: {name: a}\nspec: {source: 'hf://a/b'}\n"
    )
    bad.write_text(good.read_text().replace("source", "sorce").replace("name: a", "name: A_"))

    done = RUNNER.invoke(app, ["validate", str(good), str(bad)])

    assert done.exit_code == 1
    assert f"{good}: valid" in done.stdout
    assert f"{bad}:3: metadata.name" in done.stdout
    assert f"{bad}:4: spec.sorce" in done.stdout


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("method: {type: qlora}", "spec.method.type qlora is not supported"),
        (
            "parallelism: {workers: 2, strategy: deepspeed, deepspeed: {config: {train_batch_size: 8}}}",
            "spec.parallelism.deepspeed.config has train_batch_size (set spec.training.batchSize)",
        ),
    ],
)
def test_validate_tells_what_would_not_be_accepted_anywhere(tmp_path: Path, fields: str, told: str) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(
        "# Two lines before\n---\n"
        "apiVersion: finetuning.dev/v1alpha1\nkind: FineTuningJob\nmetadata: {name: a}\nspec:\n"
        "  model: {source: 'hf://a/b'}\n  dataset: {source: 'hf://datasets/a/b', completion: '{text}'}\n"
        f"  {fields}\n"
    )

    done = RUNNER.invoke(app, ["validate", str(manifest)])

    assert done.exit_code == 1
    assert f"{manifest}:3: {told}" in done.stdout


def test_unknown_field_starts_nothing(tmp_path: Path) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(
        "apiVersion: finetuning.dev/v1alpha1\nkind: Relocation\nmetadata: {name: a}\nspec: {sorce: 'hf://a/b'}\n"
    )

    done = RUNNER.invoke(app, ["run", str(manifest), "--state", str(tmp_path / "state")])

    assert done.exit_code == 1
    assert "spec.sorce" in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("place", ["/proc/self/fdinfo/state", "{folder}/job.yaml/state", "{folder}/job.yaml"])
def test_state_folder_that_cannot_be_written_is_told(tmp_path: Path, place: str) -> None:
    manifest = tmp_path / "job.yaml"
    manifest.write_text(
        "apiVersion: finetuning.dev/v1alpha1\nkind: Relocation\nmetadata: {name: a}\nspec: {source: job.yaml}\n"
    )

    done = RUNNER.invoke(app, ["run", str(manifest), "--state", place.format(folder=tmp_path)])

    assert done.exit_code == 1
    assert place.format(folder=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr


def test_delete_removes_a_job_also_when_its_file_is_damaged(tmp_path: Path) -> None:
    layout = Layout.at(stored(tmp_path))
    adapter = layout.volumes / "demo-adapter"
    adapter.mkdir(parents=True)
    layout.object_file(*KEY).write_text("nonsense")

    done = RUNNER.invoke(app, ["delete", "demo", "--state", str(tmp_path)])

    assert done.exit_code == 0
    assert not adapter.exists()
    assert {kind for kind, _ in Store(layout).all()} == {"Relocation"}


def test_delete_refuses_a_folder_in_use(tmp_path: Path) -> None:
    layout = Layout.at(stored(tmp_path))
    with state_lock(layout, job="demo", wait=False, on_wait=lambda _: None):
        done = RUNNER.invoke(app, ["delete", "demo", "--state", str(tmp_path)])

    assert done.exit_code == 1
    assert "in use by the run of demo" in done.stderr


def test_table_shows_reference_only_where_there_is_one() -> None:
    row = EvaluationRow(metric=Metric.ROUGE_L, base=0.25, tuned=0.5, delta=0.25, ci_low=0.125, ci_high=0.375, samples=9)

    without = wide(results_table([row]))
    beside = wide(results_table([row.model_copy(update={"reference": 0.75})]))

    assert "reference" not in without
    assert "+0.1250 .. +0.3750" in without
    assert "0.7500" in beside


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0.0, "0.000"), (12345.6, "12,345.6"), (float("inf"), "inf"), (406.64, "406.6")]
)
def test_numbers_have_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("chat", "raw", "text"), [(False, False, "Triage {this}: hello\n"), (False, True, "hello"), (True, False, "hello")]
)
def test_question_goes_through_the_template_of_the_job(*, chat: bool, raw: bool, text: str) -> None:
    made = job(dataset={"source": "hf://datasets/a/b", "prompt": "Triage {{this}}: {message}\n", "completion": "{x}"})

    assert render(made, "hello", chat=chat, raw=raw, max_new_tokens=5) == Question(text, chat=chat, max_new_tokens=5)


def test_question_to_a_model_of_chats_is_a_chat() -> None:
    made = job(dataset={"source": "hf://datasets/a/b", "messages": "turns"})

    assert render(made, "hello", chat=False, raw=False, max_new_tokens=5).chat


def test_template_of_two_columns_cannot_take_one_text() -> None:
    made = job(dataset={"source": "hf://datasets/a/b", "prompt": "{a} {b}", "completion": "{x}"})

    with pytest.raises(UserError, match="a, b") as caught:
        render(made, "hello", chat=False, raw=False, max_new_tokens=5)

    assert caught.value.reason is Reason.INVALID_SPEC
    assert "--raw" in caught.value.hint


def test_plain_display_tells_each_change_of_a_stage_once() -> None:
    world = World()
    world.add(job())
    world.settle()
    console = Console(width=160, force_terminal=False, record=True, file=None, quiet=False)
    with console.capture() as captured, LiveDisplay(console, clock=lambda: 0.0) as display:
        display.show(world.objects, (KEY,))
        relocations = {key: each for key, each in world.objects.items() if isinstance(each, Relocation)}
        model = next(key for key, each in relocations.items() if each.spec.source.startswith("hf:"))
        words = LastWords(reason=Reason.NETWORK_UNREACHABLE, message="cannot reach hub")
        for state in (StepState(StepPhase.RUNNING), StepState(StepPhase.PENDING, last_words=words)):
            world.finish(model, "measure", state)
            display.show(world.objects, (KEY,))
        world.finish_relocations()
        for _ in range(3):
            display.show(world.objects, (KEY,))

    assert captured.get().splitlines() == [
        "demo relocate: running 0 % dataset pending, model measuring",
        "demo relocate: pending dataset pending, model measuring: tries again after: cannot reach hub",
        "demo relocate: succeeded dataset relocated (900 bytes), model relocated (900 bytes)",
    ]


def test_plain_display_leaves_the_reason_of_a_failure_to_the_end_of_the_run() -> None:
    world = World()
    world.add(job())
    world.settle()
    world.finish_relocations()
    world.finish(KEY, "preflight", failed())
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured, LiveDisplay(console, clock=lambda: 0.0) as display:
        display.show(world.objects, (KEY,))

    assert captured.get().splitlines() == [
        "demo relocate: succeeded dataset relocated (900 bytes), model relocated (900 bytes)",
        "demo preflight: failed",
    ]


def test_gate_that_fails_is_told_with_its_numbers(tmp_path: Path) -> None:
    world = finished()
    layout = Layout.at(tmp_path)
    evaluation = world.evaluation()
    gates = [GateResult(metric=Metric.EXACT_MATCH, verdict=Verdict.FAIL, message="-0.1 < 0")]
    status = evaluation.status.model_copy(update={"verdict": Verdict.FAIL, "gates": gates})
    world.objects["EvaluationJob", "demo-evaluation"] = evaluation.model_copy(update={"status": status})
    world.objects[KEY] = FineTuningJob.model_validate(job().to_wire())
    world.steps[KEY] = {step: succeeded(step) for step in ("preflight", "train")}
    world.settle()
    for resource in world.objects.values():
        Store(layout).save(resource)

    done = RUNNER.invoke(app, ["report", "demo", "--state", str(tmp_path)])

    assert "Fail -0.1 < 0" in done.stdout


def predicted(folder: Path) -> Path:
    spec = {
        "mode": "predict",
        "candidates": [{"name": "base", "model": {"source": "hf://acme/tiny", "revision": "v1"}}],
        "dataset": {"source": "s3://bucket/rows.jsonl", "revision": "7", "prompt": "{message}"},
    }
    world = World()
    world.add(EvaluationJob(metadata=ObjectMeta(name="all"), spec=EvaluationJobSpec.model_validate(spec)))
    world.settle()
    world.finish_relocations()
    world.finish(("EvaluationJob", "all"), "predict")
    store = Store(Layout.at(folder))
    for resource in world.objects.values():
        store.save(resource)
    claim = folder / "volumes/all-predictions"
    claim.mkdir(parents=True)
    (claim / "predictions.jsonl").touch()
    return folder


def test_predictions_are_reported_with_where_they_lie_and_deleted_with_their_job(tmp_path: Path) -> None:
    state = predicted(tmp_path)

    told = RUNNER.invoke(app, ["report", "all", "--state", str(state)])
    as_json = json.loads(RUNNER.invoke(app, ["report", "all", "-o", "json", "--state", str(state)]).stdout)
    deleted = RUNNER.invoke(app, ["delete", "all", "--state", str(state)])

    assert told.exit_code == 0, told.output
    assert "predicted    10 rows, 120 tokens" in told.stdout
    assert f"predictions  {state}/volumes/all-predictions/predictions.jsonl" in told.stdout
    assert as_json["predictions"]["rows"] == 10
    assert deleted.exit_code == 0, deleted.output
    assert not (state / "volumes/all-predictions").exists()

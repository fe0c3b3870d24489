"""Programs of users in place of the built-in training: TRL's trainer, and small ones that misbehave."""

import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.models import tiny_llama
from tests.support.processes import REPOSITORY
from tests.support.training import Ended, Workshop, colour_rows, quiet_context, run_trainer, write_rows

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import Provenance, ScriptInput, TrainConfig, TrainResult
from finetuning_trainer.preflight import preflight
from finetuning_trainer.provenance import TrainingProvenance
from finetuning_trainer.train import train_model
from finetuning_workload.artifact import require_intact
from finetuning_workload.data import held_out_rows, write_row_files
from finetuning_workload.errors import ProgramError, UserError
from finetuning_workload.models import load_adapter, load_base_model, load_tokenizer

EXAMPLE = REPOSITORY / "examples" / "script"
_SAVES_AN_ADAPTER = """
    import os
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(os.environ["FINETUNING_MODEL_PATH"])
    get_peft_model(base, LoraConfig(target_modules="all-linear")).save_pretrained(os.environ["FINETUNING_OUTPUT_PATH"])
"""


def given(folder: Path, *command: str, digest: str = "3") -> ScriptInput:
    provenance = Provenance(source="configmap://script", digest=f"sha256:{digest * 64}")
    return ScriptInput(path=str(folder), command=command, provenance=provenance)


def written(workshop: Workshop, code: str, *, digest: str = "3") -> ScriptInput:
    folder = workshop.folder / "script"
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(textwrap.dedent(code))
    return given(folder, "python", "train.py", digest=digest)


def train_config(workshop: Workshop, script: ScriptInput, **training: Any) -> TrainConfig:  # noqa: ANN401  (fields of TrainingSpec)
    return workshop.train_config(**training).model_copy(update={"script": script})


def run(workshop: Workshop, script: ScriptInput, **training: Any) -> TrainResult:  # noqa: ANN401  (fields of TrainingSpec)
    return train_model(train_config(workshop, script, **training), quiet_context())


def failure(workshop: Workshop, script: ScriptInput) -> ProgramError:
    with pytest.raises(ProgramError) as error:
        run(workshop, script)
    assert not workshop.output.exists()
    return error.value


def result(ended: Ended) -> TrainResult:
    assert ended.code == ExitCode.DONE, ended.log
    assert isinstance(ended.words.result, TrainResult)
    return ended.words.result


def test_trl_trains_unchanged_and_its_adapter_is_one_as_any_other(workshop: Workshop) -> None:
    told = run(workshop, given(EXAMPLE, "python", "sft.py"), max_steps=4)

    record = TrainingProvenance.model_validate_json((workshop.output / "provenance.json").read_bytes())
    assert (told.steps, record.steps, told.dataset.rows) == (4, 4, 40)
    assert told.loss is not None
    assert record.script == Provenance(source="configmap://script", digest=f"sha256:{'3' * 64}")
    assert require_intact(workshop.output).digest == told.digest
    assert json.loads((workshop.output / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "pypi://tiny==1.0"
    )
    tuned = load_adapter(
        load_base_model(workshop.model, dtype=torch.float32, device=torch.device("cpu")), workshop.output
    )
    assert sum(weight.abs().sum() for name, weight in tuned.named_parameters() if "lora_B" in name) > 0
    assert "python sft.py` of `configmap://script`" in (workshop.output / "README.md").read_text()
    assert not list(workshop.output.glob("*.bin"))


def test_trl_that_is_asked_to_stop_saves_and_goes_on_from_there(workshop: Workshop) -> None:
    config = train_config(
        workshop, given(EXAMPLE, "python", "sft.py"), max_steps=60, checkpoint_every_steps=1, keep_checkpoints=3
    )
    stopped = run_trainer(
        config, workshop.folder, when=lambda: any(workshop.checkpoints.glob("checkpoint-*/trainer_state.json"))
    )
    assert (stopped.code, stopped.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    assert not workshop.output.exists()
    newest = max(int(path.name.partition("-")[2]) for path in workshop.checkpoints.glob("checkpoint-*"))

    told = result(run_trainer(config, workshop.folder))
    assert (told.steps, told.resumptions) == (60, 1)
    assert told.resumed_from_step is not None
    assert told.resumed_from_step >= newest


def test_trl_that_is_stopped_after_its_last_step_takes_no_other(workshop: Workshop) -> None:
    """Its checkpoint is there and its result is not: the same adapter comes of it."""
    script = given(EXAMPLE, "python", "sft.py")
    first = run(workshop, script, max_steps=3, checkpoint_every_steps=1)
    before = load_file(workshop.output / "adapter_model.safetensors")
    shutil.rmtree(workshop.output)

    told = run(workshop, script, max_steps=3, checkpoint_every_steps=1)

    after = load_file(workshop.output / "adapter_model.safetensors")
    assert (first.steps, told.steps, told.resumed_from_step) == (3, 3, 3)
    assert {path.name for path in workshop.checkpoints.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert after.keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_a_finished_script_is_not_run_again(workshop: Workshop) -> None:
    marks = workshop.folder / "runs"
    script = written(workshop, f"open({str(marks)!r}, 'a').write('x')\n{textwrap.dedent(_SAVES_AN_ADAPTER)}")
    assert run(workshop, script).digest == run(workshop, script).digest
    assert marks.read_text() == "x"


def test_another_script_begins_with_an_empty_folder_of_checkpoints(
    workshop: Workshop, capfd: pytest.CaptureFixture[str]
) -> None:
    leaves = """
        import os, pathlib
        left = pathlib.Path(os.environ["FINETUNING_CHECKPOINT_PATH"])
        print("found", sorted(path.name for path in left.glob("mine-*")))
        (left / "mine-1").write_text("")
        raise SystemExit(203)
    """
    for digest in ("3", "3", "4"):
        failure(workshop, written(workshop, leaves, digest=digest))
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("found")]
    assert told == ["found []", "found ['mine-1']", "found []"]


def test_a_checkpoint_that_was_not_written_to_its_end_is_dropped(workshop: Workshop) -> None:
    script = written(workshop, "raise SystemExit(203)")
    failure(workshop, script)
    for name, file in (("checkpoint-1", "trainer_state.json"), ("checkpoint-2", "optimizer.pt")):
        (workshop.checkpoints / name).mkdir()
        (workshop.checkpoints / name / file).write_text("{}")
    (workshop.checkpoints / "checkpoint-3").mkdir()
    for file in ("trainer_state.json", "checkpoint-is-incomplete.txt"):
        (workshop.checkpoints / "checkpoint-3" / file).write_text("{}")
    failure(workshop, script)
    assert {path.name for path in workshop.checkpoints.glob("checkpoint-*")} == {"checkpoint-1"}


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        ("raise ValueError('rank must be even')", ExitCode.USER_ERROR, "exit code 1: ValueError: rank must be even"),
        ("raise SystemExit(2)", ExitCode.USER_ERROR, "the script ended with exit code 2"),
        ("print('no room'); raise SystemExit(203)", ExitCode.ENVIRONMENT, "ended with exit code 203: no room"),
        ("import os; os.kill(os.getpid(), 9)", ExitCode.ENVIRONMENT, "the script was killed by signal 9"),
        ("pass", ExitCode.USER_ERROR, "holds no adapter_config.json; it holds nothing"),
    ],
)
def test_how_a_script_ended_is_told(workshop: Workshop, code: str, expected: ExitCode, message: str) -> None:
    error = failure(workshop, written(workshop, code))
    assert (error.exit_code, error.reason) == (expected, Reason.SCRIPT_FAILED)
    assert message in error.message
    assert error.hint


def test_what_is_left_by_a_script_that_was_asked_to_stop_is_no_result(workshop: Workshop) -> None:
    begun = workshop.folder / "begun"
    script = written(
        workshop,
        f"""
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        {textwrap.indent(textwrap.dedent(_SAVES_AN_ADAPTER), "        ").strip()}
        pathlib.Path({str(begun)!r}).touch()
        while True:
            time.sleep(0.1)
        """,
    )
    ended = run_trainer(train_config(workshop, script), workshop.folder, when=begun.exists)
    assert (ended.code, ended.words.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
    assert not workshop.output.exists()


def test_an_adapter_that_does_not_fit_the_base_model_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    other = tiny_llama(tmp_path / "other", hidden=96)
    code = textwrap.dedent(_SAVES_AN_ADAPTER).replace('os.environ["FINETUNING_MODEL_PATH"]', repr(str(other)))
    assert failure(workshop, written(workshop, code)).reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("command", "lacking"),
    [
        (("pyhton", "train.py"), "pyhton"),
        (("python", "-u", "tain.py"), "tain.py"),
        (("./train.sh",), "./train.sh"),
    ],
)
def test_a_command_that_cannot_be_started_is_told_before_anything_is_computed(
    workshop: Workshop, command: tuple[str, ...], lacking: str
) -> None:
    script = written(workshop, "pass").model_copy(update={"command": command})
    with pytest.raises(UserError, match=f"spec.script.command names {lacking}") as error:
        preflight(workshop.preflight_config().model_copy(update={"script": script}), quiet_context())
    assert error.value.reason is Reason.SCRIPT_FAILED
    assert "It holds train.py" in error.value.hint
    assert failure(workshop, script).message == error.value.message


def test_preflight_leaves_memory_and_method_to_the_script(workshop: Workshop) -> None:
    config = workshop.preflight_config(method={"type": "qlora"})
    told = preflight(config.model_copy(update={"script": written(workshop, "pass")}), quiet_context())
    assert told.memory_bytes is None
    assert told.trainable_parameters > 0


def test_a_script_is_told_where_everything_is_and_nothing_of_the_contract_beneath_it(workshop: Workshop) -> None:
    seen = workshop.folder / "seen.json"
    code = f"import json, os\njson.dump(dict(os.environ), open({str(seen)!r}, 'w'))\nraise SystemExit(203)"
    ended = run_trainer(train_config(workshop, written(workshop, code), learning_rate=1e-3), workshop.folder)
    assert ended.code == ExitCode.ENVIRONMENT
    environment = json.loads(seen.read_text())
    settings = json.loads(environment["FINETUNING_SETTINGS"])
    assert (settings["method"]["rank"], settings["training"]["learningRate"]) == (4, 1e-3)
    assert environment["FINETUNING_MODEL_PATH"] == str(workshop.model)
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert {"FINETUNING_RUN_CONFIG", "FINETUNING_TERMINATION_LOG"}.isdisjoint(environment)
    assert environment["PATH"].split(os.pathsep)[1:] == os.environ["PATH"].split(os.pathsep)


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ({"prompt": "Say {message}", "completion": "{answer}"}, {"prompt", "completion"}),
        ({"completion": "{message} {answer}"}, {"text"}),
        ({"messages": "turns"}, {"messages"}),
    ],
)
def test_rows_are_written_in_forms_that_trl_reads_and_held_out_ones_apart(
    workshop: Workshop, fields: dict[str, str], keys: set[str]
) -> None:
    rows: list[dict[str, Any]] = [
        row | {"turns": [{"role": "user", "content": row["message"]}, {"role": "assistant", "content": row["answer"]}]}
        for row in colour_rows()
    ]
    write_rows(workshop.data, rows)
    given_rows = RowFormat.model_validate(fields | {"split": DatasetSplit(test=0.2)})
    dataset = workshop.train_config().dataset.model_copy(update={"rows": given_rows})
    tokenizer = load_tokenizer(workshop.model)
    files = write_row_files(dataset, tokenizer, cache=workshop.folder / "cache")
    train, test = ([json.loads(line) for line in path.read_text().splitlines()] for path in (files.train, files.test))
    assert {key for row in train + test for key in row} == keys
    assert len(train) + len(test) == len(rows)
    assert len(test) == len(held_out_rows(dataset, tokenizer, limit=None)) > 0
    assert not [row for row in test if row in train]

"""A user's own program in place of the built-in training: it is told where everything is, and its result is checked."""

import json
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from finetuning_api.finetuningjob import MethodType
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import (
    ContractModel,
    ScriptInput,
    TrainConfig,
    TrainResult,
)
from finetuning_api.script import (
    CHECKPOINT_PATH_ENV,
    MODEL_PATH_ENV,
    OUTPUT_PATH_ENV,
    SETTINGS_ENV,
    TEST_FILE_ENV,
    TOKENIZER_PATH_ENV,
    TRAIN_FILE_ENV,
)
from finetuning_trainer.folders import whole_folder
from finetuning_trainer.output import ADAPTER_FORMAT, MODEL_FORMAT, describe_output, train_result
from finetuning_trainer.provenance import TrainingProvenance, versions
from finetuning_workload.artifact import artifact_files, require_intact
from finetuning_workload.child import ChildEnd, inherited, run_child
from finetuning_workload.data import PreparedData, RowFiles, prepare, write_row_files
from finetuning_workload.errors import EnvironmentFault, UserError
from finetuning_workload.files import write_atomically
from finetuning_workload.models import load_model_config, require_fitting_adapter, weight_files
from finetuning_workload.parent import PARENT_ENV
from finetuning_workload.program import Context, StopFlag

_LOG = logging.getLogger(__name__)
_ATTEMPTS_NAME = "finetuning-attempts.json"
_STATE_NAME = "trainer_state.json"
"""What Hugging Face's Trainer writes beside each of its checkpoints."""
_TORN_NAME = "checkpoint-is-incomplete.txt"
"""What it leaves in a checkpoint while it writes it because it was asked to stop."""
_SHOWN_FILES = 10
_ADAPTER_CONFIG = "adapter_config.json"
_ITS_INPUT = frozenset({ExitCode.USER_ERROR, 2})
"""Exit codes for wrong input: the contract's own, with which Python also ends after an exception, and argparse's."""


class _Attempts(ContractModel):
    """What is kept beside a script's checkpoints: for which training they are, and how often it was gone on with."""

    identity: str
    resumptions: int = Field(default=0, ge=0)


class TrainerState(BaseModel):
    """The part of ``trainer_state.json`` that is told on."""

    global_step: int = Field(default=0, ge=0)
    log_history: tuple[dict[str, object], ...] = ()

    def latest(self, name: str) -> float | None:
        """Return the last value that was logged under a name."""
        values = (entry[name] for entry in reversed(self.log_history) if name in entry)
        return next((float(value) for value in values if isinstance(value, int | float)), None)


def train_with_script(
    config: TrainConfig,
    script: ScriptInput,
    context: Context,
    *,
    identity: str,
    tokenizer: PreTrainedTokenizerBase,
    started_at: datetime,
) -> TrainResult:
    """Run the user's program and make the artifact of what it leaves.

    Raises UserError(SCRIPT_FAILED) when it says that its input is wrong or leaves nothing to use, EnvironmentFault
    (SCRIPT_FAILED) when it may be tried again, Interrupted when this program is asked to stop, and what
    ``require_startable`` and ``prepare`` raise.
    """
    require_startable(script)
    data = prepare(config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path))
    rows = write_row_files(config.dataset, tokenizer, cache=Path(config.cache_path))
    context.stop.raise_if_set("stopped before the script was started")
    checkpoints, output = Path(config.checkpoint_path), Path(config.output_path)
    attempts = _gone_on_with(checkpoints, identity=identity)
    begun_with = _newest_state(checkpoints) if attempts.resumptions else None
    content_format = MODEL_FORMAT if config.method.type is MethodType.FULL else ADAPTER_FORMAT
    with whole_folder(output, source="training", revision=identity, content_format=content_format) as partial:
        environment = _environment(config, rows, output=partial, environment=context.environment)
        _run(script, environment, context.stop)
        state = max(_newest_state(checkpoints), _newest_state(partial), key=lambda each: each.global_step)
        _keep_result(partial, config)
        record = _record(config, script, identity=identity, data=data, state=state, started_at=started_at)
        record = record.model_copy(
            update={
                "resumptions": attempts.resumptions,
                "resumed_from_step": begun_with.global_step if begun_with else None,
            }
        )
        describe_output(partial, record)
    return train_result(require_intact(output, content=False), record)


def require_startable(script: ScriptInput) -> None:
    """Raise UserError(SCRIPT_FAILED) where the command cannot be started, or names a Python file that is not there."""
    folder, (program, *arguments) = Path(script.path), script.command
    lacking = [program] if _found(program, folder) is None else []
    named = next((word for word in arguments if not word.startswith("-")), "")
    if Path(program).name.startswith("python") and named.endswith(".py") and not (folder / named).is_file():
        lacking.append(named)
    if not lacking:
        return
    files = sorted(path.relative_to(folder).as_posix() for path in artifact_files(folder))
    message = f"spec.script.command names {lacking[0]}, which is neither in the image nor in {script.provenance.source}"
    hint = f"It holds {', '.join(files[:_SHOWN_FILES])}. Commands are started there, without a shell."
    raise UserError(Reason.SCRIPT_FAILED, message, hint)


def _found(program: str, folder: Path) -> str | None:
    # As exec looks for it: a name without a slash on the search path, any other from the folder of the script.
    return shutil.which(str(folder / program) if "/" in program else program, path=_search_path(os.environ))


def _search_path(environment: Mapping[str, str]) -> str:
    """Return PATH with the programs of this Python in front: `python` is then the one with the libraries."""
    return os.pathsep.join((str(Path(sys.executable).parent), environment.get("PATH", os.defpath)))


def _gone_on_with(checkpoints: Path, *, identity: str) -> _Attempts:
    """Empty the folder of checkpoints unless it is of this same training; count how often that was gone on with."""
    path = checkpoints / _ATTEMPTS_NAME
    try:
        known = _Attempts.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        known = None
    if known is None or known.identity != identity:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        attempts = _Attempts(identity=identity)
    else:
        left = any(each != path for each in checkpoints.iterdir())
        _drop_torn(checkpoints)
        attempts = known.model_copy(update={"resumptions": known.resumptions + left})
    write_atomically(path, attempts.to_json().encode())
    return attempts


def _drop_torn(checkpoints: Path) -> None:
    """Remove what Hugging Face's Trainer began to write and was killed over: it would take the newest for whole."""
    for folder in checkpoints.glob("checkpoint-*"):
        if (folder / _TORN_NAME).exists() or not (folder / _STATE_NAME).is_file():
            _LOG.warning("%s was not written to its end and is removed", folder)
            shutil.rmtree(folder)


def _newest_state(folder: Path) -> TrainerState:
    """Return the furthest state of a Hugging Face Trainer below a folder; an empty one where there is none."""
    states = [TrainerState()]
    for path in folder.rglob(_STATE_NAME):
        try:
            states.append(TrainerState.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            _LOG.warning("%s cannot be read; steps and losses in it are not told", path)
    return max(states, key=lambda state: state.global_step)


def _environment(
    config: TrainConfig, rows: RowFiles, *, output: Path, environment: Mapping[str, str]
) -> dict[str, str]:
    settings = {
        "method": config.method.model_dump(mode="json", by_alias=True),
        "training": config.training.model_dump(mode="json", by_alias=True),
    }
    own = {
        MODEL_PATH_ENV: config.model.path,
        TOKENIZER_PATH_ENV: config.model.tokenizer_path,
        TRAIN_FILE_ENV: str(rows.train),
        TEST_FILE_ENV: str(rows.test),
        OUTPUT_PATH_ENV: str(output),
        CHECKPOINT_PATH_ENV: config.checkpoint_path,
        SETTINGS_ENV: json.dumps(settings),
        PARENT_ENV: str(os.getpid()),
        "PATH": _search_path(environment),
        "PYTHONUNBUFFERED": "1",
    }
    return inherited(environment) | own


def _run(script: ScriptInput, environment: Mapping[str, str], stop: StopFlag) -> None:
    """Run the program to its end, and hand a request to stop on to it. Raises what its end means."""
    _LOG.info("starting the script of %s: %s", script.provenance.source, shlex.join(script.command))
    # Safe path: a file of the user's must not take the place of a module that the launcher needs.
    command = [sys.executable, "-P", "-m", "finetuning_trainer.launch", *script.command]
    end = run_child(command, name="the script", folder=script.path, environment=environment, stop=stop)
    if end.code != ExitCode.DONE:
        raise _failure(end)


def _failure(end: ChildEnd) -> UserError | EnvironmentFault:
    message = f"the script {end.told}"
    if end.code in _ITS_INPUT:
        hint = "Its output is in the log of this stage. A script that ends with 203 is tried again."
        return UserError(Reason.SCRIPT_FAILED, message, hint)
    memory = " Signal 9 comes most often from a lack of memory." if end.code == -signal.SIGKILL else ""
    return EnvironmentFault(Reason.SCRIPT_FAILED, message, f"Its output is in the log of this stage.{memory}")


def _keep_result(folder: Path, config: TrainConfig) -> None:
    """Check what the script left, and drop what is no part of a result. Raises UserError."""
    for leftover in folder.glob("checkpoint-*"):
        shutil.rmtree(leftover)
    # A pickle, which nothing but the script's own framework reads.
    (folder / "training_args.bin").unlink(missing_ok=True)
    wanted = "config.json" if config.method.type is MethodType.FULL else _ADAPTER_CONFIG
    if not (folder / wanted).is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:_SHOWN_FILES]) or "nothing"
        message = f"the script ended well, but the folder {OUTPUT_PATH_ENV} holds no {wanted}; it holds {found}"
        hint = f"Save there, as with trainer.save_model(os.environ['{OUTPUT_PATH_ENV}'])."
        raise UserError(Reason.SCRIPT_FAILED, message, f"{hint} spec.method.type decides what is wanted.")
    if config.method.type is MethodType.FULL:
        load_model_config(folder)
        weight_files(folder)
        return
    require_fitting_adapter(load_model_config(Path(config.model.path)), folder)
    adapter = json.loads((folder / _ADAPTER_CONFIG).read_bytes())
    # The path of this machine means nothing elsewhere; the source does.
    adapter["base_model_name_or_path"] = config.model.provenance.source
    (folder / _ADAPTER_CONFIG).write_text(json.dumps(adapter, indent=2))


def _record(
    config: TrainConfig,
    script: ScriptInput,
    *,
    identity: str,
    data: PreparedData,
    state: TrainerState,
    started_at: datetime,
) -> TrainingProvenance:
    return TrainingProvenance(
        job=config.job,
        identity=identity,
        model=config.model.provenance,
        tokenizer=config.model.tokenizer_provenance,
        dataset=config.dataset.provenance,
        script=script.provenance,
        prepared_data=data.digest,
        method=config.method,
        training=config.training,
        seed=config.training.seed,
        versions=versions(),
        plan={"command": shlex.join(script.command)},
        counts=data.counts,
        steps=state.global_step,
        loss=state.latest("loss"),
        evaluation_loss=state.latest("eval_loss"),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )

"""Trials: which numbers they have, when one is given up for others, and how the best becomes the job's adapter.

Optuna draws and judges. Its studies live for one question: everything that they are made of lies in the specification
and in the histories of the trials, so nothing that outlives a process can disagree with them.
"""

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning_api.runconfig import HISTORY_NAME, ChooseConfig, TrainResult, TrialInput
from finetuning_api.trials import is_whole, trial_count
from finetuning_api.tuning import HalvingSpec, Scale, SearchType, TunedParameter, TuningSpec
from finetuning_trainer.history import evaluation_losses
from finetuning_trainer.output import result_of
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import UserError
from finetuning_workload.files import fsync_path

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

_LOG = logging.getLogger(__name__)
_ADAPTER, _CHECKPOINTS = "adapter", "checkpoints"
"""Folders of a trial, as its RunConfig names them."""
_DIGITS = 3
"""Of a drawn number: more of them would say nothing and are hard to read."""
_DRAWS_PER_TRIAL = 50
"""Of few combinations most are drawn again and again; this many draws find nearly all."""


def draw_trials(tuning: TuningSpec) -> tuple[tuple[float, ...], ...]:
    """Return the numbers of each trial, in the order of the parameters; no two trials are equal."""
    study = _study(sampler=_sampler(tuning))
    distributions = {parameter.name.value: _distribution(parameter) for parameter in tuning.parameters}
    wanted = trial_count(tuning)
    found: dict[tuple[float, ...], None] = {}
    for _ in range(wanted if tuning.search is SearchType.GRID else wanted * _DRAWS_PER_TRIAL):
        drawn = study.ask(distributions).params
        found[tuple(_readable(drawn[each.name.value], each) for each in tuning.parameters)] = None
        if len(found) == wanted:
            break
    return tuple(found)


def _sampler(tuning: TuningSpec) -> "BaseSampler":
    from optuna.samplers import GridSampler, RandomSampler

    if tuning.search is SearchType.RANDOM:
        return RandomSampler(seed=tuning.seed)
    return GridSampler({each.name.value: each.values or [] for each in tuning.parameters}, seed=tuning.seed)


def _distribution(parameter: TunedParameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, log = parameter.min, parameter.max, parameter.scale is Scale.LOG
    if low is None or high is None:
        return CategoricalDistribution(parameter.values or [])
    if is_whole(parameter.name):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(low, high, log=log)


def _readable(value: float, parameter: TunedParameter) -> float:
    """Return a number as it was given, or one of a range with few digits that still lies in it."""
    if parameter.min is None or parameter.max is None or is_whole(parameter.name):
        return float(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), parameter.min), parameter.max)


def rivalry(trial: TrialInput | None) -> Callable[[], bool] | None:
    """Return what tells a trial, after an evaluation, whether it is given up; None where nothing is ever given up."""
    if trial is None or trial.halving is None:
        return None
    folder, number, halving = Path(trial.folder), str(trial.number), trial.halving

    def behind() -> bool:
        losses = {path.name: _losses(path) for path in folder.iterdir() if path.name.isdecimal()}
        own = losses.pop(number, [])
        return is_behind(own, losses.values(), halving)

    return behind


def _losses(trial: Path) -> list[float]:
    with suppress(FileNotFoundError):
        return evaluation_losses((trial / _CHECKPOINTS / HISTORY_NAME).read_bytes())
    return []


def is_behind(own: Sequence[float], others: Iterable[Sequence[float]], halving: HalvingSpec) -> bool:
    """Return whether asynchronous successive halving ends a trial, by the held-out losses of all trials so far.

    Losses are compared at rungs, which are numbers of evaluations: of those who came to a rung, one of
    ``reduction_factor`` goes on, and the best always does.
    """
    from optuna.pruners import SuccessiveHalvingPruner

    if not own:
        return False
    pruner = SuccessiveHalvingPruner(min_resource=halving.min_evaluations, reduction_factor=halving.reduction_factor)
    study = _study(pruner=pruner)
    for losses in others:
        study.add_trial(_alone(losses, pruner))
    study.add_trial(_alone(own[:-1], pruner))
    trial = study.trials[-1]
    trial.intermediate_values = {**trial.intermediate_values, len(own): own[-1]}
    return pruner.prune(study, trial)


def _alone(losses: Sequence[float], pruner: "BasePruner") -> "FrozenTrial":
    """Return a trial that came as far as its losses say: the rungs that it passed are noted when it meets nobody."""
    study = _study(pruner=pruner)
    trial = study.ask()
    for evaluation, loss in enumerate(losses, start=1):
        trial.report(loss, evaluation)
        trial.should_prune()
    return study.trials[0]


def _study(*, sampler: "BaseSampler | None" = None, pruner: "BasePruner | None" = None) -> "Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=sampler, pruner=pruner)


def choose(config: ChooseConfig) -> TrainResult:
    """Make the adapter of one trial that of the job, remove all trials, and return the result of the one.

    Raises UserError(ARTIFACT_CORRUPT) where the adapter is not there or not what the trial said. Doing it again, after
    an end at any moment, does the rest.
    """
    output, trial = Path(config.output_path), Path(config.folder) / str(config.number)
    if not _is_chosen(output, config.digest):
        _require_trial(trial / _ADAPTER, config)
        # Before the adapter: once that is in its place, the trials are no longer looked for.
        _take(trial / _CHECKPOINTS, Path(config.checkpoint_path))
        _take(trial / _ADAPTER, output)
    result = result_of(output)
    shutil.rmtree(config.folder, ignore_errors=True)
    _LOG.info("trial %d was chosen: %s", config.number, output)
    return result


def _require_trial(adapter: Path, config: ChooseConfig) -> None:
    try:
        require_intact(adapter, digest=config.digest)
    except UserError as error:
        message = f"the adapter of trial {config.number}, the best, is not what the trial left: {error.message}"
        hint = "Its volume was changed or replaced since. Delete the job and create it again."
        raise UserError(error.reason, message, hint) from error


def _is_chosen(output: Path, digest: str) -> bool:
    try:
        return require_intact(output).digest == digest
    except UserError:
        return False


def _take(source: Path, target: Path) -> None:
    """Move a folder to a place on the same volume, unless that was done already."""
    if not source.exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    source.rename(target)
    fsync_path(target.parent)

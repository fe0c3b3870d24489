"""What a trial trains with: the job's own method and training, with the trial's numbers in their places."""

from collections.abc import Iterable, Sequence
from math import prod

from pydantic import ValidationError

from finetuning_api.finetuningjob import MethodSpec, TrainingSpec
from finetuning_api.rules import holds
from finetuning_api.tuning import SearchType, TrialParameter, TunedField, TunedParameter, TuningSpec

USUAL_TRIALS = 10
"""Of a random search that does not say how many."""
Settings = tuple[MethodSpec, TrainingSpec]


def trial_count(tuning: TuningSpec) -> int:
    """Return how many trials there are at most: a random search over few values may find fewer."""
    if tuning.search is SearchType.GRID:
        return prod(len(each.values or ()) for each in tuning.parameters)
    return tuning.trials or USUAL_TRIALS


def with_parameters(settings: Settings, parameters: Iterable[TrialParameter]) -> Settings:
    """Return method and training with other numbers. Raises ValueError naming the field that cannot have its number."""
    method, training = settings
    wires = {"method": method.to_wire(), "training": training.to_wire()}
    for each in parameters:
        part, field = each.name.split(".")
        wires[part][field] = each.value
    try:
        changed = MethodSpec.model_validate(wires["method"]), TrainingSpec.model_validate(wires["training"])
    except ValidationError as error:
        found = error.errors()[0]
        message = f"{found['loc'][0]} cannot be {found['input']:g}: {found['msg']}"
        raise ValueError(message) from None
    broken = (rule.message for part in changed for rule in part.cel_rules if not holds(rule.rule, value=part.to_wire()))
    if (message := next(broken, "")) != "":
        raise ValueError(message)
    return changed


def unfit_number(settings: Settings, parameter: TunedParameter) -> str:
    """Return why a field cannot have one of the numbers that are to be tried; nothing where it can have all."""
    numbers = parameter.values if parameter.values is not None else [parameter.min, parameter.max]
    for number in numbers:
        try:
            with_parameters(settings, [TrialParameter(name=parameter.name, value=number or 0.0)])
        except ValueError as error:
            return str(error)
    return ""


def is_whole(field: TunedField) -> bool:
    """Return whether a field takes whole numbers only."""
    return field in {TunedField.RANK, TunedField.BATCH_SIZE}


def told(parameters: Sequence[TrialParameter]) -> str:
    """Return the numbers of a trial for a person."""
    return ", ".join(f"{each.name.value} {each.value:g}" for each in parameters)

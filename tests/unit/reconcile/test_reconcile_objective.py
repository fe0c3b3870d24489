"""What cannot be learned from preferences yet is refused before anything is brought."""

from typing import Any

import pytest
from tests.support.objects import World, job

from finetuning_api.dataset import DatasetSpec
from finetuning_api.reasons import Reason

KEY = ("FineTuningJob", "demo")
PAIRS = DatasetSpec(
    source="s3://bucket/rows.jsonl", revision="7", prompt="{message}", completion="{better}", rejected="{worse}"
)


def refused(**spec: Any) -> tuple[Reason | None, str]:  # noqa: ANN401  (fields of the specification)
    made = World()
    fields: dict[str, Any] = {"dataset": PAIRS, "training": {"objective": "dpo"}}
    made.add(job(**(fields | spec)))
    made.settle()
    status = made.job().status
    accepted = next(each for each in status.conditions if each.type == "Accepted")
    return status.reason, accepted.message


def test_pairs_and_an_adapter_are_accepted() -> None:
    assert refused() == (Reason.PENDING, "")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"method": {"type": "full"}}, "spec.method.type full"),
        ({"parallelism": {"processes_per_worker": 2}}, "spec.parallelism"),
        ({"training": {"objective": "dpo", "early_stopping": {}}}, "spec.training.earlyStopping"),
        ({"tuning": {"parameters": [{"name": "method.rank", "values": [4, 8]}]}}, "spec.tuning"),
    ],
    ids=["full", "processes", "stopping", "tuning"],
)
def test_what_is_not_supported_with_preferences_is_told_by_its_field(spec: dict[str, object], field: str) -> None:
    reason, message = refused(**spec)
    assert reason is Reason.UNSUPPORTED
    assert message.startswith(field)
    assert "spec.training.objective dpo" in message

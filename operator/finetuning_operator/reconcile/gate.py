"""What the outcome of a gate means for the conditions of a job."""

from collections.abc import Sequence

from finetuning_api.base import Condition, ConditionType
from finetuning_api.metrics import GateResult, Verdict
from finetuning_api.reasons import Reason
from finetuning_operator.reconcile.lifecycle import Writer

REASONS = {
    Verdict.PASS: Reason.GATE_PASSED,
    Verdict.FAIL: Reason.GATE_FAILED,
    Verdict.INCONCLUSIVE: Reason.GATE_INCONCLUSIVE,
}


def gate_message(gates: Sequence[GateResult]) -> str:
    """Return what every rule found; of several rules also which verdict is whose."""
    if len(gates) == 1:
        return gates[0].message
    return "; ".join(f"{gate.verdict.value}: {gate.message}" for gate in gates)


def gate_condition(
    writer: Writer, conditions: Sequence[Condition], *, verdict: Verdict | None, message: str
) -> tuple[Condition, ...]:
    """Return the conditions with GatePassed; without rules there is no gate and no such condition."""
    if verdict is None:
        return tuple(conditions)
    return writer.set(
        conditions, ConditionType.GATE_PASSED, holds=verdict is Verdict.PASS, reason=REASONS[verdict], message=message
    )

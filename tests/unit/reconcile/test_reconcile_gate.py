"""What is told of the rules of a gate."""

from finetuning_api.metrics import GateResult, Metric, Verdict
from finetuning_operator.reconcile.gate import gate_message

MATCHED = GateResult(metric=Metric.EXACT_MATCH, verdict=Verdict.PASS, message="exact-match improved by 0.2")
UNSURE = GateResult(metric=Metric.COLA, verdict=Verdict.INCONCLUSIVE, message="cola lost 0.01")


def test_one_rule_speaks_for_the_gate() -> None:
    assert gate_message([MATCHED]) == "exact-match improved by 0.2"


def test_of_several_rules_each_tells_its_verdict() -> None:
    assert gate_message([MATCHED, UNSURE]) == "Pass: exact-match improved by 0.2; Inconclusive: cola lost 0.01"

"""The contract is imported by every program at its start, so it loads nothing that most of them never use."""

import subprocess
import sys

import pytest

HEAVY = ("celpy", "lark", "yaml", "torch", "transformers", "datasets", "kubernetes")


@pytest.mark.parametrize("module", ["finetuning_api", "finetuning_api.runconfig", "finetuning_api.schema"])
def test_importing_the_contract_loads_neither_rules_nor_yaml(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == []


def test_reading_manifests_loads_no_rules_before_one_is_validated() -> None:
    code = f"import sys, finetuning_api.validation; print(*[name for name in {HEAVY[:2]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == []

"""Mistakes in manifest, data and model, as `finetune run` tells them: before any training, in one message.

What other tests show of the same mistakes, and is not repeated here:

========================================  ============================================================================
every mistake of a manifest at once       tests/unit/api/test_api_validation.py, tests/unit/cli/test_cli_manifest.py
broken, wrongly encoded and mixed data    tests/unit/data/test_data_reading.py
rows lost to length, split and templates  tests/unit/data/test_data_preparing.py
damaged weights and foreign code          tests/workload/trainer/test_trainer_preflight.py
weights whose size cannot fit             tests/workload/trainer/test_trainer_preflight.py
========================================  ============================================================================
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.support.bad_input import GOOD_ROWS, Desk, Rows, require_nothing_half_done, require_told

from finetuning_api.reasons import Reason
from finetuning_workload.artifact import hash_file


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """One state folder for all: model and rows are relocated once."""
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        (
            "unknown-field",
            {"training.learnigRate": 0.1},
            "spec.training.learnigRate: is not a field of this API; did you mean learningRate?",
        ),
        ("wrong-type", {"training.batchSize": "four"}, "spec.training.batchSize: needs a whole number, got 'four'"),
        (
            "unknown-scheme",
            {"model.source": "ftp://acme/tiny"},
            (
                "spec.model.source: source has an unknown scheme; use hf:// s3:// gs:// https:// oci:// git+https://"
                " pypi:// pvc:// configmap:// or, for local runs, a path; it is 'ftp://acme/tiny'"
            ),
        ),
    ],
)
def test_mistake_of_the_manifest_starts_nothing(
    tmp_path: Path, name: str, changes: Mapping[str, object], told: str
) -> None:
    desk = Desk(tmp_path)

    ended = desk.run(name, changes)

    assert ended.code == 1
    assert ended.output == ""
    (line, advice) = ended.errors.splitlines()
    assert line.startswith(f"error: {name}.yaml:")
    assert line.endswith(f": {told}")
    assert advice == "  Nothing was started."
    assert not desk.state.exists()


@pytest.mark.parametrize(
    ("name", "rows", "changes", "reason", "told"),
    [
        (
            "column",
            GOOD_ROWS,
            {"dataset.prompt": "{mesage}: "},
            Reason.COLUMN_NOT_FOUND,
            ("spec.dataset.prompt", "{mesage}", "its columns are message, triage", "Did you mean 'message'?"),
        ),
        ("empty", (), {}, Reason.DATASET_EMPTY, ("spec.dataset.source has no rows: empty.jsonl", "right file")),
        (
            "one-sided",
            GOOD_ROWS,
            {"dataset.split": {"test": 0.001}},
            Reason.SPLIT_EMPTY,
            ("spec.dataset.split leaves no row to test", "48 usable rows", "test: 0.001", "a larger"),
        ),
        (
            "half-empty",
            [{**row, "triage": row["triage"] if index % 2 else ""} for index, row in enumerate(GOOD_ROWS)],
            {},
            Reason.COMPLETIONS_EMPTY,
            ("24 of 48 rows", "empty completion", "spec.dataset.completion", "remove such rows or fill them"),
        ),
        (
            "cut",
            GOOD_ROWS,
            {"training.maxLength": 8},
            Reason.TOO_MANY_ROWS_LOST,
            ("48 of 48 rows", "spec.training.maxLength 8", "Set spec.training.maxLength to"),
        ),
        (
            "targets",
            GOOD_ROWS,
            {"method.targetModules": "c_attn"},
            Reason.TARGET_MODULES_NOT_FOUND,
            ("method.targetModules", "c_attn", "q_proj", "all-linear"),
        ),
    ],
)
def test_mistake_in_data_or_method_is_told_before_training(
    desk: Desk, *, name: str, rows: Rows, changes: Mapping[str, object], reason: Reason, told: tuple[str, ...]
) -> None:
    desk.write_rows(f"{name}.jsonl", rows)

    ended = desk.run(name, {"dataset.source": f"{name}.jsonl", **changes})

    require_told(desk, name, ended, reason=reason, told=told)
    require_nothing_half_done(desk, name)


@pytest.mark.parametrize(
    ("name", "reason", "told"),
    [
        (
            "no-tokenizer",
            Reason.TOKENIZER_NOT_FOUND,
            ("no-tokenizer-model has no tokenizer", "spec.tokenizer.source", "tokenizer.json"),
        ),
        (
            "pickle-only",
            Reason.UNSAFE_CONTENT,
            ("pickle-only-model", "pytorch_model.bin", "runs code", "safetensors"),
        ),
    ],
)
def test_model_that_cannot_be_used_is_told_before_training(
    desk: Desk, *, name: str, reason: Reason, told: tuple[str, ...]
) -> None:
    model = desk.folder / f"{name}-model"
    shutil.copytree(desk.folder / "model", model)
    if name == "pickle-only":
        (model / "model.safetensors").rename(model / "pytorch_model.bin")
    else:
        for path in model.glob("*token*"):
            path.unlink()

    ended = desk.run(name, {"model.source": model.name})

    require_told(desk, name, ended, reason=reason, told=told)
    require_nothing_half_done(desk, name)


def test_checksum_that_differs_is_told_with_both_and_leaves_nothing(desk: Desk) -> None:
    wrong = f"sha256:{'0' * 64}"

    ended = desk.run("checksum", {"dataset.checksum": wrong})

    found = f"has sha256:{hash_file(desk.folder / 'rows.jsonl')}"
    require_told(desk, "checksum", ended, reason=Reason.CHECKSUM_MISMATCH, told=(wrong, "rows.jsonl", found))
    require_nothing_half_done(desk, "checksum")


def test_reason_is_told_also_where_the_object_is_printed(desk: Desk) -> None:
    ended = desk.run("printed", {"method.targetModules": "c_attn"}, options=("-o", "yaml"))

    _, message = desk.failure("printed")
    assert ended.code == 1
    assert f"FineTuningJob printed: Failed (TargetModulesNotFound): {message}" in ended.errors
    assert ended.output.startswith("apiVersion: finetuning.dev/v1alpha1\nkind: FineTuningJob\n")

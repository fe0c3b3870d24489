"""A merged model: read by transformers alone it answers as base model and adapter do, and nothing else leaves."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from tests.support.models import tiny_gpt2, tiny_llama
from tests.support.training import JOB, Workshop, colour_rows, quiet_context, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning_api.reasons import Reason
from finetuning_api.runconfig import ArtifactResult, ExportConfig, ModelInput, Provenance
from finetuning_trainer.merge import EXPORT_NAME, TOLERANCE, merge
from finetuning_trainer.torchrun import run_training
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import UserError

PROVENANCE = Provenance(source="pypi://tiny==1.0", resolved_revision="1.0", digest="sha256:" + "1" * 64)
OTHER_TEXTS = ("Say red one two three\nit is", "what was merged must hold for texts that nobody looked at")


def export_config(workshop: Workshop, **fields: Any) -> ExportConfig:  # noqa: ANN401  (fields of ExportConfig)
    path = str(workshop.model)
    model = ModelInput(path=path, tokenizer_path=path, provenance=PROVENANCE, tokenizer_provenance=PROVENANCE)
    known = {
        "job": JOB,
        "model": model,
        "adapter_path": str(workshop.output),
        "adapter_digest": require_intact(workshop.output).digest,
        "output_path": str(workshop.folder / "exported" / "merged"),
    }
    return ExportConfig.model_validate(known | fields)


def trained(folder: Path, *, model: str = "llama", **method: object) -> Workshop:
    made = (tiny_gpt2 if model == "gpt2" else tiny_llama)(folder / "model")
    workshop = Workshop(folder, made, write_rows(folder / "data", colour_rows()))
    run_training(workshop.train_config(method=method), quiet_context())
    return workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return trained(tmp_path_factory.mktemp("trained"))


def largest_difference(workshop: Workshop, merged: Path) -> tuple[float, float]:
    """Return the largest difference of a logit to stock PEFT on the base model, and to the base model alone."""
    tokenizer = AutoTokenizer.from_pretrained(merged)
    base = AutoModelForCausalLM.from_pretrained(workshop.model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, str(workshop.output)).eval()
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    differences, effects = [], []
    with torch.inference_mode():
        for text in OTHER_TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            answer, expected = alone(ids).logits, tuned(ids).logits
            with tuned.disable_adapter():
                untuned = tuned(ids).logits
            differences.append(float((answer - expected).abs().max() / expected.abs().max()))
            effects.append(float((answer - untuned).abs().max() / expected.abs().max()))
    return max(differences), min(effects)


@pytest.mark.parametrize(
    ("model", "method"),
    [("llama", {}), ("llama", {"dora": True}), ("llama", {"rslora": True}), ("gpt2", {})],
    ids=["lora", "dora", "rslora", "conv1d"],
)
def test_a_merged_model_answers_as_base_and_adapter_in_stock_libraries(
    tmp_path: Path, model: str, method: dict[str, object]
) -> None:
    workshop = trained(tmp_path, model=model, **method)
    config = export_config(workshop)

    result = merge(config, quiet_context())

    merged = Path(config.output_path)
    difference, effect = largest_difference(workshop, merged)
    assert difference < TOLERANCE
    assert effect > 100 * TOLERANCE, "the adapter changes nothing, so nothing was compared"
    assert require_intact(merged).digest == result.digest
    assert not list(merged.glob("adapter_*"))


def test_its_provenance_names_what_it_is_the_sum_of(workshop: Workshop) -> None:
    config = export_config(workshop)
    merge(config, quiet_context())

    merged = Path(config.output_path)
    record = json.loads((merged / EXPORT_NAME).read_text())
    assert record["base"] == json.loads(PROVENANCE.to_json())
    assert record["adapterDigest"] == config.adapter_digest
    assert 0 <= record["largestDifference"] <= TOLERANCE * record["largestLogit"]
    card = (merged / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "PeftModel" not in card
    assert json.loads((merged / "provenance.json").read_text())["model"]["digest"] == PROVENANCE.digest


def test_a_merge_is_not_made_twice_but_again_for_another_adapter(workshop: Workshop, tmp_path: Path) -> None:
    config = export_config(workshop, output_path=str(tmp_path / "merged"))
    first = merge(config, quiet_context())
    written = (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns
    assert merge(config, quiet_context()) == first
    assert (tmp_path / "merged" / "model.safetensors").stat().st_mtime_ns == written

    other = trained(tmp_path / "other", rank=2)
    again = merge(export_config(other, output_path=str(tmp_path / "merged")), quiet_context())
    assert isinstance(again, ArtifactResult)
    assert again.digest != first.digest


def test_another_adapter_than_the_one_that_was_asked_for_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    config = export_config(workshop, adapter_digest=f"sha256:{'0' * 64}", output_path=str(tmp_path / "merged"))
    with pytest.raises(UserError) as refused:
        merge(config, quiet_context())
    assert refused.value.reason is Reason.ARTIFACT_CORRUPT
    assert not (tmp_path / "merged").exists()


def test_a_sum_that_was_rounded_to_16_bits_is_refused_and_leaves_nothing(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = BaseTuner.merge_and_unload

    def rounded(model: BaseTuner, **options: Any) -> torch.nn.Module:  # noqa: ANN401  (options of PEFT)
        return exact(model, **options).to(torch.bfloat16)

    monkeypatch.setattr(BaseTuner, "merge_and_unload", rounded)
    config = export_config(workshop, output_path=str(tmp_path / "merged"))
    with pytest.raises(UserError) as refused:
        merge(config, quiet_context())
    assert refused.value.reason is Reason.MERGE_INEXACT
    assert list(tmp_path.iterdir()) == []

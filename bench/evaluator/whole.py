"""Two whole evaluations, one after the other, of two adapters on the same base, reference and rows."""

import json
import time
from pathlib import Path

import torch
from bench.evaluator.material import NEW_TOKENS, Material
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import GenerationSpec
from finetuning_api.metrics import Metric
from finetuning_api.runconfig import CandidateInput, DatasetInput, EvaluateConfig, JobIdentity, ModelInput, Provenance
from finetuning_evaluator.evaluate import evaluate
from finetuning_workload.program import Context, StopFlag

METRICS = (Metric.PERPLEXITY, Metric.COLA, Metric.ROUGE_L)


def whole(home: Path) -> str:
    """Return what each of two evaluations took, in CPU seconds."""
    torch.set_num_threads(1)
    _write_other(home)
    for seed in (1, 2):
        _write_adapter(home, seed)
    material = Material.read(home / "material.json")
    with (home / "rows.jsonl").open("w") as file:
        for number, text in enumerate(material.prompts):
            file.write(json.dumps({"text": text, "answer": f"answer {number}"}) + "\n")
    seconds = [_evaluated(home, seed) for seed in (1, 2)]
    return f"{home.name}: first job {seconds[0]:.1f} CPU-s, second job on the same data {seconds[1]:.1f} CPU-s"


def _evaluated(home: Path, seed: int) -> float:
    base, reference = (_model(home / name) for name in ("model", "reference"))
    config = EvaluateConfig(
        job=JobIdentity(kind="EvaluationJob", name=f"bench-{seed}"),
        candidates=(
            CandidateInput(name="base", model=base),
            CandidateInput(name="tuned", model=base, adapter_path=str(home / f"adapter-{seed}")),
            CandidateInput(name="reference", model=reference),
        ),
        dataset=DatasetInput(
            path=str(home / "rows.jsonl"),
            rows=RowFormat(prompt="{text}\n", completion="{answer}", split=DatasetSplit(test=0.9)),
            provenance=Provenance(source="rows.jsonl", digest="sha256:rows"),
        ),
        metrics=METRICS,
        generation=GenerationSpec(max_new_tokens=NEW_TOKENS),
        bootstrap_samples=2000,
        output_path=str(home / f"report-{seed}"),
        cache_path=str(home / "scores"),
    )
    started = time.process_time()
    evaluate(config, Context(stop=StopFlag(), environment={"OMP_NUM_THREADS": "1"}))
    return time.process_time() - started


def _model(path: Path) -> ModelInput:
    provenance = Provenance(source=path.name, digest=f"sha256:{path.name}")
    return ModelInput(path=str(path), tokenizer_path=str(path), provenance=provenance, tokenizer_provenance=provenance)


def _write_other(home: Path) -> None:
    """Write a reference model: the same shape with other weights."""
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    torch.manual_seed(5)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights), alpha=0.02)
    model.save_pretrained(home / "reference")
    AutoTokenizer.from_pretrained(home / "model").save_pretrained(home / "reference")


def _write_adapter(home: Path, seed: int) -> None:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(home / "model")
    settings = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(home / f"adapter-{seed}"))

"""The model card: what the next person should know about the adapter."""

from finetuning_api.finetuningjob import MethodType
from finetuning_trainer.provenance import TrainingProvenance

CARD_NAME = "README.md"


def model_card(record: TrainingProvenance, *, merged: bool = False) -> str:
    """Return the card in Markdown with the metadata block that model hubs read."""
    whole = merged or record.method.type is MethodType.FULL
    kind, library = ("model", "transformers") if whole else ("adapter", "peft")
    facts = "\n".join(f"| {name} | {value} |" for name, value in _facts(record))
    return f"""---
library_name: {library}
tags: [{record.method.type.value}, finetuning-operator]
---

# {record.job.name}

A fine-tuned {kind}, made by finetuning-operator. `provenance.json` holds every digest, version and setting.

| | |
|---|---|
{facts}

{_usage(whole=whole)}
"""


def _facts(record: TrainingProvenance) -> list[tuple[str, str]]:
    counts, method = record.counts, record.method
    adaptation = "all weights" if method.type is MethodType.FULL else f"rank {method.rank}, alpha {method.alpha:g}"
    variants = "".join(f", {name}" for name, used in (("DoRA", method.dora), ("rsLoRA", method.rslora)) if used)
    return [
        ("Base model", f"`{record.model.source}`, revision {record.model.resolved_revision or 'unknown'}"),
        ("Data", f"`{record.dataset.source}`: {counts.train_rows} rows trained on, {counts.test_rows} held out"),
        ("Method", f"{method.type.value}, {adaptation}{variants}, targets {method.target_modules}"),
        *_course(record),
        ("Seed", str(record.seed)),
    ]


def _course(record: TrainingProvenance) -> list[tuple[str, str]]:
    """Return how it was trained: of a script, what it was told and what it left, which is all that is known."""
    training = record.training
    if record.script is not None:
        return [
            ("Script", f"`{record.plan['command']}` of `{record.script.source}`, told method and training"),
            ("Optimisation", f"{record.steps} steps" if record.steps else "not told"),
            ("Training loss", _loss(record.loss)),
            ("Held-out loss", _loss(record.evaluation_loss)),
        ]
    return [
        ("Optimisation", f"{record.steps} steps of {training.batch_size} rows, {record.tokens} tokens"),
        ("Learning rate", f"{training.learning_rate:g}, {training.schedule.value}"),
        ("Precision", f"{record.plan['dtype']} on {record.plan['device']}"),
        ("Training loss of the last epoch", _loss(record.loss)),
        (f"Held-out loss ({record.evaluation_rows} rows)", _loss(record.evaluation_loss)),
    ]


def _loss(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f} nats per supervised token"


def _usage(*, whole: bool) -> str:
    if whole:
        return "Load it with `transformers.AutoModelForCausalLM.from_pretrained(FOLDER)`."
    return "Load it with `peft.PeftModel.from_pretrained(base_model, FOLDER)` on the base model named above."

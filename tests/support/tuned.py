"""A state folder with a tuned job in it, made without a training: a real base model, and a real adapter of it."""

from pathlib import Path

from tests.support.engines import complete_folder, save_lively, write_lora
from tests.support.models import tiny_llama
from tests.support.objects import COUNTS, World, job
from transformers import AutoConfig

from finetuning_api.reasons import Reason
from finetuning_api.relocation import Relocation
from finetuning_api.runconfig import LastWords, TrainResult
from finetuning_cli.local.layout import Layout
from finetuning_cli.local.store import Store
from finetuning_operator.reconcile.plan import Settings, StepPhase, StepState
from finetuning_workload.models import load_tokenizer

NAME = "triage"
BASE = "acme/tiny"
"""Served name of the base model: the job's source is hf://acme/tiny."""


def tuned_state(state: Path, *, trained: bool = True) -> Path:
    """Write a state folder that holds the job; one that is not trained yet has its adapter beside it, incomplete."""
    layout = Layout.at(state)
    world = World(settings=Settings(volumes_root=str(layout.volumes), local=True))
    key = world.add(job(NAME, evaluation={"enabled": False}))
    world.settle()
    world.finish_relocations()
    base = _base_model(world, layout)
    world.finish(key, "preflight")
    adapter = layout.volumes / f"{NAME}-adapter" / "adapter"
    write_lora(base, adapter, complete=False)
    if trained:
        digest = complete_folder(adapter)
        result = TrainResult(digest=digest, size_bytes=50, steps=5, loss=1.0, dataset=COUNTS)
        words = LastWords(reason=Reason.SUCCEEDED, result=result)
        world.finish(key, "train", StepState(StepPhase.SUCCEEDED, last_words=words))
    store = Store(layout)
    for resource in world.objects.values():
        store.save(resource)
    return state


def finish_training(state: Path) -> None:
    """Complete the adapter of a job that is not trained yet, as the trainer does."""
    complete_folder(Layout.at(state).volumes / f"{NAME}-adapter" / "adapter")


def _base_model(world: World, layout: Layout) -> Path:
    found = [each for each in world.objects.values() if isinstance(each, Relocation)]
    (model,) = [each for each in found if each.spec.source.startswith("hf://")]
    assert model.status.artifact is not None
    folder = layout.claim(model.status.artifact.claim)
    small = tiny_llama(layout.root / "small")
    # Choices that are clear in any number format, and in any company.
    return save_lively(AutoConfig.from_pretrained(small), load_tokenizer(small), folder)

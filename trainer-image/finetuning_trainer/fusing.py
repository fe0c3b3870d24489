"""Which parts of a model are computed fused: measured on its own loss and gradients before the first step."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch

from finetuning_trainer.adapters import Trainee
from finetuning_trainer.batching import Build
from finetuning_trainer.fused_lora import fused_lora
from finetuning_trainer.fused_norm import fused_norms
from finetuning_trainer.guard import training_memory_errors
from finetuning_trainer.loss import Forward
from finetuning_trainer.probe import NOISE_FACTOR, TOLERANCE, probe_samples
from finetuning_trainer.strategy import SingleProcess
from finetuning_workload.models import UNSUPPORTED, refusal

_UPDATE_SPREAD = 0.01
"""B of LoRA begins as zero, and then A has no gradient that could be compared: while probing it has small values."""


@dataclass(frozen=True, slots=True)
class Fused:
    """What is computed fused. ``lora`` and ``norms`` count layers; ``why`` tells of what is not and of the reason."""

    loss: bool = False
    lora: int = 0
    norms: int = 0
    why: str = ""


@contextmanager
def fused_parts(trainee: Trainee, fused: Fused) -> Iterator[None]:
    """Compute these parts of the model fused, as long as the context lasts."""
    with fused_lora(trainee.wrapped, active=fused.lora > 0), fused_norms(trainee.wrapped, active=fused.norms > 0):
        yield


def choose_fused(trainee: Trainee, forward: Forward, strategy: SingleProcess, *, build: Build) -> Fused:
    """Compare every fused part with the plain model; leave the model, its weights and chance as they were.

    ``forward`` and ``build`` are how the model is run, without anything fused. A part that gives another loss or other
    gradients is not used.
    """
    candidates = _candidates(trainee, forward)
    if not candidates:
        return Fused(why="nothing in this model and method can be")
    probe = _Probe(trainee, forward, strategy, build)
    chosen, refused = Fused(), []
    with probe.ready():
        reference, tolerance = probe.reference()
        for part, wanted in candidates.items():
            difference = probe.difference(wanted, reference, tolerance=tolerance)
            if difference:
                refused.append(f"{part}: {difference}")
            else:
                chosen = replace(chosen, **{part: getattr(wanted, part)})
    return replace(chosen, why="; ".join(refused) or "loss and gradients agree with the plain model's")


def _candidates(trainee: Trainee, forward: Forward) -> dict[str, Fused]:
    """Return what can be fused by its kind, each part alone, by the name of its field."""
    found: dict[str, Fused] = {}
    if forward.split_head and _is_plain(forward):
        found["loss"] = Fused(loss=True)
    with fused_lora(trainee.wrapped) as layers, fused_norms(trainee.wrapped) as norms:
        if layers:
            found["lora"] = Fused(lora=layers)
        if norms:
            found["norms"] = Fused(norms=norms)
    return found


def _is_plain(forward: Forward) -> bool:
    """Tell whether the output layer is a frozen matrix and nothing else."""
    head = forward.model.get_output_embeddings()
    return type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad


@dataclass(frozen=True, slots=True)
class _Probe:
    trainee: Trainee
    forward: Forward
    strategy: SingleProcess
    build: Build

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Give every trained weight a small seeded change and switch dropout off, as long as the context lasts."""
        model, weights = self.trainee.wrapped, self.trainee.trainable().values()
        training, before = model.training, [weight.detach().clone() for weight in weights]
        generator = torch.Generator().manual_seed(0)
        with ExitStack() as undo:
            undo.callback(self._restore, before, training=training)
            undo.enter_context(self.strategy.prepared(self.trainee))
            model.eval()
            with torch.no_grad():
                for weight in weights:
                    weight.add_(torch.randn(weight.shape, generator=generator).to(weight.device) * _UPDATE_SPREAD)
            yield

    def _restore(self, before: list[torch.Tensor], *, training: bool) -> None:
        self.trainee.wrapped.train(training)
        with torch.no_grad():
            for weight, value in zip(self.trainee.trainable().values(), before, strict=True):
                weight.copy_(value)
                weight.grad = None

    def reference(self) -> tuple["_Measured", float]:
        """Return loss and gradients of the plain model, and how far right ones may be from them."""
        together = self._measure(Fused(), [list(range(len(probe_samples(self.forward.model))))])
        if self.strategy.dtype is torch.float32:
            return together, TOLERANCE
        alone = self._measure(Fused(), [[row] for row in range(len(probe_samples(self.forward.model)))])
        return together, max(TOLERANCE, NOISE_FACTOR * alone.deviation(together))

    def difference(self, fused: Fused, reference: "_Measured", *, tolerance: float) -> str:
        """Return in words how a fused part differs; nothing where it agrees."""
        try:
            measured = self._measure(fused, [list(range(len(probe_samples(self.forward.model))))])
        except UNSUPPORTED as error:
            return refusal(error)
        share = measured.deviation(reference)
        return "" if share <= tolerance else f"its loss or gradients differ by {share:.2g} of their size"

    def _measure(self, fused: Fused, parts: list[list[int]]) -> "_Measured":
        """Return the loss and the gradients, summed over the parts."""
        samples, total = probe_samples(self.forward.model), 0.0
        forward = replace(self.forward, fused_loss=fused.loss)
        weights = list(self.trainee.trainable().values())
        for weight in weights:
            weight.grad = None
        with fused_parts(self.trainee, fused):
            for rows in parts:
                batch = self.build(samples, rows).to(self.strategy.loading_device)
                with training_memory_errors(f"a forward and backward pass over {batch.tokens} tokens"):
                    with self.strategy.computing():
                        summed = forward.summed_nll(batch)
                    summed.backward()
                total += float(summed.detach())
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        return _Measured(total, torch.cat([gradient.flatten() for gradient in gradients]))


@dataclass(frozen=True, slots=True)
class _Measured:
    loss: float
    gradients: torch.Tensor
    """All of them, [trained weights]."""

    def deviation(self, right: "_Measured") -> float:
        """Return the greater difference of loss and gradients (root mean square), as a share of their size."""
        size = torch.linalg.vector_norm(right.gradients).clamp_min(1e-12)
        of_gradients = float(torch.linalg.vector_norm(self.gradients - right.gradients) / size)
        return max(of_gradients, abs(self.loss - right.loss) / max(abs(right.loss), 1e-12))

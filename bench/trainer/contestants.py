"""One contestant in a process of its own: ``python -m bench.trainer.contestants CONTESTANT FOLDER ...``.

Writes a record: CPU seconds and tokens of the steps after the first, peak memory, losses.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from bench.trainer.flops import gemm_rate, training_flops
from bench.trainer.material import BATCH_SIZE, MAX_LENGTH, METHOD, RATE, SEED, Course, Data
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Trainer, TrainingArguments

from finetuning_api.finetuningjob import Precision
from finetuning_trainer import loop
from finetuning_trainer import train as training
from finetuning_trainer.adapters import attach
from finetuning_trainer.checkpoint import Position
from finetuning_workload.data import TokenizedSample
from finetuning_workload.models import load_base_model, load_tokenizer, quiet_libraries
from finetuning_workload.program import Context, StopFlag

_IGNORED = -100


class Contestant(StrEnum):
    """Who trains."""

    OURS = "ours"
    OURS_FP32 = "ours-fp32"
    HF_FP32 = "hf-fp32"
    HF_BF16 = "hf-bf16"
    HF_GROUPED = "hf-bf16-grouped"
    TRL = "trl"
    TRL_TUNED = "trl-tuned"


@dataclass(slots=True)
class Marks:
    """What is noted while a contestant trains."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def begin(self) -> None:
        """Note the beginning of a step, or the end of the last one."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())


@dataclass(frozen=True, slots=True)
class Record:
    """What one run of one contestant took, without its first step."""

    contestant: str
    cpu_seconds: float
    wall_seconds: float
    tokens: int
    supervised: int
    peak_bytes: int
    losses: list[float]
    """Of each step, the first included."""
    final_loss: float
    """Of the first rows, after all steps, in fp32 and by transformers' own forward pass."""
    flops_per_second: float | None = None
    """Of the model's own sums, by CPU second; known of ours."""
    gemm_per_second: float | None = None
    """Of large matrix products in the same format, in the same process."""


def run_ours(course: Course, precision: Precision) -> Record:
    """Train with our trainer, from the RunConfig to the artifact, on this process's threads."""
    marks, compute, train = Marks(), loop.compute_step, loop.train
    found: list[Record] = []

    def marked(session: loop.Session, step: int, *, saved_step: int | None) -> loop.StepOutcome:
        marks.begin()
        outcome = compute(session, step, saved_step=saved_step)
        marks.tokens.append(outcome.tokens)
        marks.supervised.append(outcome.supervised)
        marks.losses.append(outcome.loss)
        if step == course.steps - 1:
            marks.begin()
        return outcome

    def trained(session: loop.Session, position: Position, *, saved_step: int | None) -> Position:
        last = train(session, position, saved_step=saved_step)
        found.append(_ours(course, marks, session))
        return last

    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (
        tempfile.TemporaryDirectory() as output,
        patch.object(loop, "compute_step", marked),
        patch.object(training, "train", trained),
    ):
        config = course.config(precision=precision, output=Path(output))
        training.train_model(config, Context(stop=StopFlag(), environment=environment))
    return found[0]


def _ours(course: Course, marks: Marks, session: loop.Session) -> Record:
    model, dtype = session.forward.model, session.strategy.dtype
    samples = list(course.samples())[BATCH_SIZE:]
    flops = training_flops(model, samples)
    seconds = marks.cpu[-1] - marks.cpu[1]
    return _record(course, marks, model, flops_per_second=flops / seconds, gemm_per_second=gemm_rate(dtype))


def run_transformers(course: Course, contestant: Contestant) -> Record:
    """Train with Hugging Face's Trainer: the same rows, order and adapter, padded to the longest of a batch."""
    model = _base_model(course, torch.float32)
    trainee = attach(model, METHOD, seed=SEED)
    marks = Marks()
    grouped = contestant is Contestant.HF_GROUPED
    arguments = TrainingArguments(
        **_shared_arguments(course),
        bf16=contestant is not Contestant.HF_FP32,
        train_sampling_strategy="group_by_length" if grouped else "sequential",
    )
    tokenizer = load_tokenizer(course.model)
    trainer = _marked(Trainer, marks)(
        model=trainee.wrapped,
        args=arguments,
        train_dataset=Dataset.from_list([_labelled(sample) for sample in course.samples()]),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=_IGNORED),
    )
    with _scratch(arguments):
        trainer.train()
    marks.begin()
    return _record(course, marks, model)


def run_trl(course: Course, contestant: Contestant) -> Record:
    """Train with TRL's SFTTrainer: as it comes, or with packing, bf16 weights and without checkpointing."""
    import trl  # It takes seconds, which are not the others'.

    tuned = contestant is Contestant.TRL_TUNED
    model = _base_model(course, torch.bfloat16 if tuned else torch.float32)
    marks = Marks()
    extra: dict[str, Any] = {"packing": True, "gradient_checkpointing": False} if tuned else {}
    shared = _shared_arguments(course)
    if tuned:
        # One packed row has about the tokens of a batch, so steps and tokens a step are as the others'.
        shared["per_device_train_batch_size"] = max(1, _tokens_a_step(course) // MAX_LENGTH)
    arguments = trl.SFTConfig(
        **shared, max_length=MAX_LENGTH, train_sampling_strategy="sequential", completion_only_loss=True, **extra
    )
    trainer = _marked(trl.SFTTrainer, marks)(
        model=attach(model, METHOD, seed=SEED).wrapped,
        args=arguments,
        train_dataset=Dataset.from_list([_masked(sample) for sample in course.samples()]),
        processing_class=load_tokenizer(course.model),
    )
    with _scratch(arguments):
        trainer.train()
    marks.begin()
    return _record(course, marks, model)


def _shared_arguments(course: Course) -> dict[str, Any]:
    return {
        "output_dir": str(course.folder / "trainer"),
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": SEED,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 10,
        "disable_tqdm": True,
    }


@contextmanager
def _scratch(arguments: TrainingArguments) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        arguments.output_dir = folder
        yield


def _marked(trainer: type[Any], marks: Marks) -> type[Any]:
    """Return a trainer class that notes when each step begins and what it is about."""

    class Marked(trainer):  # type: ignore[misc]  # a class that is given
        def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *rest: Any) -> torch.Tensor:  # noqa: ANN401
            marks.begin()
            marks.tokens.append(_real_tokens(inputs))
            marks.supervised.append(int((inputs["labels"] != _IGNORED).sum()))
            loss = super().training_step(model, inputs, *rest)
            marks.losses.append(float(loss))
            return torch.as_tensor(loss)

    return Marked


def _real_tokens(inputs: dict[str, Any]) -> int:
    mask = inputs.get("attention_mask")
    return int(inputs["input_ids"].numel() if mask is None else mask.sum())


def _labelled(sample: TokenizedSample) -> dict[str, list[int]]:
    """Return a row with labels; the first token of a row is never predicted, and counts nowhere."""
    mask = _mask(sample)
    labels = [token if counts else _IGNORED for token, counts in zip(sample.ids, mask, strict=True)]
    return {"input_ids": sample.ids, "attention_mask": [1] * len(sample.ids), "labels": labels}


def _masked(sample: TokenizedSample) -> dict[str, list[int]]:
    return {"input_ids": sample.ids, "completion_mask": [int(counts) for counts in _mask(sample)]}


def _mask(sample: TokenizedSample) -> list[bool]:
    return [False, *sample.supervised[1:]]


def _tokens_a_step(course: Course) -> int:
    return sum(len(sample.ids) for sample in course.samples()) // course.steps


def _base_model(course: Course, dtype: torch.dtype) -> PreTrainedModel:
    return load_base_model(course.model, dtype=dtype, device=torch.device("cpu"))


def _record(course: Course, marks: Marks, model: PreTrainedModel, **rates: float) -> Record:
    return Record(
        contestant="",
        cpu_seconds=marks.cpu[-1] - marks.cpu[1],
        wall_seconds=marks.wall[-1] - marks.wall[1],
        tokens=sum(marks.tokens[1:]),
        supervised=sum(marks.supervised[1:]),
        peak_bytes=_peak_bytes(),
        losses=marks.losses,
        final_loss=_final_loss(course, model),
        **rates,
    )


def _peak_bytes() -> int:
    """Return the greatest resident memory of this process; getrusage would tell its parent's where that is greater."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


@torch.no_grad()
def _final_loss(course: Course, model: PreTrainedModel) -> float:
    """Return the mean loss of the first rows, each computed alone in fp32."""
    model.float().eval()
    model.set_attn_implementation("sdpa")
    total, count = 0.0, 0
    for _, sample in zip(range(BATCH_SIZE), course.samples(), strict=False):
        row = _labelled(sample)
        labels = torch.tensor([row["labels"]])
        supervised = int((labels != _IGNORED).sum())
        total += float(model(input_ids=torch.tensor([sample.ids]), labels=labels).loss) * supervised
        count += supervised
    return total / count


_RUNS: dict[Contestant, Callable[[Course], Record]] = {
    Contestant.OURS: lambda course: run_ours(course, Precision.AUTO),
    Contestant.OURS_FP32: lambda course: run_ours(course, Precision.FP32),
    Contestant.HF_FP32: lambda course: run_transformers(course, Contestant.HF_FP32),
    Contestant.HF_BF16: lambda course: run_transformers(course, Contestant.HF_BF16),
    Contestant.HF_GROUPED: lambda course: run_transformers(course, Contestant.HF_GROUPED),
    Contestant.TRL: lambda course: run_trl(course, Contestant.TRL),
    Contestant.TRL_TUNED: lambda course: run_trl(course, Contestant.TRL_TUNED),
}


def main() -> None:
    """Run one contestant and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", type=Contestant, choices=list(Contestant))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Data, choices=list(Data), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    course = Course(options.folder, options.data, options.steps)
    record = asdict(_RUNS[options.contestant](course)) | {"contestant": options.contestant}
    options.record.write_text(json.dumps(record))


if __name__ == "__main__":
    main()

"""How quick the trainer is beside Hugging Face's and TRL's: ``python -m bench.trainer.bench_trainer``.

| Contestant | What trains |
|---|---|
| ours | this project's trainer as it decides by itself, from the RunConfig to the artifact |
| ours-fp32 | the same, told to compute in fp32 |
| hf-fp32, hf-bf16 | Hugging Face's Trainer, batches padded to their longest row; bf16 is autocast |
| hf-bf16-grouped | the same with ``group_by_length`` |
| trl | TRL's SFTTrainer as it comes: bf16 autocast, gradient checkpointing |
| trl-tuned | the same with packing, bf16 weights and without gradient checkpointing |

Model, rows, their order, adapter (LoRA of rank 8 on every linear layer) and samples a step (8) are the same for all.
Each run has a process of its own; contestants take turns, so that what disturbs one disturbs all. Told are medians.
The unit is the CPU second: what else runs on the machine changes it little. The first step is not counted, which warms
up every contestant.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.trainer.contestants import Contestant, Record
from bench.trainer.material import BATCH_SIZE, MODELS, Data, write_model, write_rows
from transformers import AutoConfig

_STEPS, _QUICK_STEPS = 6, 2
_REPEATS, _QUICK_REPEATS = 5, 1
_DEFAULT_MODELS = ("llama-15m", "gpt2-124m", "smollm2-135m")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    models: Sequence[str]
    data: Sequence[Data]
    contestants: Sequence[Contestant]
    steps: int
    repeats: int
    threads: int


def measured(wanted: Wanted, folder: Path) -> Iterator[tuple[str, Data, list[Record]]]:
    """Yield the records of each model and data, all contestants interleaved."""
    for model in wanted.models:
        home = folder / model
        write_model(model, home / "model")
        words = AutoConfig.from_pretrained(home / "model").vocab_size
        for data in wanted.data:
            write_rows(data, home / data, samples=wanted.steps * BATCH_SIZE, words=words)
            turns = [contestant for _ in range(wanted.repeats) for contestant in wanted.contestants]
            yield model, data, [_run(contestant, home, data, wanted) for contestant in turns]


def _run(contestant: Contestant, home: Path, data: Data, wanted: Wanted) -> Record:
    record = home / "record.json"
    command = [sys.executable, "-m", "bench.trainer.contestants", contestant, str(home), "--record", str(record)]
    command += ["--data", data, "--steps", str(wanted.steps), "--threads", str(wanted.threads)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | quiet | {"OMP_NUM_THREADS": str(wanted.threads)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contestant} failed on {home.name}, {data}:\n{done.stderr[-4000:]}")
    fields: dict[str, Any] = json.loads(record.read_text())
    found = Record(**fields)
    _tell(f"{home.name} {data} {contestant}: {found.supervised / found.cpu_seconds:.0f} supervised tokens/CPU-s")
    return found


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def table(model: str, data: Data, records: Sequence[Record]) -> str:
    """Return the Markdown table of one model and data; the factor is ours by theirs, in supervised tokens."""
    names = list(dict.fromkeys(record.contestant for record in records))
    ours = _median(records, Contestant.OURS, "supervised") if Contestant.OURS in names else None
    lines = [
        f"**{model}, {data}**",
        "",
        "| | supervised tokens/CPU-s | all tokens/CPU-s | ours is | peak memory | loss after | share of GEMM rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        speed = _median(records, name, "supervised")
        factor = f"{ours / speed:.2f}x" if ours else ""
        lines.append(
            f"| {name} | {speed:.0f} | {_median(records, name, 'tokens'):.0f} | {factor}"
            f" | {_of(records, name, 'peak_bytes') / 1e9:.2f} GB | {_of(records, name, 'final_loss'):.4f}"
            f" | {_share(records, name)} |"
        )
    return "\n".join([*lines, "", *_parity(records)])


def _of(records: Sequence[Record], name: str, field: str) -> float:
    return median(float(getattr(record, field)) for record in records if record.contestant == name)


def _median(records: Sequence[Record], name: str, what: str) -> float:
    return median(float(getattr(record, what)) / record.cpu_seconds for record in records if record.contestant == name)


def _share(records: Sequence[Record], name: str) -> str:
    shares = [
        record.flops_per_second / record.gemm_per_second
        for record in records
        if record.contestant == name and record.flops_per_second and record.gemm_per_second
    ]
    return f"{median(shares):.0%}" if shares else ""


def _parity(records: Sequence[Record]) -> list[str]:
    """Tell how far our losses in fp32 are from the padded loop's, which sees the same rows in the same order."""
    by_name = {record.contestant: record.losses for record in records}
    ours, theirs = by_name.get(Contestant.OURS_FP32), by_name.get(Contestant.HF_FP32)
    if ours is None or theirs is None:
        return []
    furthest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
    return [f"Losses of the steps in fp32: ours and hf-fp32 differ by {furthest:.1e} at most.", ""]


def main() -> None:
    """Measure, and print a table for each model and data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(_DEFAULT_MODELS))
    parser.add_argument("--data", nargs="+", type=Data, choices=list(Data), default=list(Data))
    parser.add_argument("--contestants", nargs="+", type=Contestant, choices=list(Contestant), default=list(Contestant))
    parser.add_argument("--steps", type=int, default=_STEPS, help="optimizer steps of a run, at least 2")
    parser.add_argument("--repeats", type=int, default=_REPEATS)
    parser.add_argument("--threads", type=int, default=1, help="threads that wait for each other use CPU seconds too")
    parser.add_argument("--quick", action="store_true", help="two steps, once: whether it runs")
    options = parser.parse_args()
    wanted = Wanted(
        models=options.models,
        data=options.data,
        contestants=options.contestants,
        steps=_QUICK_STEPS if options.quick else options.steps,
        repeats=_QUICK_REPEATS if options.quick else options.repeats,
        threads=options.threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        for model, data, records in measured(wanted, Path(folder)):
            sys.stdout.write(table(model, data, records) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

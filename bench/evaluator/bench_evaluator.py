"""How quick the evaluator is beside a plain loop and lm-eval: ``python -m bench.evaluator.bench_evaluator``.

| Contestant | What scores and generates |
|---|---|
| ours | this project's evaluator as it decides by itself |
| ours-fp32 | the same in fp32: its scores are compared with those of the plain loop |
| naive | in fp32 one row at a time: logits of all positions, a pass for every answer, one generate per prompt |
| lm-eval | EleutherAI's harness, batches of 16 in fp32 |

| Family | What is done |
|---|---|
| perplexity | likelihood of 20,000 tokens of text of many lengths |
| acceptability | 1,000 sentences, two answers of one token each |
| choices | 200 questions, four answers of one to four words each |
| generation | 100 prompts, 32 tokens each |

Each run has a process of its own and loads the model; contestants take turns. Told are medians. The unit is the CPU
second: what else runs on the machine changes it little. Imports are not counted.

With ``--whole`` the whole evaluation of two jobs one after the other is measured instead, base, adapter and reference,
from the RunConfig to the report: the second finds the scores of base and reference.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from bench.evaluator.contestants import Contestant, Record
from bench.evaluator.material import Family, make_material, write_model
from bench.evaluator.whole import whole
from bench.trainer.material import MODELS

_REPEATS = 3


def measured(
    home: Path, families: Sequence[Family], *, contestants: Sequence[Contestant], repeats: int
) -> Iterator[Record]:
    """Yield a record of each run, contestants in turn."""
    for family in families:
        for contestant in [each for _ in range(repeats) for each in contestants]:
            yield _run(contestant, family, home)


def _run(contestant: Contestant, family: Family, home: Path) -> Record:
    record = home / "record.json"
    command = [sys.executable, "-m", "bench.evaluator.contestants", contestant, family, str(home)]
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "--record", str(record)], env=os.environ | quiet, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{contestant} failed on {family}:\n{done.stderr[-4000:]}")
    found = Record(**json.loads(record.read_text()))
    sys.stderr.write(f"{home.name} {family} {contestant}: {found.cpu_seconds:.1f} CPU-s\n")
    return found


def table(model: str, records: Sequence[Record]) -> str:
    """Return the Markdown table of one model; the factor is theirs by ours, in CPU seconds."""
    lines = [f"**{model}**", "", "| | CPU seconds | times ours | from naive |", "|---|---|---|---|"]
    for family in dict.fromkeys(record.family for record in records):
        of_family = [record for record in records if record.family == family]
        by_name = {record.contestant: record for record in of_family}
        ours = _seconds(of_family, Contestant.OURS)
        for name, record in by_name.items():
            seconds = _seconds(of_family, name)
            apart = _apart(record, by_name.get(Contestant.NAIVE))
            lines.append(f"| {family}, {name} | {seconds:.1f} | {seconds / ours:.1f} | {apart} |")
    return "\n".join([*lines, ""])


def _seconds(records: Sequence[Record], name: str) -> float:
    return median(record.cpu_seconds for record in records if record.contestant == name)


def _apart(record: Record, naive: Record | None) -> str:
    """Return the greatest relative difference of a score from the naive loop's, or how many texts are the same."""
    if naive is None or record is naive:
        return ""
    if record.texts:
        same = sum(one == other for one, other in zip(record.texts, naive.texts, strict=True))
        return f"{same} of {len(record.texts)} texts equal"
    ours, theirs = np.array(record.scores), np.array(naive.scores)
    return f"{np.max(np.abs(ours - theirs) / np.abs(theirs)):.1e}"


def main() -> None:
    """Measure, and print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["llama-15m"])
    parser.add_argument("--families", nargs="+", type=Family, choices=list(Family), default=list(Family))
    parser.add_argument("--contestants", nargs="+", type=Contestant, choices=list(Contestant), default=list(Contestant))
    parser.add_argument("--repeats", type=int, default=_REPEATS)
    parser.add_argument("--share", type=float, default=1.0, help="share of texts, sentences, questions and prompts")
    parser.add_argument("--whole", action="store_true", help="two whole evaluations instead, cold and warm")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            home = Path(folder) / model
            tokenizer = write_model(model, home / "model")
            make_material(tokenizer, share=options.share).write(home / "material.json")
            if options.whole:
                sys.stdout.write(whole(home) + "\n")
                continue
            runs = measured(home, options.families, contestants=options.contestants, repeats=options.repeats)
            sys.stdout.write(table(model, list(runs)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

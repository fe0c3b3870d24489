"""Predictions by the real program: what generation writes, every row once, whatever ends the program meanwhile."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.engines import save_lively, write_lora
from tests.support.evaluation import candidate, program_environment, run_program
from tests.support.greedy import greedy
from tests.support.models import tiny_llama
from tests.support.processes import wait_until
from transformers import AutoConfig

from finetuning_api.dataset import RowFormat
from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import ExitCode, Reason
from finetuning_api.runconfig import DatasetInput, JobIdentity, LastWords, PredictConfig, PredictResult, Provenance
from finetuning_server.predictions import config_digest
from finetuning_workload.artifact import require_intact
from finetuning_workload.data import encode_prompt, iterate_prompts, load_table
from finetuning_workload.files import write_atomically
from finetuning_workload.models import load_tokenizer

ROWS = 40
FORMAT = RowFormat(prompt="Triage this message:\n{message}\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    tiny_llama(folder / "small")
    # Choices that are clear in any number format, and in any company.
    save_lively(AutoConfig.from_pretrained(folder / "small"), load_tokenizer(folder / "small"), folder / "base")
    write_lora(folder / "base", folder / "adapter")
    rows = ({"message": f"case {number}" + " of many" * (number % 9)} for number in range(ROWS))
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def config(world: Path, output: Path, **fields: object) -> PredictConfig:
    known: dict[str, object] = {
        "job": JobIdentity(kind="EvaluationJob", name="all"),
        "candidates": (candidate("base", world / "base"), candidate("tuned", world / "base", world / "adapter")),
        "dataset": DatasetInput(
            path=str(world / "rows.jsonl"),
            rows=FORMAT,
            provenance=Provenance(source="file://rows.jsonl", digest="sha256:rows"),
        ),
        "max_new_tokens": 24,
        "max_running": 4,
        "output_path": str(output),
    }
    return in_single_precision(PredictConfig.model_validate(known | fields))


def in_single_precision(told: PredictConfig) -> PredictConfig:
    """Let a run think that it goes on with one that computed in fp32, where company changes no choice."""
    key = config_digest(told).removeprefix("sha256:")[:16]
    write_atomically(Path(told.output_path) / ".partial" / f"predict-{key}" / "precision", Precision.FP32)
    return told


def start(told: PredictConfig, folder: Path) -> "subprocess.Popen[bytes]":
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(told.to_json())
    environment = program_environment(folder / "config.json", folder / "last-words.json")
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "finetuning_server"], env=environment, stderr=log)


def kept(output: Path) -> list[bytes]:
    """Return the whole lines that are kept so far."""
    lines = [part.read_bytes().splitlines(keepends=True) for part in output.glob(".partial/predict-*/journal.jsonl")]
    return [line for part in lines for line in part if line.endswith(b"\n")]


def lines(output: Path) -> list[dict[str, object]]:
    read: list[dict[str, object]] = [
        json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()
    ]
    return read


def expected(told: PredictConfig, world: Path) -> dict[tuple[int, str], tuple[str, int, str]]:
    """Return text, tokens and ending of every completion by row and candidate, generated the plain way."""
    tokenizer = load_tokenizer(world / "base")
    table = load_table(world / "rows.jsonl", FORMAT)
    prompts = [encode_prompt(tokenizer, row) for _, row in iterate_prompts(table, FORMAT, tokenizer, limit=told.limit)]
    written = greedy(told.candidates, prompts, max_new_tokens=told.max_new_tokens)
    return {
        (row, name): (found.text, found.tokens, "stop" if found.stopped else "length")
        for name, completions in written.items()
        for row, found in enumerate(completions, start=1)
    }


def test_every_candidate_completes_every_row_as_generation_does(world: Path, tmp_path: Path) -> None:
    told = config(world, tmp_path / "out")

    finished = run_program("finetuning_server", told.to_json(), tmp_path / "run")

    assert finished.exit_code == ExitCode.DONE, finished.log
    found = lines(tmp_path / "out")
    wanted = expected(told, world)
    assert {
        (line["row"], line["candidate"]): (line["completion"], line["completionTokens"], line["finishReason"])
        for line in found
    } == wanted
    assert [line["row"] for line in found] == [row for row in range(1, ROWS + 1) for _ in range(2)]
    manifest = require_intact(tmp_path / "out")
    assert finished.last_words == LastWords(
        reason=Reason.SUCCEEDED,
        result=PredictResult(
            rows=ROWS,
            tokens=sum(tokens for _, tokens, _ in wanted.values()),
            digest=manifest.digest,
            size_bytes=manifest.total_bytes,
        ),
    )


def test_killed_and_stopped_predictions_go_on_and_every_row_is_written_once(world: Path, tmp_path: Path) -> None:
    told, output = config(world, tmp_path / "out", max_new_tokens=48), tmp_path / "out"

    killed = start(told, tmp_path / "killed")
    wait_until(lambda: len(kept(output)) >= 5, what="some completions are kept")
    killed.kill()
    killed.wait(timeout=60)
    (part,) = output.glob(".partial/predict-*/journal.jsonl")
    with part.open("ab") as file:
        file.write(b'{"row": 39, "candidate": "ba')
    first = kept(output)
    stopped = start(told, tmp_path / "stopped")
    wait_until(lambda: len(kept(output)) >= len(first) + 5, what="more completions are kept")
    os.kill(stopped.pid, signal.SIGTERM)
    code = stopped.wait(timeout=60)
    second = kept(output)
    finished = run_program("finetuning_server", told.to_json(), tmp_path / "finished")

    assert killed.returncode == -signal.SIGKILL
    assert code == ExitCode.INTERRUPTED
    assert second[: len(first)] == first
    assert len(first) + 5 <= len(second) < 2 * ROWS
    assert finished.exit_code == ExitCode.DONE, finished.log
    found = {(line["row"], line["candidate"]): line["completion"] for line in lines(output)}
    assert len(lines(output)) == 2 * ROWS
    assert found == {key: text for key, (text, _, _) in expected(told, world).items()}
    assert list(output.glob(".partial/*")) == []

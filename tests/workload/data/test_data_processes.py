"""Preparation with tokenizers from disk, by several processes at once, and by one that was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.models import tiny_tokenizer

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.runconfig import DatasetInput, Provenance
from finetuning_workload.data import encode_prompt, encode_row, held_out_rows, prepare, tokenizer_digest
from finetuning_workload.models import load_tokenizer

ROOT = Path(__file__).parents[3]
TIMEOUT_SECONDS = 120
PREPARE = """
import sys
from pathlib import Path
from finetuning_api.finetuningjob import TrainingSpec
from finetuning_api.runconfig import DatasetInput
from finetuning_workload.data import prepare
from transformers import PreTrainedTokenizerFast

dataset = DatasetInput.model_validate_json(Path(sys.argv[1]).read_text())
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[2], local_files_only=True)
print("ready", flush=True)
sys.stdin.readline()
data = prepare(dataset, tokenizer, training=TrainingSpec(), cache=Path(sys.argv[3]))
print(data.digest, len(data.train), len(data.test), data.counts.tokens)
"""
READ_WITHOUT_NETWORK = """
import sys
from pathlib import Path

def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo"}:
        raise RuntimeError(f"{event} {arguments}")

sys.addaudithook(refuse)
from finetuning_api.dataset import RowFormat
from finetuning_workload.data import load_table

print(*(len(load_table(path, RowFormat())) for path in sorted(Path(sys.argv[1]).iterdir())))
"""


def chat_dataset(folder: Path, *, rows: int) -> DatasetInput:
    path = folder / "chat.jsonl"
    chats = (
        [{"role": "user", "content": f"question {number} 漢字"}, {"role": "assistant", "content": "answer " * 20}]
        for number in range(rows)
    )
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    provenance = Provenance(source="file:chat.jsonl", digest=f"sha256:{'0' * 64}")
    row_format = RowFormat(messages="messages", split=DatasetSplit(test=0.2))
    return DatasetInput(path=str(path), rows=row_format, provenance=provenance)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


def started(dataset: DatasetInput, *, tokenizer: Path, cache: Path) -> "subprocess.Popen[str]":
    """Start a process that prepares as soon as ``release`` tells it to."""
    config = cache.parent / "dataset.json"
    config.write_text(dataset.to_json())
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(config), str(tokenizer), str(cache)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def release(*processes: "subprocess.Popen[str]") -> None:
    """Wait until all are ready, then let them go at once."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()


def test_several_processes_at_once_share_one_result(tmp_path: Path, tokenizer_folder: Path) -> None:
    dataset = chat_dataset(tmp_path, rows=1000)
    cache = tmp_path / "cache"
    processes = [started(dataset, tokenizer=tokenizer_folder, cache=cache) for _ in range(3)]
    release(*processes)
    outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_data_can_be_imported_without_loading_anything_heavy() -> None:
    code = "import sys, finetuning_workload.data as _; print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "set()\n"


def test_reading_touches_neither_the_network_nor_the_home_folder(tmp_path: Path) -> None:
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    data.mkdir()
    for name, content in (("a.jsonl", '{"a": 1}'), ("b.csv", "a\n1\n"), ("c.txt", "text")):
        (data / name).write_text(content)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", READ_WITHOUT_NETWORK, str(data)],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 1 1\n", "")
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_killed_preparation_is_done_again_from_the_start(tmp_path: Path, tokenizer_folder: Path) -> None:
    dataset = chat_dataset(tmp_path, rows=6_000)
    cache = tmp_path / "cache"
    process = started(dataset, tokenizer=tokenizer_folder, cache=cache)
    release(process)
    while not any(cache.glob(".building-*/train/*.raw")):
        assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_SECONDS)
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]
    data = prepare(dataset, load_tokenizer(tokenizer_folder), training=TrainingSpec(), cache=cache)
    assert data.counts.rows == 6_000
    assert not list(cache.glob(".building-*"))


def test_tokenizer_is_the_same_after_a_round_trip_to_disk(tmp_path: Path, tokenizer_folder: Path) -> None:
    loaded = load_tokenizer(tokenizer_folder)
    loaded.save_pretrained(tmp_path / "again")
    assert tokenizer_digest(load_tokenizer(tmp_path / "again")) == tokenizer_digest(loaded)


def test_evaluation_prompts_are_the_beginnings_of_the_held_out_samples(tmp_path: Path, tokenizer_folder: Path) -> None:
    dataset = chat_dataset(tmp_path, rows=100)
    tokenizer = load_tokenizer(tokenizer_folder)
    data = prepare(dataset, tokenizer, training=TrainingSpec(), cache=tmp_path / "cache")
    stored = {sample.row_id: sample for sample in map(data.test.sample, range(len(data.test)))}
    for row in held_out_rows(dataset, tokenizer, limit=None):
        prompt, sample = encode_prompt(tokenizer, row), stored[row.row_id]
        assert sample == encode_row(tokenizer, row)
        assert sample.ids[: len(prompt)] == prompt
        assert tokenizer.decode(sample.ids[len(prompt) :]) == f"{row.completion}</s>"

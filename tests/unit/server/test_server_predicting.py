"""Predictions with an engine that answers at once: which rows are asked, what is kept, what is written."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support.tokenizing import byte_tokenizer

from finetuning_api.dataset import RowFormat
from finetuning_api.finetuningjob import Precision
from finetuning_api.reasons import Reason
from finetuning_api.runconfig import (
    CandidateInput,
    DatasetInput,
    JobIdentity,
    ModelInput,
    PredictConfig,
    PredictResult,
    Provenance,
    ServeConfig,
)
from finetuning_server.engine.base import FinishReason, GenerationRequest, Load, Piece, ServedModel
from finetuning_server.engine.errors import OutOfMemory, PromptTooLong
from finetuning_server.predict import predict
from finetuning_workload.artifact import require_intact
from finetuning_workload.errors import Interrupted, ProgramError, UserError
from finetuning_workload.models import load_tokenizer
from finetuning_workload.program import Context, StopFlag

Fault = Callable[[str], None]


@dataclass
class Asked:
    """What engines were asked: loads, and prompts by served model."""

    loads: list[ServeConfig] = field(default_factory=list)
    prompts: Counter[tuple[str, str]] = field(default_factory=Counter)
    precisions: list[Precision] = field(default_factory=list)
    ended: int = 0


@dataclass
class Parrot:
    """An engine that writes the model's name and the prompt, backwards, in two pieces."""

    config: ServeConfig
    asked: Asked
    meddle: Fault
    precision: Precision
    context_length: int = 64

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer(Path(self.config.model.tokenizer_path))

    async def start(self) -> None:
        self.asked.loads.append(self.config)
        self.asked.precisions.append(self.precision)

    async def stop(self) -> None:
        self.asked.ended += 1

    def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel(self.config.served_name),)

    def load(self) -> Load:
        return Load(running=0, waiting=0, cached_tokens=0)

    def fault(self) -> str:
        return ""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        text = str(self.tokenizer.decode(list(request.tokens)))
        self.asked.prompts[request.model, text] += 1
        if len(request.tokens) >= self.context_length:
            raise PromptTooLong(tokens=len(request.tokens), limit=self.context_length)
        self.meddle(text)
        yield Piece(f"{request.model}:", 1)
        await asyncio.sleep(0)
        yield Piece(text[::-1], len(text), finish=FinishReason.LENGTH)


@dataclass
class World:
    """A data set, candidates that need no weights, and a folder to write to."""

    folder: Path
    asked: Asked = field(default_factory=Asked)
    stop: StopFlag = field(default_factory=StopFlag)

    def write(self, rows: list[Mapping[str, object]]) -> None:
        (self.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def candidate(self, name: str, *, model: str = "m", adapter: str | None = None) -> CandidateInput:
        path = str(self.folder / "tokenizer")
        provenance = Provenance(source="file://m", digest=f"sha256:{model}")
        told = ModelInput(
            path=f"/models/{model}", tokenizer_path=path, provenance=provenance, tokenizer_provenance=provenance
        )
        digest = None if adapter is None else f"sha256:{adapter}"
        return CandidateInput(name=name, model=told, adapter_path=adapter, adapter_digest=digest)

    def config(self, *candidates: CandidateInput, **fields: object) -> PredictConfig:
        known: dict[str, object] = {
            "job": JobIdentity(kind="EvaluationJob", name="all"),
            "candidates": candidates or (self.candidate("base"),),
            "dataset": DatasetInput(
                path=str(self.folder / "rows.jsonl"),
                rows=RowFormat(prompt="<{q}>", completion="{absent}"),
                provenance=Provenance(source="file://rows", digest="sha256:rows"),
            ),
            "max_running": 2,
            "output_path": str(self.folder / "out"),
        }
        return PredictConfig.model_validate(known | fields)

    def predict(self, config: PredictConfig, *, fault: Fault = lambda _text: None) -> PredictResult:
        context = Context(stop=self.stop, environment={})
        return predict(config, context, engines=lambda told, *, precision: Parrot(told, self.asked, fault, precision))

    def lines(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "out/predictions.jsonl").read_text().splitlines()]


@pytest.fixture
def world(tmp_path: Path) -> World:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    made = World(tmp_path)
    made.write([{"q": f"{letter}1"} for letter in "abcdef"])
    return made


def test_every_row_has_a_line_for_every_candidate_in_order(world: World) -> None:
    pair = (world.candidate("base"), world.candidate("tuned", adapter="/adapter"))

    result = world.predict(world.config(*pair))

    lines = world.lines()
    assert lines[1] == {
        "row": 1,
        "rowId": lines[0]["rowId"],
        "candidate": "tuned",
        "prompt": "<a1>",
        "completion": "tuned:>1a<",
        "finishReason": "length",
        "promptTokens": 4,
        "completionTokens": 5,
    }
    assert [(line["row"], line["candidate"]) for line in lines] == [
        (row, name) for row in range(1, 7) for name in ("base", "tuned")
    ]
    manifest = require_intact(world.folder / "out")
    assert result == PredictResult(rows=6, tokens=60, digest=manifest.digest, size_bytes=manifest.total_bytes)
    assert [file.path for file in manifest.files] == ["predictions.jsonl", "summary.json"]
    assert list((world.folder / "out/.partial").iterdir()) == []


def test_base_and_its_adapters_are_loaded_once_and_other_models_by_themselves(world: World) -> None:
    tuned = world.candidate("tuned", adapter="/adapter")
    config = world.config(world.candidate("other", model="n"), tuned, world.candidate("again", adapter="/second"))
    world.predict(config)

    loads = [(each.model.path, [adapter.name for adapter in each.adapters]) for each in world.asked.loads]
    assert loads == [("/models/n", []), ("/models/m", ["tuned", "again"])]
    assert world.asked.ended == 2
    assert {model for model, _ in world.asked.prompts} == {"(base)", "tuned", "again"}


def test_prompts_that_cannot_be_gone_on_from_are_lines_without_a_completion(world: World) -> None:
    world.write([{"q": "x" * 80}, {"q": "a"}, {"q": None}])
    data = world.config().dataset.model_copy(update={"rows": RowFormat(prompt="{q}")})

    result = world.predict(world.config(dataset=data))

    assert [(line["completion"], line["finishReason"]) for line in world.lines()] == [
        (None, "prompt-too-long"),
        ("(base):a", "length"),
        (None, "empty-prompt"),
    ]
    assert (result.rows, result.unanswered) == (3, 2)
    why = "their prompts are empty or leave no room in the model's context (finishReason says which)"
    assert result.warnings == (f"2 of 3 lines have no completion: {why}",)


def test_request_to_stop_keeps_what_is_finished_and_the_next_run_asks_only_for_the_rest(world: World) -> None:
    def stop_at_d(text: str) -> None:
        if text == "<d1>":
            world.stop.set()

    with pytest.raises(Interrupted):
        world.predict(world.config(), fault=stop_at_d)
    first, ended = Counter(world.asked.prompts), world.asked.ended
    world.stop, world.asked = StopFlag(), Asked()

    result = world.predict(world.config())

    kept = {text for (_, text), _ in first.items()} - {text for (_, text), _ in world.asked.prompts.items()}
    assert ended == 1
    assert kept
    assert set(world.asked.prompts.values()) == {1}
    assert result.rows == 6
    assert [line["row"] for line in world.lines()] == [1, 2, 3, 4, 5, 6]


def test_run_that_goes_on_computes_in_the_number_format_of_the_first(world: World) -> None:
    def stop_at_d(text: str) -> None:
        if text == "<d1>":
            world.stop.set()

    with pytest.raises(Interrupted):
        world.predict(world.config(), fault=stop_at_d)
    (first,), other = world.asked.precisions, {Precision.FP32: Precision.BF16, Precision.BF16: Precision.FP32}
    (chosen,) = (world.folder / "out/.partial").glob("predict-*/precision")
    chosen.write_text(other[first])
    world.stop, world.asked = StopFlag(), Asked()
    world.predict(world.config())

    assert world.asked.precisions == [other[first]]
    assert json.loads((world.folder / "out/summary.json").read_text())["precision"] == other[first]


def test_failure_of_one_request_keeps_what_is_finished(world: World) -> None:
    def fail_at_f(text: str) -> None:
        if text == "<f1>":
            raise OutOfMemory("no memory")

    with pytest.raises(UserError) as caught:
        world.predict(world.config(), fault=fail_at_f)
    world.asked = Asked()
    world.predict(world.config())

    assert caught.value.reason is Reason.OUT_OF_MEMORY
    assert "generation.maxNewTokens" in caught.value.hint
    assert len(world.asked.prompts) < 6


def test_finished_predictions_are_not_made_again(world: World) -> None:
    first = world.predict(world.config())
    world.asked = Asked()
    again = world.predict(world.config(max_running=5))

    assert again == first
    assert world.asked == Asked()


@pytest.mark.parametrize("change", [{"max_new_tokens": 9}, {"stop": ("x",)}, {"limit": 3}])
def test_other_settings_are_other_predictions(world: World, change: Mapping[str, object]) -> None:
    world.predict(world.config())
    world.asked = Asked()
    world.predict(world.config(**change))

    assert world.asked.prompts


def test_damaged_predictions_are_made_again(world: World) -> None:
    first = world.predict(world.config())
    (world.folder / "out/predictions.jsonl").write_text("")

    assert world.predict(world.config()).rows == first.rows
    assert len(world.lines()) == 6


def test_limit_takes_the_first_rows(world: World) -> None:
    result = world.predict(world.config(limit=2))

    assert result.rows == 2
    assert [line["prompt"] for line in world.lines()] == ["<a1>", "<b1>"]


def test_candidates_that_are_the_same_are_refused(world: World) -> None:
    with pytest.raises(ProgramError) as caught:
        world.predict(world.config(world.candidate("one"), world.candidate("two")))
    assert caught.value.reason is Reason.CANDIDATES_IDENTICAL

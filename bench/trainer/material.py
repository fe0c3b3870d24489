"""What every contestant is given: one model, one tokenizer, the same rows as tokens, the same adapter."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.finetuningjob import MethodSpec, Precision, Schedule, TrainingSpec
from finetuning_api.runconfig import DatasetInput, JobIdentity, ModelInput, Provenance, TrainConfig
from finetuning_trainer.batching import rows_of_step
from finetuning_workload.data import PreparedData, TokenizedSample, prepare
from finetuning_workload.models import load_tokenizer

BATCH_SIZE, SEED, RATE, MAX_LENGTH = 8, 42, 2e-4, 1024
METHOD = MethodSpec(rank=8, alpha=16)
_PAD, _END = "<pad>", "</s>"
_WORDS_OF_UNIFORM = 255
"""The closing EOS makes 256 tokens of them."""
_MEDIAN_TOKENS, _SPREAD, _SHORTEST, _LONGEST = 130, 0.8, 16, 511
_PROMPT_SHARE = (0.3, 0.8)
_ROWS_PER_WANTED, _MORE_ROWS = 1.5, 48
"""A quarter of the rows is held out, by a hash: of few rows it may be many or none."""


class Data(StrEnum):
    """Instructions of many lengths, or rows of one length of which every token carries loss."""

    RAGGED = "ragged"
    UNIFORM = "uniform"


def _llama_15m() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=288,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
        )
    )


def _smollm2_135m() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            tie_word_embeddings=True,
        )
    )


def _gpt2_124m() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config())


def _gpt2_without_dropout() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-15m": _llama_15m,
    "gpt2-124m": _gpt2_124m,
    "gpt2-124m-no-dropout": _gpt2_without_dropout,
    "smollm2-135m": _smollm2_135m,
}


def write_model(name: str, folder: Path) -> None:
    """Write a seeded model of a name's shape, with a tokenizer to which every word is one token."""
    torch.manual_seed(0)
    model = MODELS[name]()
    words = {_PAD: 0, _END: 1} | {f"w{number}": number for number in range(2, model.config.vocab_size)}
    core = Tokenizer(models.WordLevel(vocab=words, unk_token=_PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    model.config.eos_token_id = model.config.bos_token_id = 1
    model.config.pad_token_id = 0
    model.generation_config.eos_token_id = model.generation_config.bos_token_id = 1
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token=_PAD, eos_token=_END).save_pretrained(folder)


def write_rows(data: Data, folder: Path, *, samples: int, words: int) -> None:
    """Write more rows than are wanted: some are held out. Words are drawn as in texts: few of them are most."""
    draw = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(int(samples * _ROWS_PER_WANTED) + _MORE_ROWS):
            file.write(json.dumps(_row(data, draw, words)) + "\n")


def _row(data: Data, draw: np.random.Generator, words: int) -> dict[str, str]:
    length = _WORDS_OF_UNIFORM
    if data is Data.RAGGED:
        length = int(np.clip(draw.lognormal(np.log(_MEDIAN_TOKENS), _SPREAD), _SHORTEST, _LONGEST))
    drawn = [f"w{2 + number % (words - 2)}" for number in draw.zipf(1.2, length)]
    if data is Data.UNIFORM:
        return {"completion": " ".join(drawn)}
    prompt = int(length * draw.uniform(*_PROMPT_SHARE))
    return {"prompt": " ".join(drawn[:prompt]), "completion": " ".join(drawn[prompt:])}


@dataclass(frozen=True, slots=True)
class Course:
    """A training that every contestant runs: so many steps of a model on data, in one folder."""

    folder: Path
    data: Data
    steps: int

    def config(self, *, precision: Precision, output: Path) -> TrainConfig:
        """Return what our trainer is told."""
        model = Provenance(source="bench", digest="sha256:" + "1" * 64)
        prompt = "{prompt} " if self.data is Data.RAGGED else None
        return TrainConfig(
            job=JobIdentity(kind="FineTuningJob", name="bench"),
            model=ModelInput(
                path=str(self.model),
                tokenizer_path=str(self.model),
                provenance=model,
                tokenizer_provenance=model,
            ),
            dataset=DatasetInput(
                path=str(self.folder / self.data),
                rows=RowFormat(prompt=prompt, completion="{completion}", split=DatasetSplit(test=0.25)),
                provenance=Provenance(source="bench", digest="sha256:" + "2" * 64),
            ),
            method=METHOD,
            training=self._training(precision),
            cache_path=str(self.folder / "cache"),
            output_path=str(output / "adapter"),
            checkpoint_path=str(output / "checkpoints"),
        )

    def _training(self, precision: Precision) -> TrainingSpec:
        return TrainingSpec(
            epochs=1,
            max_steps=self.steps,
            batch_size=BATCH_SIZE,
            max_length=MAX_LENGTH,
            learning_rate=RATE,
            schedule=Schedule.CONSTANT,
            warmup_ratio=0.0,
            seed=SEED,
            precision=precision,
        )

    @property
    def model(self) -> Path:
        """The model's folder."""
        return self.folder / "model"

    def prepared(self) -> PreparedData:
        """Return the rows as tokens."""
        config = self.config(precision=Precision.FP32, output=self.folder)
        tokenizer = load_tokenizer(self.model)
        return prepare(config.dataset, tokenizer, training=config.training, cache=Path(config.cache_path))

    def samples(self) -> Iterator[TokenizedSample]:
        """Yield the rows in the order of the steps."""
        split = self.prepared().train
        for step in range(self.steps):
            for row in rows_of_step(step, rows=len(split), batch_size=BATCH_SIZE, seed=SEED):
                yield split.sample(row)

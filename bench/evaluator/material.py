"""What every contestant is given: one model, one tokenizer, and the same texts, sentences, questions and prompts."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from bench.trainer.material import MODELS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetuning_evaluator.metrics import cola, general

END = "</s>"
NEW_TOKENS = 32
_TOKENS, _SENTENCES, _QUESTIONS, _PROMPTS = 20_000, 1000, 200, 100
_VOCABULARY = 4000
_MEDIAN_WORDS, _SPREAD, _SHORTEST, _LONGEST = 60, 0.8, 8, 300
_ANSWERS = 4


class Family(StrEnum):
    """A kind of work."""

    PERPLEXITY = "perplexity"
    ACCEPTABILITY = "acceptability"
    CHOICES = "choices"
    GENERATION = "generation"


@dataclass(frozen=True, slots=True)
class Material:
    """The texts of all families."""

    documents: list[str]
    sentences: list[str]
    questions: list[tuple[str, list[str]]]
    prompts: list[str]

    def write(self, path: Path) -> None:
        """Write it for the processes that measure."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Material":
        """Return what was written."""
        return cls(**json.loads(path.read_text()))


def write_model(name: str, folder: Path) -> PreTrainedTokenizerFast:
    """Write a seeded model of a name's shape, with a byte-level BPE tokenizer of English; return the tokenizer."""
    torch.manual_seed(0)
    model = MODELS[name]()
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = settings.bos_token_id = settings.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_material(tokenizer: PreTrainedTokenizerFast, *, share: float) -> Material:
    """Return ``share`` of the whole material, the same for every contestant and run."""
    draw = np.random.default_rng(7)
    words = " ".join(_texts()).split()
    texts = (_stretch(words, draw) for _ in iter(int, 1))
    documents: list[str] = []
    tokens = 0
    while tokens < _TOKENS * share:
        documents.append(next(texts))
        tokens += len(tokenizer(documents[-1])["input_ids"])
    numbered = enumerate(islice(cycle(cola.sentences()), int(_SENTENCES * share)))
    sentences = [f"{number}. {sentence.sentence}" for number, sentence in numbered]
    questions = [
        (next(texts) + "\nAnswer:", [" " + " ".join(draw.choice(words, 1 + place)) for place in range(_ANSWERS)])
        for _ in range(int(_QUESTIONS * share))
    ]
    return Material(documents, sentences, questions, [next(texts) for _ in range(int(_PROMPTS * share))])


def _texts() -> list[str]:
    return [row.text for row in general.passages()] + [sentence.sentence for sentence in cola.sentences()]


def _stretch(words: list[str], draw: np.random.Generator) -> str:
    length = int(np.clip(draw.lognormal(np.log(_MEDIAN_WORDS), _SPREAD), _SHORTEST, _LONGEST))
    start = int(draw.integers(0, len(words) - length))
    return " ".join(words[start : start + length])

"""One contestant doing one family of work in a process of its own: ``python -m bench.evaluator.contestants``."""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from bench.evaluator.material import NEW_TOKENS, Family, Material
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuning_api.finetuningjob import Precision
from finetuning_evaluator.answers import Question, answer_log_probabilities
from finetuning_evaluator.metrics import cola
from finetuning_evaluator.score import document_log_probabilities
from finetuning_workload.generation import complete
from finetuning_workload.hardware import choose_dtype
from finetuning_workload.models import load_base_model, load_tokenizer

CPU = torch.device("cpu")
_LONGEST = 1024
_BATCH_ROWS = 16
_CONTEXT = "{}\nQuestion: Does this sentence make sense?\nAnswer:"


class Contestant(StrEnum):
    """Who works."""

    OURS = "ours"
    OURS_FP32 = "ours-fp32"
    NAIVE = "naive"
    LM_EVAL = "lm-eval"


@dataclass(frozen=True, slots=True)
class Record:
    """What one run took and found."""

    contestant: str
    family: str
    cpu_seconds: float
    """From before the model is loaded to the last score; imports are not counted."""
    items: int
    scores: list[float]
    """Sums of natural log-probabilities: of documents, or of the answers one after another."""
    texts: list[str]


Found = tuple[list[float], list[str]]


def ours(family: Family, path: Path, material: Material, *, precision: Precision) -> Found:
    """Work as the evaluator does."""
    tokenizer = load_tokenizer(path)
    model = load_base_model(path, dtype=choose_dtype(precision, CPU).dtype, device=CPU)
    match family:
        case Family.PERPLEXITY:
            documents = [tokenizer(text)["input_ids"] for text in material.documents]
            scores = document_log_probabilities(model, documents, max_length=_LONGEST)
            return [float(each.sum()) for each in scores], []
        case Family.ACCEPTABILITY:
            judged = [cola.Sentence(sentence=text, acceptable=True, phenomenon="") for text in material.sentences]
            found = cola.judge(model, tokenizer, judged)
            return [score for each in found for score in (each.no, each.yes)], []
        case Family.CHOICES:
            questions = [
                Question(_tokens(tokenizer, prompt), tuple(_tokens(tokenizer, text) for text in answers))
                for prompt, answers in material.questions
            ]
            return [score for each in answer_log_probabilities(model, questions) for score in each], []
        case Family.GENERATION:
            prompts = [tokenizer(text)["input_ids"] for text in material.prompts]
            return [], [each.text for each in complete(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS)]


def _tokens(tokenizer: Any, text: str) -> tuple[int, ...]:  # noqa: ANN401  (transformers' own type)
    return tuple(tokenizer(text)["input_ids"])


@torch.no_grad()
def naive(family: Family, path: Path, material: Material) -> Found:
    """Work as a loop does that somebody writes in ten minutes: one row at a time, all logits, one call an answer."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    def score(context: list[int], rest: list[int]) -> float:
        ids = torch.tensor([context + rest])
        chances = model(ids).logits.log_softmax(dim=-1)
        told = chances[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        return float(told[len(context) - 1 :].double().sum())

    def encoded(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    match family:
        case Family.PERPLEXITY:
            return [score(encoded(text)[:1], encoded(text)[1:]) for text in material.documents], []
        case Family.ACCEPTABILITY:
            asked = [_CONTEXT.format(text) for text in material.sentences]
            return [score(encoded(text), encoded(choice)) for text in asked for choice in cola.CHOICES], []
        case Family.CHOICES:
            pairs = [(prompt, answer) for prompt, answers in material.questions for answer in answers]
            return [score(encoded(prompt), encoded(answer)) for prompt, answer in pairs], []
        case Family.GENERATION:
            return [], [_generated(model, tokenizer, encoded(prompt)) for prompt in material.prompts]


def _generated(model: Any, tokenizer: Any, prompt: list[int]) -> str:  # noqa: ANN401  (transformers' own types)
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))


def lm_eval(family: Family, path: Path, material: Material) -> Found:
    """Work as the harness does with batches of 16 in fp32."""
    # Takes long to import: not for those who do not need it.
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness: Any = HFLM(pretrained=str(path), dtype="float32", batch_size=_BATCH_ROWS, device="cpu")

    def requests(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]

    match family:
        case Family.PERPLEXITY:
            # Its first token is scored after EOS: one more than ours.
            rolled = harness.loglikelihood_rolling(
                requests("loglikelihood_rolling", [(text,) for text in material.documents]), disable_tqdm=True
            )
            return list(rolled), []
        case Family.ACCEPTABILITY:
            pairs = [(_CONTEXT.format(text), choice) for text in material.sentences for choice in cola.CHOICES]
        case Family.CHOICES:
            pairs = [(prompt, answer) for prompt, answers in material.questions for answer in answers]
        case Family.GENERATION:
            asked = [
                (prompt, {"until": [], "max_gen_toks": NEW_TOKENS, "do_sample": False}) for prompt in material.prompts
            ]
            return [], list(harness.generate_until(requests("generate_until", asked), disable_tqdm=True))
    return [score for score, _ in harness.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)], []


WORK: dict[Contestant, Callable[[Family, Path, Material], Found]] = {
    Contestant.OURS: lambda *given: ours(*given, precision=Precision.AUTO),
    Contestant.OURS_FP32: lambda *given: ours(*given, precision=Precision.FP32),
    Contestant.NAIVE: naive,
    Contestant.LM_EVAL: lm_eval,
}


def main() -> None:
    """Work once and write a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", type=Contestant)
    parser.add_argument("family", type=Family)
    parser.add_argument("home", type=Path)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    material = Material.read(options.home / "material.json")
    started = time.process_time()
    scores, texts = WORK[options.contestant](options.family, options.home / "model", material)
    seconds = time.process_time() - started
    record = Record(options.contestant, options.family, seconds, len(scores) or len(texts), scores, texts)
    options.record.write_text(json.dumps(asdict(record)))


if __name__ == "__main__":
    main()

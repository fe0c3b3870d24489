"""Matches of whole answers agree with what others compute: SQuAD's script, JSON Schema, sklearn."""

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.qasper.metrics import normalize_answer
from sklearn.metrics import f1_score

from finetuning_evaluator.metrics import accuracy, matching
from finetuning_evaluator.statistics import bootstrap
from finetuning_workload.answers import is_json

REPOSITORY = Path(__file__).resolve().parents[3]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a", "1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab1"), inner, max_size=3),
    max_leaves=6,
)


def real_texts() -> list[str]:
    text = "\n".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("LICENSE", "docs/data.md"))
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    "text", ["", "The", "An apple, a day; THE end.", "a-b the_c", "Anna's  théâtre\t(a)", "«Der» the", "x«the»y"]
)
def test_chosen_texts_are_normalised_as_squad_does(text: str) -> None:
    assert matching.normalized(text) == normalize_answer(text)


@given(st.lists(st.sampled_from(["a", "An", "the", "theta", ".", "'s", "É", " ", "\n", "x1", "_"]), max_size=12))
def test_any_text_is_normalised_as_squad_does(parts: list[str]) -> None:
    assert matching.normalized(" ".join(parts)) == normalize_answer(" ".join(parts))
    assert matching.normalized("".join(parts)) == normalize_answer("".join(parts))


def test_real_text_is_normalised_as_squad_does() -> None:
    texts = real_texts()

    assert len(texts) > 100
    assert [matching.normalized(text) for text in texts] == [normalize_answer(text) for text in texts]


def test_a_normalised_match_forgives_case_punctuation_and_articles_and_nothing_else() -> None:
    assert matching.is_normalized_match("The billing team.", " billing Team")
    assert not matching.is_normalized_match("billing team", "billing teams")
    assert not matching.is_match("The billing team.", " billing Team")


@given(first=JSON, second=JSON)
def test_values_are_equal_as_json_schema_compares_them(first: object, second: object) -> None:
    expected = jsonschema.Draft202012Validator({"const": first}).is_valid(second)

    assert matching.is_json_match(json.dumps(first), json.dumps(second, indent=1)) is expected


@pytest.mark.parametrize(
    ("reference", "prediction", "expected"),
    [
        ('{"a": 1, "b": [true, null]}', '{ "b":[true,null],\n"a":1.0}', True),
        ('{"a": 1}', '```json\n{"a": 1}\n```', True),
        ('{"a": 1}', '```\n{"a": 1}\n``` ', True),
        ('{"a": 1}', 'Here it is: {"a": 1}', False),
        ('{"a": 1}', '{"a": 1', False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[NaN]", False),
        ("[1]", "[" * 100_000, False),
        ("[1]", "", False),
    ],
)
def test_an_answer_matches_when_all_of_it_is_the_same_json(reference: str, prediction: str, *, expected: bool) -> None:
    assert matching.is_json_match(reference, prediction) is expected


@pytest.mark.parametrize(
    ("text", "expected"), [("[1]", True), (" null\n", True), ("[NaN]", False), ("-Infinity", False), ("billing", False)]
)
def test_only_what_every_parser_reads_is_json(text: str, *, expected: bool) -> None:
    assert is_json(text) is expected


def answers(seed: int, *, classes: int, rows: int = 60) -> tuple[list[str], list[str], list[str]]:
    generator = np.random.default_rng(seed)
    choices = [f"class {number}" for number in range(classes)]
    references = [choices[min(int(number), classes - 1)] for number in generator.exponential(1.5, rows)]
    chosen = [
        choices[int(generator.integers(classes))] if generator.random() < 0.4 else reference for reference in references
    ]
    return choices, chosen, references


@pytest.mark.parametrize(("seed", "classes"), [(0, 2), (1, 3), (2, 5), (3, 12), (4, 40)])
def test_the_macro_f1_is_that_of_sklearn(seed: int, classes: int) -> None:
    choices, chosen, references = answers(seed, classes=classes)

    observed = accuracy.observe_f1(choices, chosen, references)

    assert observed.value() == pytest.approx(f1_score(references, chosen, average="macro"), abs=1e-12)
    assert observed.row_values().tolist() == [
        float(answer == reference) for answer, reference in zip(chosen, references, strict=True)
    ]


def test_the_macro_f1_of_real_words_is_that_of_sklearn() -> None:
    words = [word for line in real_texts() for word in re.findall(r"\b(?:the|of|and|or|to|any)\b", line)]
    references, chosen = words[:-1], words[1:]

    observed = accuracy.observe_f1(sorted(set(words)), chosen, references)

    assert observed.value() == pytest.approx(f1_score(references, chosen, average="macro"), abs=1e-12)


def test_each_resample_has_the_macro_f1_of_its_own_rows() -> None:
    choices, chosen, references = answers(5, classes=4, rows=12)
    (draws,) = bootstrap([accuracy.observe_f1(choices, chosen, references)], samples=20, seed=9)

    places = np.random.default_rng(9).integers(0, 12, size=(20, 12))
    expected = [
        f1_score([references[place] for place in row], [chosen[place] for place in row], average="macro")
        for row in places
    ]
    assert draws == pytest.approx(np.array(expected), abs=1e-12)

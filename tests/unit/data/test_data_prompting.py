"""What is predicted goes on from the tokens that completions start from in training, and needs no completion."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.support.tokenizing import CHATML, FORGETS_EARLIER_ANSWERS, byte_tokenizer

from finetuning_api.dataset import DatasetSplit, RowFormat
from finetuning_api.reasons import Reason
from finetuning_workload.data import (
    RenderedRow,
    Table,
    count_prompts,
    encode_prompt,
    iterate_prompts,
    load_table,
    render_rows,
)
from finetuning_workload.errors import UserError

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
AGAIN = {"role": "user", "content": "Bye"}
TOKENIZER = byte_tokenizer(eos="<|im_end|>", chat_template=CHATML)


def table(folder: Path, rows: Sequence[object]) -> Table:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return load_table(path, RowFormat())


def prompts(found: Table, rows: RowFormat, *, limit: int | None = None) -> list[tuple[int, RenderedRow]]:
    return list(iterate_prompts(found, rows, TOKENIZER, limit=limit))


def test_prompt_alone_is_enough(tmp_path: Path) -> None:
    found = prompts(table(tmp_path, [{"question": "Why?"}, {"question": "How?"}]), RowFormat(prompt="Q: {question}\n"))

    assert [(number, row.prompt) for number, row in found] == [(1, "Q: Why?\n"), (2, "Q: How?\n")]


def test_column_of_the_completion_need_not_be_there(tmp_path: Path) -> None:
    rows = RowFormat(prompt="Q: {question}\n", completion="{answer}")

    assert [row.prompt for _, row in prompts(table(tmp_path, [{"question": "Why?"}]), rows)] == ["Q: Why?\n"]


@pytest.mark.parametrize(
    ("row", "rows"),
    [
        ({"question": "Why?", "answer": "So."}, RowFormat(prompt="Q: {question}\n", completion="{answer}")),
        ({"chat": [USER, ANSWER, AGAIN, ANSWER]}, RowFormat(messages="chat")),
    ],
)
@pytest.mark.parametrize("template", [CHATML, FORGETS_EARLIER_ANSWERS])
def test_tokens_are_those_of_training(tmp_path: Path, row: object, rows: RowFormat, template: str) -> None:
    found, tokenizer = table(tmp_path, [row]), byte_tokenizer(chat_template=template)
    (trained,) = render_rows(found, rows, tokenizer)
    ((_, predicted),) = iterate_prompts(found, rows, tokenizer, limit=None)

    assert encode_prompt(tokenizer, predicted) == encode_prompt(tokenizer, trained)


def test_chat_goes_on_after_its_last_turn_that_is_no_answer(tmp_path: Path) -> None:
    chats = [[USER], [USER, ANSWER], [USER, ANSWER, AGAIN], [ANSWER], []]
    found = prompts(
        table(tmp_path, [{"id": n, "chat": chat} for n, chat in enumerate(chats)]), RowFormat(messages="chat")
    )
    first = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"

    assert [row.prompt for _, row in found] == [
        first,
        first,
        f"{first}Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "",
        "",
    ]


def test_split_is_not_looked_at_and_limits_are(tmp_path: Path) -> None:
    found = table(tmp_path, [{"n": n} for n in range(20)])
    rows = RowFormat(prompt="{n}", split=DatasetSplit(test=0.5))
    by_hash = prompts(found, rows.model_copy(update={"limit": 6}))

    assert [number for number, _ in prompts(found, rows)] == list(range(1, 21))
    assert [number for number, _ in prompts(found, rows, limit=3)] == [1, 2, 3]
    assert len(by_hash) == 6
    assert prompts(found, rows.model_copy(update={"limit": 6}), limit=4) == by_hash[:4]
    assert [count_prompts(found, rows.model_copy(update={"limit": 6}), limit=limit) for limit in (None, 4, 9)] == [
        6,
        4,
        6,
    ]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (RowFormat(completion="{n}"), Reason.INVALID_SPEC),
        (RowFormat(text="n"), Reason.INVALID_SPEC),
        (RowFormat(prompt="{m}"), Reason.COLUMN_NOT_FOUND),
        (RowFormat(messages="m"), Reason.COLUMN_NOT_FOUND),
    ],
)
def test_data_without_prompts_is_refused_before_the_first_row(tmp_path: Path, rows: RowFormat, reason: Reason) -> None:
    with pytest.raises(UserError) as caught:
        iterate_prompts(table(tmp_path, [{"n": 1}]), rows, TOKENIZER, limit=None)
    assert caught.value.reason is reason

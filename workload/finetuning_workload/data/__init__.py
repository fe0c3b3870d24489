"""Data: from files to rendered rows to tokens. What training, evaluation and prompting share."""

from finetuning_workload.data.encoding import Encoder, TokenizedSample, encode_prompt, encode_row
from finetuning_workload.data.preparing import (
    PreparedData,
    held_out_rows,
    preparation_digest,
    prepare,
    tokenizer_digest,
    training_rows,
)
from finetuning_workload.data.prompting import count_prompts, iterate_prompts
from finetuning_workload.data.reading import Table, load_table
from finetuning_workload.data.rendering import RenderedRow, render_rows
from finetuning_workload.data.row_files import RowFiles, write_row_files
from finetuning_workload.data.segments import Segment
from finetuning_workload.data.splitting import Side, side_of, split_rows
from finetuning_workload.data.store import TokenizedSplit

__all__ = [
    "Encoder",
    "PreparedData",
    "RenderedRow",
    "RowFiles",
    "Segment",
    "Side",
    "Table",
    "TokenizedSample",
    "TokenizedSplit",
    "count_prompts",
    "encode_prompt",
    "encode_row",
    "held_out_rows",
    "iterate_prompts",
    "load_table",
    "preparation_digest",
    "prepare",
    "render_rows",
    "side_of",
    "split_rows",
    "tokenizer_digest",
    "training_rows",
    "write_row_files",
]

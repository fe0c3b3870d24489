"""What candidates write by the plain way to generate: one load after the other, no continuous batching."""

from collections.abc import Sequence

import torch

from finetuning_api.runconfig import CandidateInput
from finetuning_workload.candidates import loaded, plan_loads
from finetuning_workload.generation import Completion, Ends, complete


def greedy(
    candidates: Sequence[CandidateInput], prompts: Sequence[list[int]], *, max_new_tokens: int, stop: Sequence[str] = ()
) -> dict[str, list[Completion]]:
    """Return every candidate's completions of prompts (token ids), in batches of a fixed plan."""
    written: dict[str, list[Completion]] = {}
    for load in plan_loads(candidates):
        with loaded(load, dtype=torch.float32, device=torch.device("cpu")) as ready:
            for each in ready:
                with each.active():
                    written[each.candidate.name] = complete(
                        each.model, each.tokenizer, prompts, max_new_tokens=max_new_tokens, ends=Ends(stop)
                    )
    return written

"""The loss, computed where it is needed: the output layer runs on supervised tokens only."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from finetuning_trainer.batching import MicroBatch


@dataclass(frozen=True, slots=True)
class Forward:
    """How a model is run. ``split_head``: the trunk and the output layer apart; else the whole model at every token."""

    model: PreTrainedModel
    split_head: bool

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """Return the logits that predict the labels of a batch, [labels, vocabulary]."""
        inputs = model_inputs(batch)
        if not self.split_head:
            everywhere = self.model(**inputs).logits
            return torch.as_tensor(everywhere.flatten(0, 1)[batch.sources])
        hidden = self.model.base_model(**inputs)[0]
        head = self.model.get_output_embeddings()
        return torch.as_tensor(head(hidden.flatten(0, 1)[batch.sources]))

    def summed_nll(self, batch: MicroBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the labels of a batch, summed, in nats and fp32."""
        return cross_entropy(self.logits(batch).float(), batch.labels, reduction="sum")


def model_inputs(batch: MicroBatch) -> dict[str, object]:
    """Return the arguments of transformers' forward; packed batches use its own names for segment boundaries."""
    inputs: dict[str, object] = {"input_ids": batch.ids, "position_ids": batch.positions, "use_cache": False}
    if batch.boundaries is not None:
        return inputs | {"cu_seq_lens_q": batch.boundaries, "cu_seq_lens_k": batch.boundaries}
    return inputs | {"attention_mask": batch.mask}

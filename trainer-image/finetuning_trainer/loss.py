"""The loss, computed where it is needed: the output layer runs on supervised tokens only."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from finetuning_trainer.batching import MicroBatch
from finetuning_trainer.cross_entropy import summed_nll


@dataclass(frozen=True, slots=True)
class Forward:
    """How a model is run. ``split_head``: the trunk and the output layer apart; else the whole model at every token.

    ``fused_loss``: the output layer and cross entropy as one, without logits; it needs ``split_head``.
    """

    model: PreTrainedModel
    split_head: bool
    fused_loss: bool = False

    def logits(self, batch: MicroBatch) -> torch.Tensor:
        """Return the logits that predict the labels of a batch, [labels, vocabulary]."""
        if not self.split_head:
            everywhere = self.model(**model_inputs(batch)).logits
            return torch.as_tensor(everywhere.flatten(0, 1)[batch.sources])
        head = self.model.get_output_embeddings()
        return torch.as_tensor(head(self._hidden(batch)))

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        """Return what the output layer sees of the tokens that predict a label, [labels, hidden size]."""
        hidden = self.model.base_model(**model_inputs(batch))[0]
        return torch.as_tensor(hidden.flatten(0, 1)[batch.sources])

    def summed_nll(self, batch: MicroBatch) -> torch.Tensor:
        """Return the negative log-likelihood of the labels of a batch, summed, in nats and fp32."""
        if self.fused_loss:
            return summed_nll(self._hidden(batch), self.model.get_output_embeddings().weight, batch.labels)
        return cross_entropy(self.logits(batch).float(), batch.labels, reduction="sum")


def model_inputs(batch: MicroBatch) -> dict[str, object]:
    """Return the arguments of transformers' forward; packed batches use its own names for segment boundaries."""
    inputs: dict[str, object] = {"input_ids": batch.ids, "position_ids": batch.positions, "use_cache": False}
    if batch.boundaries is not None:
        return inputs | {"cu_seq_lens_q": batch.boundaries, "cu_seq_lens_k": batch.boundaries}
    return inputs | {"attention_mask": batch.mask}

"""Student and loss as one module, so that whatever wraps a forward pass (ZeRO's hooks, autocast) wraps the loss too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from kubedistill_trainer.beside import Matching
from kubedistill_trainer.core.batching import MicroBatch
from kubedistill_trainer.core.chunked import chunked_loss
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.inside import Asked, look_inside
from kubedistill_trainer.core.losses import Loss
from kubedistill_trainer.core.signals import Supervision

MODEL = "model."
"""How names of the student's weights begin in a Distiller's state."""


class Distiller(nn.Module):
    """A causal language model (with or without adapters) that returns the summed loss of a micro batch.

    The model's own head never runs: only positions that predict a target are projected to the vocabulary.
    """

    def __init__(self, model: Any, loss: Loss, vocabulary: int, matching: Matching | None = None) -> None:
        """`vocabulary` is the tokenizer's; rows that a model has beyond it take no probability. `matching` adds terms
        about the student's inside.

        Raises ValueError if the model's head is more than a linear layer.
        """
        super().__init__()
        Head.of(plain(model), vocabulary)
        self.model = model
        self.matching = matching
        self.loss_head = LossHead(lambda: Head.of(plain(model), vocabulary), loss)

    def forward(self, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss summed over the batch's targets, and its unweighted terms, detached."""
        asked = self.matching.terms.of_student if self.matching is not None else Asked()
        inside = look_inside(plain(self.model), batch, asked)
        total, parts = self.loss_head(batch.counted(inside.last_BTH), batch.supervision)
        if self.matching is None:
            return total, parts
        more, terms = self.matching(inside, batch)
        return total + more, parts | terms

    @property
    def head_weights(self) -> list[nn.Parameter]:
        """The model's weights that the loss reads outside of their own module."""
        return list(plain(self.model).get_output_embeddings().parameters())


class LossHead(nn.Module):
    """The vocabulary projection and the loss. A module of its own: ZeRO-3 gathers the head's weights for its pass."""

    def __init__(self, head: Callable[[], Head], loss: Loss) -> None:
        super().__init__()
        self._head = head
        self._loss = loss

    def forward(self, hidden_NH: Tensor, supervision: Supervision) -> tuple[Tensor, dict[str, Tensor]]:
        loss = chunked_loss(hidden_NH, self._head(), supervision, self._loss)
        return loss.total, dict(loss.parts)


def plain(model: Any) -> Any:
    """The model inside its adapters' wrapper; the adapters stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

"""The vocabulary projection of a model, as the loss needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (weight @ hidden + bias) / softcap); no softcap: without the tanh."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def vocabulary(self) -> int:
        return len(self.weight_VH)

    @classmethod
    def of(cls, model: nn.Module, vocabulary: int) -> Head:
        """The head of a causal language model from transformers, cut to the tokenizer's `vocabulary`.

        Models pad their vocabulary to a round number; a padded row has a logit like any other and would take
        probability from real tokens. Cutting the rows off is the same as -inf before the softmax, and cheaper.

        Raises ValueError if the head is no plain linear layer (an adapter on it would be left out of the loss), or
        if it has fewer rows than the tokenizer has tokens.
        """
        layer: Any = model.get_output_embeddings()  # type: ignore[operator]
        config: Any = model.config
        if type(layer) is not nn.Linear:
            raise ValueError(f"the output layer is a {type(layer).__name__}; only a plain linear layer is supported")
        if layer.out_features < vocabulary:
            raise ValueError(f"the model has {layer.out_features} output rows, its tokenizer {vocabulary} tokens")
        whole = layer.out_features == vocabulary
        return cls(
            layer.weight if whole else layer.weight[:vocabulary],
            layer.bias if whole or layer.bias is None else layer.bias[:vocabulary],
            scale=(getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

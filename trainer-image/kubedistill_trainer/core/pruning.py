"""A student from a teacher's own layers: which to keep, and the smaller model that they make.

Block influence (Men et al. 2024, "ShortGPT"): 1 - cos(a block's input, its output), averaged over tokens. A block
that hardly turns the residual stream can be left out. Measured on the training prompts it beats evenly spaced layers
by more than any choice of loss does, and which layers are weak differs between model families: measure, never guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class BlockInfluence:
    """Streaming sums over tokens: enter it, run forward passes of the model, read `scores`.

    `count` is set before each forward pass: true at the tokens that count, [B, T]; None counts all.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = decoder_layers(model)
        self._sums = [0.0] * len(self._layers)
        self._tokens = [0] * len(self._layers)
        self._hooks: list[Any] = []
        self.count_BT: Tensor | None = None

    def __enter__(self) -> BlockInfluence:
        self._hooks = [
            layer.register_forward_hook(self._hook(index), with_kwargs=True) for index, layer in enumerate(self._layers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def scores(self) -> tuple[float, ...]:
        """The influence of each layer, first to last. Raises ValueError if no token went by."""
        if not all(self._tokens):
            raise ValueError("no token was seen: block influence needs a forward pass")
        return tuple(total / tokens for total, tokens in zip(self._sums, self._tokens, strict=True))

    def _hook(self, index: int) -> Any:
        def add(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before_BTH = args[0] if args else kwargs["hidden_states"]
            after_BTH = output[0] if isinstance(output, tuple) else output
            influence_BT = block_influence(before_BTH, after_BTH)
            counted = influence_BT if self.count_BT is None else influence_BT[self.count_BT]
            self._sums[index] += float(counted.sum(dtype=torch.float64))
            self._tokens[index] += counted.numel()

        return add


def block_influence(before_BTH: Tensor, after_BTH: Tensor) -> Tensor:
    """1 - cos of a block's input and output at each token, in float32; 0: it only scales, 2: it turns round."""
    return 1.0 - functional.cosine_similarity(before_BTH.detach().float(), after_BTH.detach().float(), dim=-1)


def most_influential(scores: Sequence[float], keep: int) -> tuple[int, ...]:
    """The `keep` layers of highest influence, in their order. Of equals the earlier one is kept."""
    _check(len(scores), keep)
    return tuple(sorted(sorted(range(len(scores)), key=lambda layer: (-scores[layer], layer))[:keep]))


def evenly_spaced(layers: int, keep: int) -> tuple[int, ...]:
    """`keep` of `layers`, the first and the last among them."""
    _check(layers, keep)
    if keep == 1:
        return (0,)
    return tuple(round(index * (layers - 1) / (keep - 1)) for index in range(keep))


def prune(model: nn.Module, keep: Sequence[int]) -> nn.Module:
    """Leave only the layers `keep` in the model, renumbered, and say so in its config. In place; returns the model.

    The numbers matter: a layer finds its part of the key-value cache by its index.

    Raises ValueError for layers that are not there, out of order, or twice.
    """
    layers = decoder_layers(model)
    if list(keep) != sorted(set(keep)) or not keep or keep[0] < 0 or keep[-1] >= len(layers):
        raise ValueError(f"cannot keep layers {list(keep)} of {len(layers)}: name each once, in order")
    kept = [layers[index] for index in keep]
    del layers[len(kept) :]
    for index, layer in enumerate(kept):
        layers[index] = layer
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
    config: Any = model.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in keep]
    config.num_hidden_layers = len(keep)
    return model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of blocks of a causal language model: the one list of as many modules as the config has layers.

    Of a model that takes images as well it is that of its language model.
    """
    causal: Any = model
    layers = causal.config.get_text_config().num_hidden_layers
    stacks = [
        module
        for module in causal.get_decoder().modules()
        if isinstance(module, nn.ModuleList) and len(module) == layers
    ]
    if len(stacks) != 1:
        raise ValueError(f"{type(model).__name__} has {len(stacks)} stacks of {layers} layers, not one")
    return stacks[0]


def _check(layers: int, keep: int) -> None:
    if not 1 <= keep <= layers:
        raise ValueError(f"cannot keep {keep} of {layers} layers")

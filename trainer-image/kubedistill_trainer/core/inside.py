"""What a forward pass shows of a model's inside: hidden states of some layers, and the last attention's vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kubedistill_trainer.core.batching import MicroBatch
from kubedistill_trainer.core.losses.attention_relations import Span, Vectors
from kubedistill_trainer.core.pruning import decoder_layers

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""How transformers calls them in Llama, Mistral, Qwen, Gemma, SmolLM and their kin."""


@dataclass(frozen=True)
class Asked:
    """What is looked at."""

    layers: Sequence[int] = ()
    """Hidden states after so many decoder layers; 0: the embeddings."""
    vectors: bool = False
    """The queries, keys and values of the last attention."""


@dataclass(frozen=True)
class Inside:
    """What was seen."""

    last_BTH: Tensor
    """What the vocabulary projection gets."""
    states: Sequence[Tensor]
    """At the counted positions, [N, H] for each layer asked for."""
    vectors: Vectors | None


def look_inside(model: Any, batch: MicroBatch, asked: Asked) -> Inside:
    """A forward pass of a causal language model. Its head does not run.

    Raises ValueError if vectors are asked for and the last attention has no projections of their own for them.
    """
    states: dict[int, Tensor] = {}
    vectors: dict[str, Tensor] = {}
    with ExitStack() as ears:
        for handle in (
            *_state_ears(model, asked.layers, states),
            *(_vector_ears(model, vectors) if asked.vectors else ()),
        ):
            ears.callback(handle.remove)
        last_BTH = model.get_decoder()(**batch.model_inputs()).last_hidden_state
    states[len(decoder_layers(model))] = last_BTH
    return Inside(
        last_BTH,
        [batch.counted(states[layer]) for layer in asked.layers],
        Vectors(*(vectors[name].flatten(0, 1) for name in PROJECTIONS)) if asked.vectors else None,
    )


def attention_projections(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that make queries, keys and values in a model's last layer.

    Raises ValueError if it has none of these names: other architectures make all three in one.
    """
    last = decoder_layers(model)[-1]
    found = {name.rpartition(".")[2]: module for name, module in last.named_modules()}
    if missing := [name for name in PROJECTIONS if name not in found]:
        raise ValueError(f"the last layer of {type(model).__name__} has no {', '.join(missing)}")
    return {name: found[name] for name in PROJECTIONS}


def spans(batch: MicroBatch) -> list[Span]:
    """The rows of a micro batch, packed or padded, with their counted positions."""
    if batch.cu_seqlens is None:
        rows, length = batch.input_ids_BT.shape
        borders = [length * row for row in range(rows + 1)]
    else:
        borders = batch.cu_seqlens.tolist()
    positions_N = batch.positions_N
    found = []
    for start, stop in pairwise(borders):
        inside_N = (positions_N >= start) & (positions_N < stop)
        found.append(Span(start, stop, positions_N[inside_N] - start))
    return found


def _state_ears(model: Any, wanted: Sequence[int], states: dict[int, Tensor]) -> Iterator[RemovableHandle]:
    """Put what enters a decoder layer, the state after the layers before it, into `states`.

    `output_hidden_states` would keep all layers' alive at once. What leaves the last layer is not yet normed: the
    caller takes the decoder's own output instead.
    """
    for index, layer in enumerate(decoder_layers(model)):
        if index in wanted:
            yield layer.register_forward_pre_hook(_entering(states, index), with_kwargs=True)


def _entering(states: dict[int, Tensor], index: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_: nn.Module, positional: Any, named: Any) -> None:
        states[index] = positional[0] if positional else named["hidden_states"]

    return hook


def _vector_ears(model: nn.Module, vectors: dict[str, Tensor]) -> Iterator[RemovableHandle]:
    """Put what the last attention's projections give into `vectors`."""
    for name, module in attention_projections(model).items():
        yield module.register_forward_hook(_leaving(vectors, name))


def _leaving(vectors: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        vectors[name] = output

    return hook

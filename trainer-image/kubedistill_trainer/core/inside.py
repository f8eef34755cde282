"""What a forward pass shows of a model's inside: hidden states of some layers, and the last attention's vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

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
    seen: dict[str, Tensor] = {}
    with _listening(model, seen, asked.vectors):
        found = model.get_decoder()(**batch.model_inputs(), output_hidden_states=bool(asked.layers))
    return Inside(
        found.last_hidden_state,
        [batch.counted(found.hidden_states[layer]) for layer in asked.layers],
        Vectors(*(seen[name].flatten(0, 1) for name in PROJECTIONS)) if asked.vectors else None,
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


@contextmanager
def _listening(model: nn.Module, seen: dict[str, Tensor], wanted: bool) -> Iterator[None]:
    """Inside the block, what the projections give is put into `seen`."""

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    projections = attention_projections(model) if wanted else {}
    hooks = [module.register_forward_hook(keep(name)) for name, module in projections.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

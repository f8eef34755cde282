"""What a GGUF file calls the parts of a model, and which models it can hold.

An architecture's name tells llama.cpp which code to run, so a model that needs other code cannot be written under it.
Names of tensors come from the `gguf` package; what is here is what its writer cannot know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType
from numpy.typing import NDArray


@dataclass(frozen=True)
class Architecture:
    """A family of models that llama.cpp runs."""

    arch: MODEL_ARCH
    pairs_neighbours: bool
    """Rotary positions turn neighbouring channels together, where Transformers turns channel i with i + d/2: rows of
    the query's and the key's projection change places."""
    rope_types: tuple[str, ...] = ("default",)


ARCHITECTURES = {
    "llama": Architecture(MODEL_ARCH.LLAMA, pairs_neighbours=True, rope_types=("default", "llama3")),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, pairs_neighbours=False),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, pairs_neighbours=False),
}
"""By the `model_type` of Transformers."""

REFUSED = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
}
"""Settings of those families that llama.cpp's code for them does not have, and the values that are no setting."""


def objection(config: Any) -> str:
    """Why a model of this configuration cannot be written as GGUF; empty if it can."""
    known = ARCHITECTURES.get(config.model_type)
    if known is None:
        return f"a {config.model_type!r} cannot be written, only {', '.join(sorted(ARCHITECTURES))}"
    for name, harmless in REFUSED.items():
        value = getattr(config, name, None)
        if value not in harmless:
            return f"its configuration says {name}: {value}, which llama.cpp's {config.model_type} does not know"
    rope = rope_type(config)
    if rope not in known.rope_types:
        return (
            f"its positions are of type {rope!r}, and for a {config.model_type} only {known.rope_types} can be written"
        )
    return ""


def rope_type(config: Any) -> str:
    """How positions turn into angles."""
    return str((config.rope_parameters or {}).get("rope_type", "default"))


def head_size(config: Any) -> int:
    """Channels of one attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def describe(writer: GGUFWriter, config: Any) -> None:
    """Write the shape of a model."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def frequency_factors(config: Any) -> NDArray[np.float32] | None:
    """What each rotary frequency is divided by ([head_size / 2]); None: by nothing.

    Llama 3's stretched positions have no name in a GGUF file: their factors are a tensor, `rope_freqs.weight`. They are
    taken from Transformers' own frequencies.
    """
    if rope_type(config) == "default":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS[rope_type(config)](config, "cpu")
    factors: NDArray[np.float32] = (plain_frequencies(config) / stretched.double().numpy()).astype(np.float32)
    return factors


def plain_frequencies(config: Any) -> NDArray[np.float64]:
    """theta^(-2i/d) for each pair i of the d channels of a head."""
    size = head_size(config)
    return np.float64(config.rope_parameters["rope_theta"]) ** -(np.arange(0, size, 2) / size)


def in_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """A projection's rows in llama.cpp's order: of each head, channel i and i + d/2 beside each other."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)

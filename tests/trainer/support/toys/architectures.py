"""A small model of each common architecture, with what its kind is known for: windows, softcaps, tied embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

WINDOW = 5
"""Shorter than most rows of a test."""
LAYERS = 3
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 4.0],
}


def _config(kind: Callable[..., Any], **options: Any) -> Callable[[int], Any]:
    def of(vocabulary: int) -> Any:
        return kind(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            **options,
        )

    return of


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
ARCHITECTURES: dict[str, Callable[[int], Any]] = {
    "llama": _config(LlamaConfig),
    "smollm": _config(LlamaConfig, tie_word_embeddings=True),
    "mistral": _config(MistralConfig, sliding_window=WINDOW),
    "qwen2": _config(Qwen2Config, tie_word_embeddings=True),
    "qwen2-window": _config(Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen3": _config(Qwen3Config, head_dim=16, tie_word_embeddings=True),
    "phi3": _config(Phi3Config, sliding_window=WINDOW),
    "phi4-mini": _config(
        Phi3Config,
        tie_word_embeddings=True,
        sliding_window=200,
        rope_parameters=LONG_ROPE,
        original_max_position_embeddings=64,
    ),
    "gemma2": _config(Gemma2Config, **GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=2.0),
    "gemma3": _config(
        Gemma3TextConfig, **GEMMA, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
}


def build(architecture: str, vocabulary: int) -> Any:
    """The model with random weights, the same each time. Norms and biases are random as well: 1 and 0 hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](vocabulary), dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                ones = "norm" in name and not architecture.startswith("gemma")  # Gemma's norms scale by 1 + weight
                torch.nn.init.normal_(weight, 1.0 if ones else 0.0, 0.2)
    return model.eval()

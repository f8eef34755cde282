"""Small models and plain references. Everything here is exact and slow where the core is fast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.signals import Supervision, Text, TopK, top_k

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for one another


@pytest.fixture
def supervise_with() -> Callable[..., Supervision]:
    """A teacher of given logits that wrote given tokens (by default: drawn from it)."""

    def of(logits_NV: Tensor, k: int, target_ids_N: Tensor | None = None) -> Supervision:
        if target_ids_N is None:
            draw = torch.Generator().manual_seed(1)
            target_ids_N = torch.multinomial(logits_NV.double().softmax(-1), 1, generator=draw).squeeze(-1)
        return Supervision(target_ids_N, top_k(logits_NV, target_ids_N, k))

    return of


@pytest.fixture
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    def build(layers: int = 3, vocabulary: int = 61, seed: int = 0, **options: object) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        shape: dict[str, object] = {
            "vocab_size": vocabulary,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.3,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "tie_word_embeddings": True,
        }
        config = LlamaConfig(**(shape | options))
        model = LlamaForCausalLM(config).eval()
        model.set_attn_implementation(attention.install())
        return model

    return build


@pytest.fixture
def some_examples() -> Callable[..., list[Example]]:
    """Rows of unequal length; a row's tokens and signal follow from its number, so a mix-up shows."""

    def build(lengths: tuple[int, ...], k: int = 4, vocabulary: int = 61) -> list[Example]:
        return [_example(number, length, k, vocabulary) for number, length in enumerate(lengths)]

    return build


def _example(number: int, length: int, k: int, vocabulary: int) -> Example:
    draw = torch.Generator().manual_seed(number)
    ids_T = torch.randint(2, vocabulary, (length,), generator=draw)
    mask_T = torch.arange(length) >= max(1, length // 3)
    targets_N = ids_T[mask_T]
    logits_NV = 3 * torch.randn(len(targets_N), vocabulary, generator=draw)
    signal: TopK | Text = top_k(logits_NV, targets_N, k) if k else Text()
    return Example(f"row-{number}", ids_T, mask_T, signal)

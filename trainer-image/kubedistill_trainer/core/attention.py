"""Attention over packed rows: each row sees itself only, and no work is done for padding or for foreign rows.

A block-diagonal mask gives the same numbers at the cost of attending over the whole line, which on a CPU is most of a
step. Here the rows are attended one after the other (CPU; any device in float32), or by torch's own variable-length
kernel (CUDA in half precision). Where flash-attn is installed, transformers' "flash_attention_2" takes the very same
micro batch. Without borders (generation, padded batches) it is transformers' own "sdpa".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "kubedistill_packed"
"""The name under which transformers knows this attention, once `install()` was called."""


def install() -> str:
    """Make the attention known to transformers; returns its name, for `attn_implementation=`."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _mask)
    return PACKED


def packed_attention(
    module: torch.nn.Module,
    query_BATD: Tensor,
    key_BATD: Tensor,
    value_BATD: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within the borders `cu_seq_lens_q` of one packed line, B = 1; without borders, sdpa.

    A is the number of heads, D their size; keys and values may have fewer heads (grouped queries). Returns
    [B, T, A, D], as transformers expects it.

    Raises ValueError for a sliding window over rows that are longer than it, which would be computed wrong.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query_BATD, key_BATD, value_BATD, attention_mask, **options)  # type: ignore[no-any-return]
    longest = int(options["max_length_q"])
    if (window := options.get("sliding_window")) and window < longest:
        raise ValueError(
            f"a row of {longest} tokens exceeds the model's sliding window of {window}: set packing: false"
        )
    parts = (query_BATD, key_BATD, value_BATD)
    scale = options.get("scaling")
    if query_BATD.is_cuda and query_BATD.dtype in (torch.float16, torch.bfloat16):
        return _on_gpu(*parts, cu_seq_lens_q, longest, scale)[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(torch.split(part, lengths, dim=2) for part in parts), strict=True)
    return torch.cat([_one_row(row, scale) for row in rows], dim=2).transpose(1, 2), None


def _one_row(parts: tuple[Tensor, Tensor, Tensor], scale: float | None) -> Tensor:
    query, key, value = parts
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


def _on_gpu(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float | None) -> Tensor:
    query_TAD, key_TAD, value_TAD = (part[0].transpose(0, 1) for part in (query, key, value))
    mixed_TAD = varlen_attn(
        query_TAD,
        key_TAD,
        value_TAD,
        cu_seq_q=borders,
        cu_seq_k=borders,
        max_q=longest,
        max_k=longest,
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    assert isinstance(mixed_TAD, Tensor)  # a pair only where auxiliary outputs are asked for
    return mixed_TAD


def _mask(q_length: int, kv_length: int, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """No mask where causality says it all, as it does for packed rows; else the one that sdpa would get."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **options)  # type: ignore[no-any-return]

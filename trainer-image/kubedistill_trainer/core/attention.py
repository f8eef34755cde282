"""Attention over packed rows: each row sees itself only, and no work is done for padding or for foreign rows.

A block-diagonal mask gives the same numbers at the cost of attending over the whole line, which on a CPU is most of a
step. Here the rows are attended one after the other (CPU; any device in float32), or by torch's own variable-length
kernel (CUDA in half precision). Without borders (generation, padded batches) it is transformers' own "sdpa".

Two things that "sdpa" leaves to others are done here, because the numbers are wrong without them: a sliding window
where no mask says it, and the softcap of Gemma 2's scores, which no fused kernel of torch has. A layer with a softcap
holds the scores of one row at a time, heads x length^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kubedistill_trainer.core.precision import product_dtype

PACKED = "kubedistill_packed"
"""The name under which transformers knows this attention, once `install()` was called."""


def install() -> str:
    """Make the attention known to transformers; returns its name, for `attn_implementation=`."""
    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _mask)
    return PACKED


@dataclass(frozen=True)
class _Scores:
    """How scores are made of queries and keys, and which of them count."""

    scale: float | None
    """None: 1 / sqrt(D)."""
    window: int | None
    """A token sees so many, itself included, and none that is further back."""
    softcap: float | None
    """Scores become softcap * tanh(scores / softcap)."""

    def reach(self, length: int) -> int | None:
        """The window, where a row of this length feels it."""
        return self.window if self.window and self.window < length else None


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

    Raises ValueError for attention sinks, which would be left out.
    """
    if options.get("s_aux") is not None:
        raise ValueError("attention sinks are not built")
    how = _Scores(options.get("scaling"), options.get("sliding_window"), options.get("softcap"))
    parts = (query_BATD, key_BATD, value_BATD)
    if cu_seq_lens_q is None:
        whole = attention_mask is None and query_BATD.shape[2] == key_BATD.shape[2]
        if how.softcap is None and not (whole and how.reach(query_BATD.shape[2])):
            return sdpa_attention_forward(module, *parts, attention_mask, **options)  # type: ignore[no-any-return]
        return _one_row(parts, how, attention_mask).transpose(1, 2), None
    longest = int(options["max_length_q"])
    kind = product_dtype(query_BATD)  # torch's own attention obeys autocast, its variable-length kernel does not
    if how.softcap is None and query_BATD.is_cuda and kind in (torch.float16, torch.bfloat16):
        return _on_gpu(parts, kind, cu_seq_lens_q, longest, how)[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    rows = zip(*(torch.split(part, lengths, dim=2) for part in parts), strict=True)
    return torch.cat([_one_row(row, how) for row in rows], dim=2).transpose(1, 2), None


def _one_row(parts: tuple[Tensor, Tensor, Tensor], how: _Scores, mask: Tensor | None = None) -> Tensor:
    """[B, A, T, D]. `mask` is true where a token is seen; None: causal, or all where keys were there before."""
    query, key, value = parts
    whole = query.shape[2] == key.shape[2]
    if mask is None and whole and (how.softcap is not None or how.reach(query.shape[2])):
        mask = _band(query.shape[2], how.reach(query.shape[2]), query.device)
    if how.softcap is not None:
        return _capped(parts, how, mask)
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and whole, scale=how.scale, enable_gqa=True
    )


def _capped(parts: tuple[Tensor, Tensor, Tensor], how: _Scores, mask: Tensor | None) -> Tensor:
    """With scores that are held back (Gemma 2, arXiv:2408.00118, section 2), in full."""
    query, key, value = parts
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    scale = query.shape[-1] ** -0.5 if how.scale is None else how.scale
    assert how.softcap is not None, "asked above"
    scores_BATT = how.softcap * torch.tanh(query @ key.transpose(2, 3) * scale / how.softcap)
    if mask is not None:
        scores_BATT = scores_BATT.masked_fill(~mask, torch.finfo(scores_BATT.dtype).min)
    return scores_BATT.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _band(length: int, window: int | None, device: torch.device) -> Tensor:
    """[T, T], true where a token (down) sees another (across)."""
    seen_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return seen_TT if window is None else seen_TT.triu(1 - window)


def _on_gpu(
    parts: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype, borders: Tensor, longest: int, how: _Scores
) -> Tensor:
    query_TAD, key_TAD, value_TAD = (part[0].transpose(0, 1).to(dtype) for part in parts)
    reach = how.reach(longest)
    mixed_TAD = varlen_attn(
        query_TAD,
        key_TAD,
        value_TAD,
        cu_seq_q=borders,
        cu_seq_k=borders,
        max_q=longest,
        max_k=longest,
        scale=how.scale,
        window_size=(-1 if reach is None else reach - 1, 0),  # so many before the token itself; none after it: causal
        enable_gqa=True,
    )
    assert isinstance(mixed_TAD, Tensor)  # a pair only where auxiliary outputs are asked for
    return mixed_TAD


def _mask(q_length: int, kv_length: int, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """No mask where causality and the window say it all, as they do for packed rows; else the one sdpa would get."""
    if attention_mask is None and q_length == kv_length:
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, **options)  # type: ignore[no-any-return]

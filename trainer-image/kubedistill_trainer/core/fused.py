"""The two passes over a chunk of logits as Triton kernels, for devices that are bound by memory.

Way in, one read: of each row the largest logit, its token, and the sum of exp(logit - largest). Way out, one read and
one write: the gradient over the logits it belongs to. Plain torch makes eight passes of the same, most of them over
float32. Logits stay in the type that the matrix product gave; each value is computed in float32.

A logit of -inf is a token that was taken out (a candidate): it has no part in the sums, and a gradient of 0.
With TRITON_INTERPRET=1 the kernels run on a CPU, slowly: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from triton import language as tl

from kubedistill_trainer.core.head import Head

BLOCK, WARPS = 4096, 8
"""Logits that a program looks at at once, and the warps that share them."""


def peaks_and_sums(logits_nV: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: its largest logit [n], the token that has it [n], and sum exp(logit - largest) [n].

    `logits_nV` are products of hidden states and weights; bias, scale and softcap are applied here, in passing. A row
    of nothing but -inf has -inf, any token, and 0.
    """
    count, vocabulary = _shape(logits_nV, head)
    peak_n, sum_n = (torch.empty(count, device=logits_nV.device) for _ in range(2))
    top_ids_n = torch.empty(count, device=logits_nV.device, dtype=torch.int64)
    if count:
        _peaks_and_sums[(count,)](
            logits_nV, *_head(head, logits_nV), peak_n, top_ids_n, sum_n, vocabulary, BLOCK=BLOCK, num_warps=WARPS
        )
    return peak_n, top_ids_n, sum_n


def gradient_(logits_nV: Tensor, head: Head, peak_n: Tensor, share_n: Tensor) -> Tensor:
    """share * exp(logit - peak), by the products of hidden states and weights, written over `logits_nV`."""
    count, vocabulary = _shape(logits_nV, head)
    if count:
        grid = (count, triton.cdiv(vocabulary, BLOCK))
        _gradient[grid](logits_nV, *_head(head, logits_nV), peak_n, share_n, vocabulary, BLOCK=BLOCK, num_warps=WARPS)
    return logits_nV


def _shape(logits_nV: Tensor, head: Head) -> tuple[int, int]:
    """n and V of logits and bias that lie in memory as the kernels take them."""
    assert logits_nV.is_contiguous()
    assert head.bias_V is None or head.bias_V.is_contiguous()
    return logits_nV.shape[0], logits_nV.shape[1]


def _head(head: Head, logits_nV: Tensor) -> tuple[Any, ...]:
    """Bias (anything, where there is none), scale and softcap (0: none), as the kernels take them."""
    bias_V = logits_nV if head.bias_V is None else head.bias_V.detach()
    return bias_V, float(head.scale), float(head.softcap or 0.0), head.bias_V is not None, head.softcap is not None


@triton.jit  # type: ignore[untyped-decorator]
def _shaped(product, bias, places, inside, scale, softcap, has_bias: tl.constexpr, has_softcap: tl.constexpr):  # type: ignore[no-untyped-def]
    """Logits of products, float32; see `Head`."""
    logit = product.to(tl.float32)
    if has_bias:
        logit += tl.load(bias + places, mask=inside, other=0.0).to(tl.float32)
    logit *= scale
    if has_softcap:
        logit = softcap * (2.0 * tl.sigmoid(2.0 * logit / softcap) - 1.0)  # tanh
        logit = tl.where(product == float("-inf"), float("-inf"), logit)
    return logit


@triton.jit  # type: ignore[untyped-decorator]
def _peaks_and_sums(  # type: ignore[no-untyped-def]
    products,
    bias,
    scale,
    softcap,
    has_bias: tl.constexpr,
    has_softcap: tl.constexpr,
    peak_n,
    top_ids_n,
    sum_n,
    vocabulary,
    BLOCK: tl.constexpr,
):
    """One program a row. Each lane keeps a maximum and a sum of its own; they meet at the end."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    best = lanes
    for start in range(0, vocabulary, BLOCK):
        places = start + lanes
        inside = places < vocabulary
        product = tl.load(products + row * vocabulary + places, mask=inside, other=float("-inf"))
        logit = _shaped(product, bias, places, inside, scale, softcap, has_bias, has_softcap)
        higher = tl.maximum(peak, logit)
        total *= tl.where(peak == higher, 1.0, tl.exp(peak - higher))
        total += tl.where(logit == float("-inf"), 0.0, tl.exp(logit - higher))
        best = tl.where(logit > peak, places, best)
        peak = higher
    highest = tl.max(peak, axis=0)
    scaled = tl.where(total == 0.0, 0.0, total * tl.exp(peak - highest))  # 0: nothing but -inf; NaN stays NaN
    tl.store(peak_n + row, highest)
    tl.store(sum_n + row, tl.sum(scaled, axis=0))
    tl.store(top_ids_n + row, tl.min(tl.where(peak == highest, best, vocabulary), axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    products,
    bias,
    scale,
    softcap,
    has_bias: tl.constexpr,
    has_softcap: tl.constexpr,
    peak_n,
    share_n,
    vocabulary,
    BLOCK: tl.constexpr,
):
    """One program a row and block."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < vocabulary
    product = tl.load(products + row * vocabulary + places, mask=inside, other=float("-inf"))
    logit = _shaped(product, bias, places, inside, scale, softcap, has_bias, has_softcap)
    slope = tl.load(share_n + row) * tl.exp(logit - tl.load(peak_n + row)) * scale
    if has_softcap:
        slope *= 1.0 - (logit / softcap) * (logit / softcap)
    slope = tl.where(product == float("-inf"), 0.0, slope)
    tl.store(products + row * vocabulary + places, slope.to(products.dtype.element_ty), mask=inside)

"""The tokens of a chunk of logits that are no candidates: summed up, and the gradient by each of them.

`_PlainTail` is torch, for any device and type. `_FusedTail` is two kernels (`fused`), for GPUs. Both write over the
products of hidden states and weights that they are given. n counts positions, as in `chunked`.
"""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from kubedistill_trainer.core.head import Head

log = logging.getLogger("kubedistill")


class Tail(Protocol):
    """The tokens of a chunk that are no candidates: their largest logit, their sum, and the gradient by them."""

    peak_n: Tensor
    """Their largest logit; -inf where there are none."""
    top_ids_n: Tensor
    finite_n: Tensor
    """The same, or 0 where there are none."""
    sum_n: Tensor
    """sum exp(logit - finite)."""

    def gradient(self, share_n: Tensor) -> Tensor:
        """share * exp(logit - finite) by the products, [n, V], 0 for candidates. Good for one call."""


def tail_of(products_nV: Tensor, ids_nK: Tensor, head: Head) -> Tail:
    """The tail of products of hidden states and weights, without the candidates `ids_nK`; the products are consumed."""
    kernels = kernels_for(products_nV.device, products_nV.dtype)
    if kernels is None:
        return _PlainTail(products_nV, ids_nK, head)
    return _FusedTail(products_nV, ids_nK, head, kernels)


class _PlainTail:
    """In plain torch; the logits are float32 (or float64)."""

    def __init__(self, products_nV: Tensor, ids_nK: Tensor, head: Head) -> None:
        self._head = head
        bias_V = None if head.bias_V is None else head.bias_V.detach()
        logits_nV, self._capped_nV = _shaped(_at_least_float32(products_nV), bias_V, head)
        self.peak_n, self.top_ids_n = logits_nV.scatter_(-1, ids_nK, -torch.inf).max(-1)
        self.finite_n = torch.where(self.peak_n > -torch.inf, self.peak_n, 0.0)
        self._exp_nV = logits_nV.sub_(self.finite_n[:, None]).exp_()
        self.sum_n = self._exp_nV.sum(-1)

    def gradient(self, share_n: Tensor) -> Tensor:
        gradient_nV = self._exp_nV.mul_(share_n[:, None])
        if self._capped_nV is not None:
            gradient_nV *= 1.0 - self._capped_nV.square()
        return gradient_nV if self._head.scale == 1.0 else gradient_nV.mul_(self._head.scale)


class _FusedTail:
    """In two kernels; nothing of size V is held but the products."""

    def __init__(self, products_nV: Tensor, ids_nK: Tensor, head: Head, kernels: Any) -> None:
        self._head = head
        self._kernels = kernels
        self._products_nV = products_nV.scatter_(-1, ids_nK, -torch.inf)
        self.peak_n, self.top_ids_n, self.sum_n = self._kernels.peaks_and_sums(self._products_nV, head)
        self.finite_n = torch.where(self.peak_n > -torch.inf, self.peak_n, 0.0)

    def gradient(self, share_n: Tensor) -> Tensor:
        gradient_nV: Tensor = self._kernels.gradient_(self._products_nV, self._head, self.finite_n, share_n)
        return gradient_nV


def kernels_for(device: torch.device, dtype: torch.dtype) -> Any:
    """The module of kernels where they can run, None elsewhere: on a CPU, in float64, or without Triton."""
    if dtype == torch.float64 or not (device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    return _fused()


@cache
def _fused() -> Any:
    """Imported only where it is used: Triton is not needed on a CPU."""
    try:
        from kubedistill_trainer.core import fused
    except ImportError as error:
        log.warning("the loss runs without its kernels, slower and in more memory: %s", error)
        return None
    return fused


def picked(products_nV: Tensor, ids_nK: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """The logits of some tokens, and their slopes by the products."""
    bias_nK = None if head.bias_V is None else head.bias_V.detach()[ids_nK]
    logits_nK, capped_nK = _shaped(_at_least_float32(products_nV.gather(-1, ids_nK)), bias_nK, head)
    slopes_nK = torch.full_like(logits_nK, head.scale)
    return logits_nK, slopes_nK if capped_nK is None else slopes_nK * (1.0 - capped_nK.square())


def _shaped(products: Tensor, bias: Tensor | None, head: Head) -> tuple[Tensor, Tensor | None]:
    """Logits of products, in their place, and the tanh of the softcap."""
    if bias is not None:
        products += bias
    if head.scale != 1.0:
        products *= head.scale
    if head.softcap is None:
        return products, None
    capped = products.div_(head.softcap).tanh_()
    return capped * head.softcap, capped


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()

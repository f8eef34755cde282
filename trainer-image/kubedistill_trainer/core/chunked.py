"""From hidden states to a loss without ever holding [N, V] logits.

A loss needs of the student's distribution only the logprobs of K candidates, of the tail and of the written token
(see `signals`). So the vocabulary projection goes through the positions in chunks, each in one buffer:

    logits -> candidates out, -inf in their place -> exp -> row sums -> loss on [n, K] -> gradient, in the same buffer

The gradient is taken while the chunk's logits are there; nothing is computed twice, and nothing of size V outlives
its chunk but the gradient of the head itself. Taking the candidates out before summing makes the tail a sum over its
own tokens: exact where log(1 - Q) would cancel. Only counted positions come in; prompts and padding never meet the
head.

In this module n counts the positions of one chunk, N those of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import Loss
from kubedistill_trainer.core.precision import product_dtype
from kubedistill_trainer.core.signals import NO_TOKEN, Logprobs, LossSum, Supervision

CHUNK_BYTES = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Size of the logits buffer. Far below, matrix products get thin, and on a GPU the head's gradient is read and written
for each of them; above, nothing gets faster."""


class View(NamedTuple):
    """What is read off the student without a gradient."""

    logprobs: Logprobs
    top_ids_N: Tensor
    """The student's likeliest token."""


def chunked_loss(
    hidden_NH: Tensor,
    head: Head,
    supervision: Supervision,
    loss: Loss,
    *,
    chunk_bytes: int | None = None,
) -> LossSum:
    """The loss of a student with these hidden states, summed over the N positions.

    Equal to projecting everything at once, whatever the chunk length. Differentiable once, in the hidden states and
    the head's weight and bias. Losses and the head's gradient are float32 whatever the model computes in (float64 if
    the hidden states are).

    Raises ValueError if the teacher names a token that the head does not have.
    """
    _check_ids(supervision, head.vocabulary)
    gradients = _Gradients.wanted(hidden_NH, head)
    total = LossSum(_zero(hidden_NH), 0)
    product = product_dtype(hidden_NH)
    with torch.no_grad(), torch.autocast(hidden_NH.device.type, enabled=False):
        weight_VH = head.weight_VH.to(product)
        for rows in _chunks(len(hidden_NH), head, hidden_NH, chunk_bytes):
            hidden_nH = hidden_NH[rows].to(weight_VH.dtype)
            projected = _project(hidden_nH, weight_VH, head, supervision[rows])
            part, slopes = _value_and_slopes(loss, projected.logprobs, supervision[rows])
            total = total + part
            if gradients:
                raw_nV = _gradient_of_projection(projected, slopes, supervision.target_ids_N[rows])
                gradients.add(rows, raw_nV, hidden_nH, weight_VH)
    if not gradients:
        return total
    value = _WithGradients.apply(total.total, gradients, hidden_NH, head.weight_VH, head.bias_V)  # type: ignore[no-untyped-call]
    return LossSum(value, total.count, total.parts)


@torch.no_grad()
def student_view(hidden_NH: Tensor, head: Head, supervision: Supervision, *, chunk_bytes: int | None = None) -> View:
    """The student's logprobs in the classes of the supervision, and its own first choice. For evaluation."""
    _check_ids(supervision, head.vocabulary)
    product = product_dtype(hidden_NH)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        weight_VH = head.weight_VH.to(product)
        views = []
        for rows in _chunks(len(hidden_NH), head, hidden_NH, chunk_bytes):
            projected = _project(hidden_NH[rows].to(weight_VH.dtype), weight_VH, head, supervision[rows])
            views.append(View(projected.logprobs, projected.top_ids_n))  # the rest is of size V, and goes
    return View(
        Logprobs(
            torch.cat([view.logprobs.topk_NK for view in views]),
            torch.cat([view.logprobs.tail_N for view in views]),
            torch.cat([view.logprobs.target_N for view in views]),
        ),
        torch.cat([view.top_ids_N for view in views]),
    )


class _Projected(NamedTuple):
    """The positions of one chunk in the classes of their supervision, and what the way back needs."""

    logprobs: Logprobs
    ids_nK: Tensor
    top_ids_n: Tensor
    tail: _Tail
    candidate_slopes_nK: Tensor
    """Of the candidates' logits by the products of hidden states and weights."""
    target_slopes_n: Tensor


def _project(hidden_nH: Tensor, weight_VH: Tensor, head: Head, supervision: Supervision) -> _Projected:
    products_nV = hidden_nH @ weight_VH.T
    ids_nK, absent_nK = supervision.candidates, supervision.candidates == NO_TOKEN
    ids_nK = torch.where(absent_nK, ids_nK[:, :1], ids_nK)  # the first candidate twice: harmless in all that follows
    topk_nK, candidate_slopes_nK = _picked(products_nV, ids_nK, head)
    topk_nK = topk_nK.masked_fill(absent_nK, -torch.inf)
    target_n1, target_slopes_n1 = _picked(products_nV, supervision.target_ids_N[:, None], head)
    target_n = target_n1.squeeze(-1)

    kernels = _kernels(products_nV)
    tail = _Tail(products_nV, ids_nK, head) if kernels is None else _FusedTail(products_nV, ids_nK, head, kernels)
    top_ids_n = tail.top_ids_n
    if ids_nK.shape[-1]:
        best_n, best = topk_nK.max(-1)
        top_ids_n = torch.where(best_n > tail.peak_n, ids_nK.gather(-1, best[:, None]).squeeze(-1), top_ids_n)
    tail_n = tail.finite_n + tail.sum_n.log()
    total_n = torch.logaddexp(topk_nK.logsumexp(-1), tail_n) if ids_nK.shape[-1] else tail_n
    logprobs = Logprobs(topk_nK - total_n[:, None], tail_n - total_n, target_n - total_n)
    return _Projected(logprobs, ids_nK, top_ids_n, tail, candidate_slopes_nK, target_slopes_n1.squeeze(-1))


def _picked(products_nV: Tensor, ids_nK: Tensor, head: Head) -> tuple[Tensor, Tensor]:
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


class _Tail:
    """The tokens of a chunk that are no candidates: their largest logit, their sum, and the gradient by them."""

    peak_n: Tensor
    """Their largest logit; -inf where there are none."""
    top_ids_n: Tensor
    finite_n: Tensor
    """The same, or 0 where there are none."""
    sum_n: Tensor
    """sum exp(logit - finite)."""

    def __init__(self, products_nV: Tensor, ids_nK: Tensor, head: Head) -> None:
        self._head = head
        bias_V = None if head.bias_V is None else head.bias_V.detach()
        logits_nV, self._capped_nV = _shaped(_at_least_float32(products_nV), bias_V, head)
        self.peak_n, self.top_ids_n = logits_nV.scatter_(-1, ids_nK, -torch.inf).max(-1)
        self.finite_n = torch.where(self.peak_n > -torch.inf, self.peak_n, 0.0)
        self._exp_nV = logits_nV.sub_(self.finite_n[:, None]).exp_()
        self.sum_n = self._exp_nV.sum(-1)

    def gradient(self, share_n: Tensor) -> Tensor:
        """share * exp(logit - finite) by the products, [n, V], 0 for candidates. Good for one call."""
        gradient_nV = self._exp_nV.mul_(share_n[:, None])
        if self._capped_nV is not None:
            gradient_nV *= 1.0 - self._capped_nV.square()
        return gradient_nV if self._head.scale == 1.0 else gradient_nV.mul_(self._head.scale)


class _FusedTail(_Tail):
    """The same on a GPU, in two kernels; nothing of size V is held but the products."""

    def __init__(self, products_nV: Tensor, ids_nK: Tensor, head: Head, kernels: Any) -> None:
        self._head = head
        self._kernels = kernels
        self._products_nV = products_nV.scatter_(-1, ids_nK, -torch.inf)
        self.peak_n, self.top_ids_n, self.sum_n = kernels.peaks_and_sums(self._products_nV, head)
        self.finite_n = torch.where(self.peak_n > -torch.inf, self.peak_n, 0.0)

    def gradient(self, share_n: Tensor) -> Tensor:
        gradient_nV: Tensor = self._kernels.gradient_(self._products_nV, self._head, self.finite_n, share_n)
        return gradient_nV


def _kernels(products_nV: Tensor) -> Any:
    """The module of kernels, where they can run; None elsewhere: on a CPU, in float64, or without Triton."""
    if not products_nV.is_cuda and "TRITON_INTERPRET" not in os.environ:
        return None  # and Triton is not even imported
    try:
        from kubedistill_trainer.core import fused
    except ImportError:
        return None
    return fused if fused.usable(products_nV) else None


def _value_and_slopes(loss: Loss, logprobs: Logprobs, supervision: Supervision) -> tuple[LossSum, tuple[Tensor, ...]]:
    """The loss of a chunk and its derivatives by the candidates', the tail's and the target's logprob."""
    leaves = [value.requires_grad_() for value in (logprobs.topk_NK, logprobs.tail_N, logprobs.target_N)]
    with torch.enable_grad():
        part = loss(Logprobs(*leaves), supervision)
    slopes = torch.autograd.grad(part.total, leaves, allow_unused=True, materialize_grads=True)
    return LossSum(part.total.detach(), part.count, part.parts), slopes


def _gradient_of_projection(projected: _Projected, slopes: tuple[Tensor, ...], target_ids_n: Tensor) -> Tensor:
    """dL/d(weight @ hidden), [n, V], written over the projected tail.

    With G the sum of all slopes of a position and m the mass of its tail:
    a token of the tail gets (its share of the tail) * (dL/dtail - m G), a candidate dL/dq_k - q_k G, and the written
    token dL/dtarget on top.
    """
    by_topk_nK, by_tail_n, by_target_n = slopes
    total_n = by_topk_nK.sum(-1) + by_tail_n + by_target_n
    mass_n, norm_n = projected.logprobs.tail_N.detach().exp(), projected.tail.sum_n
    gradient_nV = projected.tail.gradient(torch.where(norm_n > 0, (by_tail_n - mass_n * total_n) / norm_n, 0.0))
    by_candidate_nK = by_topk_nK - projected.logprobs.topk_NK.detach().exp() * total_n[:, None]
    by_candidate_nK *= projected.candidate_slopes_nK
    by_written_n = by_target_n * projected.target_slopes_n
    gradient_nV.scatter_add_(-1, projected.ids_nK, by_candidate_nK.to(gradient_nV.dtype))
    return gradient_nV.scatter_add_(-1, target_ids_n[:, None], by_written_n[:, None].to(gradient_nV.dtype))


@dataclass
class _Gradients:
    """The gradients of the summed loss, gathered chunk by chunk; None where nobody asked."""

    hidden_NH: Tensor | None
    weight_VH: Tensor | None
    bias_V: Tensor | None

    @classmethod
    def wanted(cls, hidden_NH: Tensor, head: Head) -> _Gradients:
        def zeros(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad or not torch.is_grad_enabled():
                return None
            return torch.zeros_like(tensor, dtype=_zero(tensor).dtype, memory_format=torch.contiguous_format)

        return cls(zeros(hidden_NH), zeros(head.weight_VH), zeros(head.bias_V))

    def __bool__(self) -> bool:
        return not (self.hidden_NH is None and self.weight_VH is None and self.bias_V is None)

    def add(self, rows: slice, raw_nV: Tensor, hidden_nH: Tensor, weight_VH: Tensor) -> None:
        product_nV = raw_nV.to(weight_VH.dtype)
        if self.hidden_NH is not None:
            self.hidden_NH[rows] = product_nV @ weight_VH
        if self.weight_VH is not None:
            if self.weight_VH.dtype == product_nV.dtype:
                self.weight_VH.addmm_(product_nV.T, hidden_nH)
            elif product_nV.is_cuda:  # in one pass over the gradient, and without rounding in between
                torch.addmm(self.weight_VH, product_nV.T, hidden_nH, out_dtype=torch.float32, out=self.weight_VH)
            else:
                self.weight_VH += product_nV.T @ hidden_nH
        if self.bias_V is not None:
            self.bias_V += raw_nV.sum(0)


class _WithGradients(torch.autograd.Function):
    """Ties a loss that knows its gradients to the tensors they belong to."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: _Gradients, *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in inputs]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place below: good for one backward pass
        if gradients is None:
            raise RuntimeError("the gradients of a chunked loss were used already; run the forward pass again")
        held = (gradients.hidden_NH, gradients.weight_VH, gradients.bias_V)
        scaled = (
            None if gradient is None else gradient.mul_(by_value).to(dtype)
            for gradient, dtype in zip(held, ctx.dtypes, strict=True)
        )
        return (None, None, *scaled)


def _chunks(count: int, head: Head, hidden_NH: Tensor, chunk_bytes: int | None) -> Iterator[slice]:
    """Equal chunks that keep the logits buffer within its size; one empty chunk for no positions at all."""
    size = CHUNK_BYTES.get(hidden_NH.device.type, CHUNK_BYTES["cpu"]) if chunk_bytes is None else chunk_bytes
    held = product_dtype(hidden_NH) if hidden_NH.is_cuda else _zero(hidden_NH).dtype
    largest = max(1, size // (head.vocabulary * held.itemsize))
    chunks = max(1, -(-count // largest))
    bounds = [count * i // chunks for i in range(chunks + 1)]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _check_ids(supervision: Supervision, vocabulary: int) -> None:
    """An id beyond the head would read another row's logit on some devices; one look here is cheap."""
    for name, ids in (("target", supervision.target_ids_N), ("candidate", supervision.candidates)):
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise ValueError(f"{name} token {int(ids.max())} is outside the student's vocabulary of {vocabulary}")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

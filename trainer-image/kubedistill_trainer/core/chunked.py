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

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import Loss
from kubedistill_trainer.core.signals import NO_TOKEN, Logprobs, LossSum, Supervision

CHUNK_BYTES = 128 * 2**20
"""Size of the logits buffer. Far below, matrix products get thin; above, nothing gets faster."""


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
    chunk_bytes: int = CHUNK_BYTES,
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
    product = _product_dtype(hidden_NH)
    with torch.no_grad(), torch.autocast(hidden_NH.device.type, enabled=False):
        weight_VH = head.weight_VH.to(product)
        for rows in _chunks(len(hidden_NH), head, hidden_NH, chunk_bytes):
            hidden_nH = hidden_NH[rows].to(weight_VH.dtype)
            projected = _project(hidden_nH, weight_VH, head, supervision[rows])
            part, slopes = _value_and_slopes(loss, projected.logprobs, supervision[rows])
            total = total + part
            if gradients:
                raw_nV = _gradient_of_projection(projected, slopes, supervision.target_ids_N[rows], head)
                gradients.add(rows, raw_nV, hidden_nH, weight_VH)
    if not gradients:
        return total
    value = _WithGradients.apply(total.total, gradients, hidden_NH, head.weight_VH, head.bias_V)  # type: ignore[no-untyped-call]
    return LossSum(value, total.count, total.parts)


@torch.no_grad()
def student_view(hidden_NH: Tensor, head: Head, supervision: Supervision, *, chunk_bytes: int = CHUNK_BYTES) -> View:
    """The student's logprobs in the classes of the supervision, and its own first choice. For evaluation."""
    _check_ids(supervision, head.vocabulary)
    product = _product_dtype(hidden_NH)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        weight_VH = head.weight_VH.to(product)
        chunks = [
            _project(hidden_NH[rows].to(weight_VH.dtype), weight_VH, head, supervision[rows])
            for rows in _chunks(len(hidden_NH), head, hidden_NH, chunk_bytes)
        ]
    return View(
        Logprobs(
            torch.cat([chunk.logprobs.topk_NK for chunk in chunks]),
            torch.cat([chunk.logprobs.tail_N for chunk in chunks]),
            torch.cat([chunk.logprobs.target_N for chunk in chunks]),
        ),
        torch.cat([chunk.top_ids_n for chunk in chunks]),
    )


class _Projected(NamedTuple):
    """The positions of one chunk in the classes of their supervision, and what the way back needs."""

    logprobs: Logprobs
    ids_nK: Tensor
    top_ids_n: Tensor
    tail_nV: Tensor
    """exp(z - largest z of the tail) for tokens of the tail, 0 for candidates. The way back overwrites it."""
    softcap_slope_nV: Tensor | None


def _project(hidden_nH: Tensor, weight_VH: Tensor, head: Head, supervision: Supervision) -> _Projected:
    logits_nV, softcap_slope_nV = _logits(hidden_nH, weight_VH, head)
    ids_nK, absent_nK = supervision.candidates, supervision.candidates == NO_TOKEN
    ids_nK = torch.where(absent_nK, ids_nK[:, :1], ids_nK)  # the first candidate twice: harmless in all that follows
    topk_nK = logits_nV.gather(-1, ids_nK).masked_fill(absent_nK, -torch.inf)
    target_n = logits_nV.gather(-1, supervision.target_ids_N[:, None]).squeeze(-1)

    peak_n, top_ids_n = logits_nV.scatter_(-1, ids_nK, -torch.inf).max(-1)
    if ids_nK.shape[-1]:
        best_n, best = topk_nK.max(-1)
        top_ids_n = torch.where(best_n > peak_n, ids_nK.gather(-1, best[:, None]).squeeze(-1), top_ids_n)
    finite_n = torch.where(peak_n > -torch.inf, peak_n, 0.0)  # no tail at all at K = V
    tail_nV = logits_nV.sub_(finite_n[:, None]).exp_()
    tail_n = finite_n + tail_nV.sum(-1).log()
    total_n = torch.logaddexp(topk_nK.logsumexp(-1), tail_n) if ids_nK.shape[-1] else tail_n
    logprobs = Logprobs(topk_nK - total_n[:, None], tail_n - total_n, target_n - total_n)
    return _Projected(logprobs, ids_nK, top_ids_n, tail_nV, softcap_slope_nV)


def _logits(hidden_nH: Tensor, weight_VH: Tensor, head: Head) -> tuple[Tensor, Tensor | None]:
    """Logits as the model's own forward pass computes them, and the slope of the softcap."""
    logits_nV = _at_least_float32(hidden_nH @ weight_VH.T)
    if head.bias_V is not None:
        logits_nV += head.bias_V
    if head.scale != 1.0:
        logits_nV *= head.scale
    if head.softcap is None:
        return logits_nV, None
    capped_nV = logits_nV.div_(head.softcap).tanh_()
    slope_nV = 1.0 - capped_nV.square()
    return capped_nV.mul_(head.softcap), slope_nV


def _value_and_slopes(loss: Loss, logprobs: Logprobs, supervision: Supervision) -> tuple[LossSum, tuple[Tensor, ...]]:
    """The loss of a chunk and its derivatives by the candidates', the tail's and the target's logprob."""
    leaves = [value.requires_grad_() for value in (logprobs.topk_NK, logprobs.tail_N, logprobs.target_N)]
    with torch.enable_grad():
        part = loss(Logprobs(*leaves), supervision)
    slopes = torch.autograd.grad(part.total, leaves, allow_unused=True, materialize_grads=True)
    return LossSum(part.total.detach(), part.count, part.parts), slopes


def _gradient_of_projection(
    projected: _Projected, slopes: tuple[Tensor, ...], target_ids_n: Tensor, head: Head
) -> Tensor:
    """dL/d(weight @ hidden + bias), [n, V], written over the projected tail.

    With G the sum of all slopes of a position and m the mass of its tail:
    a token of the tail gets (its share of the tail) * (dL/dtail - m G), a candidate dL/dq_k - q_k G, and the written
    token dL/dtarget on top.
    """
    by_topk_nK, by_tail_n, by_target_n = slopes
    sum_n = by_topk_nK.sum(-1) + by_tail_n + by_target_n
    mass_n, norm_n = projected.logprobs.tail_N.detach().exp(), projected.tail_nV.sum(-1)
    per_share_n = torch.where(norm_n > 0, (by_tail_n - mass_n * sum_n) / norm_n, 0.0)
    gradient_nV = projected.tail_nV.mul_(per_share_n[:, None])
    by_candidate_nK = by_topk_nK - projected.logprobs.topk_NK.detach().exp() * sum_n[:, None]
    gradient_nV.scatter_add_(-1, projected.ids_nK, by_candidate_nK)
    gradient_nV.scatter_add_(-1, target_ids_n[:, None], by_target_n[:, None])
    if projected.softcap_slope_nV is not None:
        gradient_nV *= projected.softcap_slope_nV
    return gradient_nV if head.scale == 1.0 else gradient_nV.mul_(head.scale)


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


def _chunks(count: int, head: Head, hidden_NH: Tensor, chunk_bytes: int) -> Iterator[slice]:
    """Equal chunks that keep the logits buffer within its size; one empty chunk for no positions at all."""
    largest = max(1, chunk_bytes // (head.vocabulary * _zero(hidden_NH).element_size()))
    chunks = max(1, -(-count // largest))
    bounds = [count * i // chunks for i in range(chunks + 1)]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _check_ids(supervision: Supervision, vocabulary: int) -> None:
    """An id beyond the head would read another row's logit on some devices; one look here is cheap."""
    for name, ids in (("target", supervision.target_ids_N), ("candidate", supervision.candidates)):
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise ValueError(f"{name} token {int(ids.max())} is outside the student's vocabulary of {vocabulary}")


def _product_dtype(hidden_NH: Tensor) -> torch.dtype:
    """What matrix products are computed in: what autocast says, else the hidden states' own type."""
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device) and hidden_NH.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden_NH.dtype


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

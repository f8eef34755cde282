"""From hidden states to a loss without ever holding [N, V] logits.

A loss needs of the student's distribution only the logprobs of K candidates, of the tail and of the written token
(see `signals`). So the vocabulary projection goes through the positions in chunks, each in one buffer:

    logits -> candidates out, -inf in their place -> exp -> row sums -> loss on [n, K] -> gradient, in the same buffer

The gradient is taken while the chunk's logits are there; no product is computed twice, and nothing of size V outlives
its chunk but the gradient of the head itself. Taking the candidates out before summing makes the tail a sum over its
own tokens (`tails`): exact where log(1 - Q) would cancel. Only counted positions come in; prompts and padding never
meet the head.

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
from kubedistill_trainer.core.precision import product_dtype
from kubedistill_trainer.core.signals import NO_TOKEN, Logprobs, LossSum, Supervision
from kubedistill_trainer.core.tails import Tail, kernels_for, picked, tail_of

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
        for rows in _chunks(hidden_NH, head, product, chunk_bytes):
            total = total + _learn(
                hidden_NH[rows].to(product), weight_VH, head, supervision[rows], loss, gradients, rows
            )
    if not gradients:
        return total
    value = _WithGradients.apply(total.total, gradients, hidden_NH, head.weight_VH, head.bias_V)  # type: ignore[no-untyped-call]
    return LossSum(value, total.count, total.parts)


def _learn(
    hidden_nH: Tensor,
    weight_VH: Tensor,
    head: Head,
    supervision: Supervision,
    loss: Loss,
    gradients: _Gradients,
    rows: slice,
) -> LossSum:
    """The loss of one chunk, and its gradients into `gradients`. Its buffer goes with it, before the next chunk's."""
    projected = _project(hidden_nH, weight_VH, head, supervision)
    part, slopes = _value_and_slopes(loss, projected.logprobs, supervision)
    if gradients:
        gradients.add(rows, _gradient_of_projection(projected, slopes, supervision), hidden_nH, weight_VH)
    return part


@torch.no_grad()
def student_view(hidden_NH: Tensor, head: Head, supervision: Supervision, *, chunk_bytes: int | None = None) -> View:
    """The student's logprobs in the classes of the supervision, and its own first choice. For evaluation."""
    _check_ids(supervision, head.vocabulary)
    product = product_dtype(hidden_NH)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        weight_VH = head.weight_VH.to(product)
        views = [
            _view(hidden_NH[rows].to(product), weight_VH, head, supervision[rows])
            for rows in _chunks(hidden_NH, head, product, chunk_bytes)
        ]
    return View(
        Logprobs(
            torch.cat([view.logprobs.topk_NK for view in views]),
            torch.cat([view.logprobs.tail_N for view in views]),
            torch.cat([view.logprobs.target_N for view in views]),
        ),
        torch.cat([view.top_ids_N for view in views]),
    )


def _view(hidden_nH: Tensor, weight_VH: Tensor, head: Head, supervision: Supervision) -> View:
    projected = _project(hidden_nH, weight_VH, head, supervision)
    return View(projected.logprobs, projected.top_ids_n)  # the rest is of size V, and goes


class _Projected(NamedTuple):
    """The positions of one chunk in the classes of their supervision, and what the way back needs."""

    logprobs: Logprobs
    ids_nK: Tensor
    is_target_nK: Tensor
    """Whether a candidate is the token that was written; fillers are not."""
    top_ids_n: Tensor
    tail: Tail
    candidate_slopes_nK: Tensor
    """Of the candidates' logits by the products of hidden states and weights."""
    target_logits_n: Tensor
    target_slopes_n: Tensor


def _project(hidden_nH: Tensor, weight_VH: Tensor, head: Head, supervision: Supervision) -> _Projected:
    products_nV = hidden_nH @ weight_VH.T
    target_ids_n1 = supervision.target_ids_N[:, None]
    ids_nK, absent_nK = supervision.candidates, supervision.candidates == NO_TOKEN
    ids_nK = torch.where(absent_nK, ids_nK[:, :1], ids_nK)  # the first candidate twice: harmless in all that follows
    topk_nK, candidate_slopes_nK = picked(products_nV, ids_nK, head)
    topk_nK = topk_nK.masked_fill(absent_nK, -torch.inf)
    target_n1, target_slopes_n1 = picked(products_nV, target_ids_n1, head)
    target_n = target_n1.squeeze(-1)

    tail = tail_of(products_nV, ids_nK, head)
    top_ids_n = tail.top_ids_n
    if ids_nK.shape[-1]:
        best_n, best = topk_nK.max(-1)
        top_ids_n = torch.where(best_n > tail.peak_n, ids_nK.gather(-1, best[:, None]).squeeze(-1), top_ids_n)
    tail_n = tail.finite_n + tail.sum_n.log()
    total_n = torch.logaddexp(topk_nK.logsumexp(-1), tail_n) if ids_nK.shape[-1] else tail_n
    return _Projected(
        Logprobs(topk_nK - total_n[:, None], tail_n - total_n, target_n - total_n),
        ids_nK,
        (ids_nK == target_ids_n1) & ~absent_nK,
        top_ids_n,
        tail,
        candidate_slopes_nK,
        target_n,
        target_slopes_n1.squeeze(-1),
    )


def _value_and_slopes(loss: Loss, logprobs: Logprobs, supervision: Supervision) -> tuple[LossSum, tuple[Tensor, ...]]:
    """The loss of a chunk and its derivatives by the candidates', the tail's and the target's logprob."""
    leaves = [value.requires_grad_() for value in (logprobs.topk_NK, logprobs.tail_N, logprobs.target_N)]
    with torch.enable_grad():
        part = loss(Logprobs(*leaves), supervision)
    slopes = torch.autograd.grad(part.total, leaves, allow_unused=True, materialize_grads=True)
    return LossSum(part.total.detach(), part.count, part.parts), slopes


def _gradient_of_projection(projected: _Projected, slopes: tuple[Tensor, ...], supervision: Supervision) -> Tensor:
    """dL/d(weight @ hidden), [n, V], written over the projected tail.

    With G the sum of all slopes of a position and m the mass of its tail:
    a token of the tail gets (its share of the tail) * (dL/dtail - m G), a candidate dL/dq_k - q_k G, and the written
    token dL/dtarget on top. What cancels is added up before it is rounded to the type of the products.
    """
    by_topk_nK, by_tail_n, by_target_n = slopes
    tail, ids_nK, is_target_nK = projected.tail, projected.ids_nK, projected.is_target_nK
    total_n = by_topk_nK.sum(-1) + by_tail_n + by_target_n
    mass_n = projected.logprobs.tail_N.detach().exp()
    share_n = torch.where(tail.sum_n > 0, (by_tail_n - mass_n * total_n) / tail.sum_n, 0.0)
    by_candidate_nK = by_topk_nK - projected.logprobs.topk_NK.detach().exp() * total_n[:, None]
    by_candidate_nK = torch.where(is_target_nK, by_candidate_nK + by_target_n[:, None], by_candidate_nK)
    by_candidate_nK *= projected.candidate_slopes_nK
    by_tail_token_n = share_n * (projected.target_logits_n - tail.finite_n).exp() + by_target_n
    by_written_n = torch.where(
        is_target_nK.any(-1),
        torch.where(is_target_nK, by_candidate_nK, 0.0).sum(-1),
        by_tail_token_n * projected.target_slopes_n,
    )
    gradient_nV = tail.gradient(share_n)
    gradient_nV.scatter_add_(-1, ids_nK, by_candidate_nK.to(gradient_nV.dtype))  # to zeros: fillers add nothing
    return gradient_nV.scatter_(-1, supervision.target_ids_N[:, None], by_written_n[:, None].to(gradient_nV.dtype))


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
            self.bias_V += raw_nV.sum(0, dtype=self.bias_V.dtype)


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


def _chunks(hidden_NH: Tensor, head: Head, product: torch.dtype, chunk_bytes: int | None) -> Iterator[slice]:
    """Equal chunks that keep the logits buffer within its size; one empty chunk for no positions at all."""
    count, device = len(hidden_NH), hidden_NH.device
    size = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) if chunk_bytes is None else chunk_bytes
    held = product if kernels_for(device, product) is not None else torch.promote_types(product, torch.float32)
    largest = max(1, size // (head.vocabulary * held.itemsize))
    chunks = max(1, -(-count // largest))
    bounds = [count * i // chunks for i in range(chunks + 1)]
    return (slice(start, stop) for start, stop in pairwise(bounds))


def _check_ids(supervision: Supervision, vocabulary: int) -> None:
    """An id beyond the head would read another row's logit on some devices; one look here is cheap."""
    for name, ids in (("target", supervision.target_ids_N), ("candidate", supervision.candidates)):
        if ids.numel() and int(ids.max()) >= vocabulary:
            raise ValueError(f"{name} token {int(ids.max())} is outside the student's vocabulary of {vocabulary}")


def _zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)

"""Generalised Jensen-Shannon divergence: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

Teacher p, student q. GKD, Agarwal et al. 2024 (arXiv:2306.13649). Never more than the entropy of (beta, 1 - beta),
log 2 at 1/2, where it is symmetric. Divided by beta (1 - beta) it tends to forward KL as beta tends to 0 and to reverse
KL as beta tends to 1; as it stands it tends to 0 at both ends. (Others return the two KLs at 0 and 1, a jump in size;
the API leaves the ends out.)

Both readings of the tail are sound (see `classes`), the sampled one after a correction. With r = q(y) / p(y), a written
token's term over p(y) is

    g(r) = -beta log(beta + (1 - beta) r) + (1 - beta) r log(r / (beta + (1 - beta) r)),

which grows like c r, c = (1 - beta) log(1 / (1 - beta)): without bound, met seldom. But r over the tail averages to
q_tail / p_tail, and both masses are known. So c (r - 1) is taken from the written token's term and c (q_tail - p_tail)
is added: the expectation is the same, what is left grows like log r only, and its slope by log q(y),
-(1 - beta) r log(1 + beta / ((1 - beta) r)), lies between -beta and 0.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from kubedistill_trainer.core.losses.classes import (
    log_mixture,
    over_candidates,
    over_classes,
    over_written,
    top_k_of,
)
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision, TopK


def jensen_shannon_bucket(student: Logprobs, supervision: Supervision, *, beta: float) -> LossSum:
    """sum over S and the tail of beta p (log p - log m) + (1 - beta) q (log q - log m), summed over positions."""
    return LossSum(over_classes(partial(_term, beta), student, top_k_of(supervision)).sum(), len(supervision))


def jensen_shannon_sampled(student: Logprobs, supervision: Supervision, *, beta: float) -> LossSum:
    """The sum over S + [y not in S] (g(r) - c (r - 1)) + c (q_tail - p_tail), summed over positions.

    0 for a teacher against itself. A single position may be negative, only the expectation over y may not.
    """
    teacher = top_k_of(supervision)
    head_N = over_candidates(partial(_term, beta), student, teacher)
    written_N = over_written(partial(_corrected, beta), student, supervision)
    expected_N = _growth(beta) * (student.tail_N.exp() - _tail_mass(student, teacher))
    return LossSum((head_N + written_N + expected_N).sum(), len(supervision))


def _term(beta: float, teacher: Tensor, student: Tensor) -> Tensor:
    mixture = log_mixture(teacher, student, beta)
    return beta * teacher.exp() * (teacher - mixture) + (1.0 - beta) * student.exp() * (student - mixture)


def _corrected(beta: float, teacher: Tensor, student: Tensor) -> Tensor:
    """g(r) - c (r - 1). The logarithm of (1 - beta) r / (beta + (1 - beta) r) is written as a softplus: near r = inf a
    difference of logarithms would cancel, and r multiplies what is left.
    """
    log_r = student - teacher
    odds = math.log(beta) - math.log1p(-beta) - log_r  # log(beta p / ((1 - beta) q))
    in_mixture = torch.logaddexp(odds, torch.zeros_like(odds))
    return (
        beta * (teacher - log_mixture(teacher, student, beta)) - (1.0 - beta) * log_r.exp() * in_mixture + _growth(beta)
    )


def _growth(beta: float) -> float:
    return -(1.0 - beta) * math.log1p(-beta)


def _tail_mass(student: Logprobs, teacher: TopK) -> Tensor:
    """The teacher's, 0 where the tail holds no token."""
    return torch.where(student.tail_N > -torch.inf, teacher.tail_N.exp(), 0.0)

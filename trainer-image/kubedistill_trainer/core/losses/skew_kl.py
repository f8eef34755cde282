"""Skew KL, KL(p || m) with m = beta p + (1 - beta) q: teacher p, student q.

DistiLLM, Ko et al. 2024 (arXiv:2402.03898); beta is the paper's alpha, 0.1 there. Forward KL against a mixture that
holds a little of the teacher. Its gradient by log q is forward KL's times (1 - beta) q / m, so tokens that the student
has no idea of no longer rule it. At most log(1 / beta); tends to forward KL as beta tends to 0.

Both readings of the tail are sound (see `classes`): the sum runs over the teacher's tokens, and a written token's slope
lies between -1 and 0.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from kubedistill_trainer.core.losses.classes import (
    log_mixture,
    over_candidates,
    over_classes,
    over_written,
    top_k_of,
)
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision


def skew_kl_bucket(student: Logprobs, supervision: Supervision, *, beta: float) -> LossSum:
    """sum_S p (log p - log m) + p_tail (log p_tail - log m_tail), summed over positions."""
    return LossSum(over_classes(partial(_term, beta), student, top_k_of(supervision)).sum(), len(supervision))


def skew_kl_sampled(student: Logprobs, supervision: Supervision, *, beta: float) -> LossSum:
    """sum_S p (log p - log m) + [y not in S] (log p(y) - log m(y)), summed over positions.

    0 for a teacher against itself. A single position may be negative, only the expectation over y may not.
    """
    head_N = over_candidates(partial(_term, beta), student, top_k_of(supervision))
    return LossSum((head_N + over_written(partial(_gap, beta), student, supervision)).sum(), len(supervision))


def _term(beta: float, teacher: Tensor, student: Tensor) -> Tensor:
    return teacher.exp() * _gap(beta, teacher, student)


def _gap(beta: float, teacher: Tensor, student: Tensor) -> Tensor:
    return teacher - log_mixture(teacher, student, beta)

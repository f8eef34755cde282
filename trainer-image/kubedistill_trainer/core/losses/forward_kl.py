"""Forward KL, KL(p || q) = sum p (log p - log q): teacher p, student q. Hinton et al. 2015 (arXiv:1503.02531).

The student is asked for mass wherever the teacher has some. Both readings of the tail are sound (see `classes`): the
sum runs over the teacher's tokens already, so the sampled one has a slope of -1 whatever the student thinks, and a
variance from the draws that fall into the tail only.
"""

from __future__ import annotations

from torch import Tensor

from kubedistill_trainer.core.losses.classes import over_candidates, over_classes, over_written, top_k_of
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision


def forward_kl_bucket(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S p (log p - log q) + p_tail (log p_tail - log q_tail), summed over positions."""
    return LossSum(over_classes(_term, student, top_k_of(supervision)).sum(), len(supervision))


def forward_kl_sampled(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S p (log p - log q) + [y not in S] (log p(y) - log q(y)), summed over positions.

    The teacher's own log p(y) carries no gradient; it makes 0 mean "equal", for a teacher against itself exactly.
    A single position may be negative, only the expectation over y may not.
    """
    head_N = over_candidates(_term, student, top_k_of(supervision))
    return LossSum((head_N + over_written(_gap, student, supervision)).sum(), len(supervision))


def _term(teacher: Tensor, student: Tensor) -> Tensor:
    return teacher.exp() * (teacher - student)


def _gap(teacher: Tensor, student: Tensor) -> Tensor:
    return teacher - student

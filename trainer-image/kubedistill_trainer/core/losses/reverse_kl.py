"""Reverse KL, KL(q || p) = sum q (log q - log p): teacher p, student q. MiniLLM, Gu et al. 2024 (arXiv:2306.08543).

The student is asked to stay where the teacher is, and may leave out what it has no room for.

Bucket only. Without its tail the loss would be least for a student that empties the teacher's candidates; with the tail
as one class it is a lower bound of the full divergence, least where both agree. The written token says too little: its
term over p(y) is r log r with r = q(y) / p(y). That grows faster than r, so no multiple of the tail's known mass takes
the growth away: tokens that the student likes and the teacher hardly ever draws are met hardly ever and then weigh
without bound. And where r < 1/e, most of the time, the slope drives the student away from the token the teacher wrote.
"""

from __future__ import annotations

from torch import Tensor

from kubedistill_trainer.core.losses.classes import over_classes, top_k_of
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision


def reverse_kl_bucket(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S q (log q - log p) + q_tail (log q_tail - log p_tail), summed over positions."""
    return LossSum(over_classes(_term, student, top_k_of(supervision)).sum(), len(supervision))


def _term(teacher: Tensor, student: Tensor) -> Tensor:
    return student.exp() * (student - teacher)

"""Forward KL, KL(teacher || student), from the teacher's top K and what it says of the rest.

Two readings of the rest, the choice being `generation.tail` of the API:
- Bucket: one class. The exact divergence of the (K+1)-class coarsening: never negative, at most the full KL
  (data processing), equal to it at K = V. Silent about the order inside the tail.
- Sampled: the written token. An unbiased estimate of the full KL, provided the token was drawn at temperature 1
  from the whole distribution. Its variance comes from the draws that fall into the tail only.

Neither side is ever renormalised over the K candidates: a student could then leave the teacher's support unpunished.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision, TopK


def forward_kl_bucket(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S p (log p - log q) + p_tail (log p_tail - log q_tail), summed over positions."""
    teacher = _top_k(supervision)
    tail_N = _divergence(teacher.tail_N, student.tail_N)
    return LossSum((_head(student, teacher) + tail_N).sum(), len(supervision))


def forward_kl_sampled(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S p (log p - log q) + [y not in S] (log p(y) - log q(y)), summed over positions.

    The teacher's own log p(y) carries no gradient; it makes 0 mean "equal", for a teacher against itself exactly.
    A single position may be negative, only the expectation over y may not.
    """
    teacher = _top_k(supervision)
    in_tail_N = ~(teacher.ids_NK == supervision.target_ids_N[:, None]).any(-1)
    gap_N = torch.where(in_tail_N, teacher.target_N - student.target_N, 0.0)
    return LossSum((_head(student, teacher) + gap_N).sum(), len(supervision))


def _head(student: Logprobs, teacher: TopK) -> Tensor:
    return _divergence(teacher.logprobs_NK, student.topk_NK).sum(-1)


def _divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """p (log p - log q) for each class; 0 where the class holds no token: a filler, or the tail at K = V.

    For the student such a class is -inf, and a real one never is. Selected before any arithmetic: NaN * 0 is NaN.
    """
    exists = student > -torch.inf
    return torch.where(exists, teacher.exp() * (teacher - torch.where(exists, student, teacher)), 0.0)


def _top_k(supervision: Supervision) -> TopK:
    match supervision.teacher:
        case TopK() as teacher:
            return teacher
        case _:
            raise TypeError("forward KL needs the teacher's top-K logprobs (generation.signal: TopK), not text alone")

"""What all divergences share: how they are summed over what is known of a position.

A divergence of teacher p and student q is a sum over tokens of a term in (p, q). Known are p at the teacher's K
candidates, the mass of all the rest in one class, and p at the written token. So the rest is read in one of two ways,
the choice being `generation.tail` of the API:
- Bucket: as one class. The exact divergence of the (K+1)-class coarsening: never negative, at most the full one (data
  processing inequality; every divergence here is an f-divergence), equal to it at K = V, 0 if and only if both agree on
  all K + 1 classes. Silent about the order inside the tail.
- Sampled: by the written token y, if it is none of the candidates. For y ~ p, drawn at temperature 1 from the whole
  distribution, the expectation over y of term(p(y), q(y)) / p(y) is the sum of the term over the tail: unbiased. It is
  worth having only where the slope of that ratio by log q(y) stays bounded as q(y) / p(y) grows: see each loss.

Neither side is ever renormalised over the K candidates: a student could then leave the teacher's support unpunished.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kubedistill_trainer.core.signals import Logprobs, Supervision, TopK

Term = Callable[[Tensor, Tensor], Tensor]
"""What a class (or, over p(y), the written token) adds, from the teacher's and the student's logprob of it."""


def top_k_of(supervision: Supervision) -> TopK:
    """The teacher's logprobs. Raises TypeError if the teacher left text alone."""
    match supervision.teacher:
        case TopK() as teacher:
            return teacher
        case _:
            raise TypeError("this loss needs the teacher's top-K logprobs (generation.signal: TopK), not text alone")


def over_candidates(term: Term, student: Logprobs, teacher: TopK) -> Tensor:
    """The sum of a term over the K candidates, [N]."""
    return _of_existing(term, teacher.logprobs_NK, student.topk_NK).sum(-1)


def over_classes(term: Term, student: Logprobs, teacher: TopK) -> Tensor:
    """The sum of a term over the K candidates and the tail as one class, [N]."""
    return over_candidates(term, student, teacher) + _of_existing(term, teacher.tail_N, student.tail_N)


def over_written(term: Term, student: Logprobs, supervision: Supervision) -> Tensor:
    """The term of the written token where it lies in the tail, 0 elsewhere, [N]."""
    teacher = top_k_of(supervision)
    in_tail_N = ~(teacher.ids_NK == supervision.target_ids_N[:, None]).any(-1)
    student_N = torch.where(in_tail_N, student.target_N, teacher.target_N)
    return torch.where(in_tail_N, term(teacher.target_N, student_N), 0.0)


def log_mixture(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """log(beta p + (1 - beta) q): mixed as probabilities. Mixing logprobs is another distribution, and none at all."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def _of_existing(term: Term, teacher: Tensor, student: Tensor) -> Tensor:
    """The term of each class; 0 where the class holds no token: a filler, or the tail at K = V.

    For the student such a class is -inf, and a real one never is. Selected before any arithmetic: NaN * 0 is NaN.
    """
    exists = student > -torch.inf
    return torch.where(exists, term(teacher, torch.where(exists, student, teacher)), 0.0)

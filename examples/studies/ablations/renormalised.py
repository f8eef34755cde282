"""A loss that others use and the product refuses to offer: both distributions renormalised over the K candidates.

KL(p / P || q / Q) over the teacher's candidates, P and Q their masses. It does not change when the student moves all of
its mass away from them: nothing holds Q up. It is here to be measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubedistill_api.training import Objective
from kubedistill_trainer.core.losses import Loss
from kubedistill_trainer.core.losses.classes import top_k_of
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision
from kubedistill_trainer.stages import train_rank


def forward_kl_renormalised(student: Logprobs, supervision: Supervision) -> LossSum:
    """sum_S p/P (log p/P - log q/Q), summed over positions."""
    teacher_NK = top_k_of(supervision).logprobs_NK.log_softmax(-1)
    student_NK = student.topk_NK.log_softmax(-1)
    return LossSum((teacher_NK.exp() * (teacher_NK - student_NK)).sum(), len(supervision))


@contextmanager
def in_place_of_the_products() -> Iterator[None]:
    """Within it Train minimises this loss, whatever the objective says."""

    def chosen(objective: Objective, *, sampled_tail: bool) -> Loss:
        return forward_kl_renormalised

    rank: Any = train_rank
    before, rank.loss_of = rank.loss_of, chosen
    try:
        yield
    finally:
        rank.loss_of = before

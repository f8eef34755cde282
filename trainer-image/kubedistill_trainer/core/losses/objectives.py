"""Which loss is minimised: a soft one, cross-entropy on the text, or a share of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from kubedistill_api.training import Objective, ObjectiveType
from kubedistill_trainer.core.losses.cross_entropy import cross_entropy
from kubedistill_trainer.core.losses.forward_kl import forward_kl_bucket, forward_kl_sampled
from kubedistill_trainer.core.losses.jensen_shannon import jensen_shannon_bucket, jensen_shannon_sampled
from kubedistill_trainer.core.losses.reverse_kl import reverse_kl_bucket
from kubedistill_trainer.core.losses.skew_kl import skew_kl_bucket, skew_kl_sampled
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision

Loss = Callable[[Logprobs, Supervision], LossSum]


def loss_of(objective: Objective, *, sampled_tail: bool) -> Loss:
    """The loss that a spec asks for: its soft part's share, and cross-entropy for the rest.

    `sampled_tail` is `generation.tail`, resolved. Cross-entropy has no use for it, and reverse KL takes the bucket
    either way (the API refuses `tail: Sampled` with it, `Auto` stays).
    """
    soft: Loss
    match objective.type:
        case ObjectiveType.CROSS_ENTROPY:
            return mixed({"CrossEntropy": (1.0, cross_entropy)})
        case ObjectiveType.FORWARD_KL:
            soft = forward_kl_sampled if sampled_tail else forward_kl_bucket
        case ObjectiveType.REVERSE_KL:
            soft = reverse_kl_bucket
        case ObjectiveType.JENSEN_SHANNON:
            divergence = jensen_shannon_sampled if sampled_tail else jensen_shannon_bucket
            soft = partial(divergence, beta=objective.teacher_share)
        case ObjectiveType.SKEW_KL:
            divergence = skew_kl_sampled if sampled_tail else skew_kl_bucket
            soft = partial(divergence, beta=objective.teacher_share)
    share = objective.soft_weight
    return mixed({objective.type.value: (share, soft), "CrossEntropy": (1.0 - share, cross_entropy)})


def mixed(terms: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The weighted sum of named terms over the same targets. Each is reported unweighted, also at weight 0."""

    def total(student: Logprobs, supervision: Supervision) -> LossSum:
        sums = {name: loss(student, supervision).total for name, (_, loss) in terms.items()}
        weighted = [weight * sums[name] for name, (weight, _) in terms.items()]
        parts = {name: value.detach() for name, value in sums.items()}
        return LossSum(sum(weighted[1:], weighted[0]), len(supervision), parts)

    return total

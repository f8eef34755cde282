"""Which loss is minimised: a soft one, cross-entropy on the text, or a share of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kubedistill_api.training import Objective, ObjectiveType
from kubedistill_trainer.core.losses.cross_entropy import cross_entropy
from kubedistill_trainer.core.losses.forward_kl import forward_kl_bucket, forward_kl_sampled
from kubedistill_trainer.core.signals import Logprobs, LossSum, Supervision

Loss = Callable[[Logprobs, Supervision], LossSum]


def loss_of(objective: Objective, *, sampled_tail: bool) -> Loss:
    """The loss that a spec asks for. `sampled_tail` is `generation.tail`, resolved; cross-entropy has no use for it.

    Raises ValueError for an objective that is not built; the API refuses it long before.
    """
    match objective.type:
        case ObjectiveType.CROSS_ENTROPY:
            return mixed({"CrossEntropy": (1.0, cross_entropy)})
        case ObjectiveType.FORWARD_KL:
            soft = forward_kl_sampled if sampled_tail else forward_kl_bucket
            share = objective.soft_weight
            return mixed({"ForwardKL": (share, soft), "CrossEntropy": (1.0 - share, cross_entropy)})
        case other:
            raise ValueError(f"the objective {other.value} is not built")


def mixed(terms: Mapping[str, tuple[float, Loss]]) -> Loss:
    """The weighted sum of named terms over the same targets. Each is reported unweighted, also at weight 0."""

    def total(student: Logprobs, supervision: Supervision) -> LossSum:
        sums = {name: loss(student, supervision).total for name, (_, loss) in terms.items()}
        weighted = [weight * sums[name] for name, (weight, _) in terms.items()]
        parts = {name: value.detach() for name, value in sums.items()}
        return LossSum(sum(weighted[1:], weighted[0]), len(supervision), parts)

    return total

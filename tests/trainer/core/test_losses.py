"""Which loss a spec asks for, how its terms are mixed and summed. What each divergence promises: test_divergences."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kubedistill_api.training import Objective, ObjectiveType
from kubedistill_trainer.core.losses import (
    Loss,
    cross_entropy,
    forward_kl_bucket,
    forward_kl_sampled,
    jensen_shannon_bucket,
    jensen_shannon_sampled,
    loss_of,
    mixed,
    reverse_kl_bucket,
    skew_kl_bucket,
    skew_kl_sampled,
)
from kubedistill_trainer.core.signals import NO_TOKEN, Supervision, TopK


def logits(positions: int, vocabulary: int, seed: int, spread: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(positions, vocabulary, generator=draw, dtype=torch.float64)


def test_without_candidates_the_sampled_tail_is_cross_entropy_less_the_teachers_own(plain_logprobs, supervise_with):
    teacher, student = logits(6, 12, seed=3), logits(6, 12, seed=4)
    supervision = supervise_with(teacher, 0)
    seen = plain_logprobs(student, supervision)
    soft = forward_kl_sampled(seen, supervision).total
    hard = cross_entropy(seen, supervision).total
    torch.testing.assert_close(soft, hard + supervision.teacher.target_N.sum())


def test_what_was_stored_sums_to_one_with_its_tail():
    stored = TopK.from_storage(
        torch.tensor([[3, 1, NO_TOKEN]], dtype=torch.int32),
        torch.tensor([[-0.11, -2.9, -80.0]], dtype=torch.float16),
        torch.tensor([-3.5]),
        torch.tensor([-0.11]),
    )
    assert float(stored.logprobs_NK.exp().sum() + stored.tail_N.exp().sum()) == pytest.approx(1.0, abs=1e-6)


ASKED: dict[str, tuple[dict[str, object], bool, Loss]] = {
    "forward": ({"type": "ForwardKL"}, False, forward_kl_bucket),
    "forward-sampled": ({"type": "ForwardKL"}, True, forward_kl_sampled),
    "reverse": ({"type": "ReverseKL"}, False, reverse_kl_bucket),
    "reverse-takes-the-bucket": ({"type": "ReverseKL"}, True, reverse_kl_bucket),
    "js": ({"type": "JensenShannon"}, False, partial(jensen_shannon_bucket, beta=0.5)),
    "js-beta": ({"type": "JensenShannon", "beta": 0.2}, False, partial(jensen_shannon_bucket, beta=0.2)),
    "js-sampled": ({"type": "JensenShannon"}, True, partial(jensen_shannon_sampled, beta=0.5)),
    "skew": ({"type": "SkewKL"}, False, partial(skew_kl_bucket, beta=0.1)),
    "skew-sampled": ({"type": "SkewKL", "beta": 0.2}, True, partial(skew_kl_sampled, beta=0.2)),
}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("asked", "sampled_tail", "divergence"), ASKED.values(), ids=ASKED)
def test_an_objective_is_its_share_of_each_term_and_reports_both(
    asked, sampled_tail, divergence, share, plain_logprobs, supervise_with
):
    teacher, student = logits(6, 12, seed=10), logits(6, 12, seed=11)
    supervision = supervise_with(teacher, 4)
    seen = plain_logprobs(student, supervision)
    soft = divergence(seen, supervision).total
    hard = cross_entropy(seen, supervision).total
    loss = loss_of(Objective(**asked, soft_weight=share), sampled_tail=sampled_tail)(seen, supervision)
    torch.testing.assert_close(loss.total, share * soft + (1 - share) * hard)
    assert loss.count == 6
    assert {name: float(value) for name, value in loss.parts.items()} == pytest.approx(
        {asked["type"]: float(soft), "CrossEntropy": float(hard)}
    )


def test_every_objective_of_the_api_is_built():
    assert {asked["type"] for asked, _, _ in ASKED.values()} | {"CrossEntropy"} == set(ObjectiveType)


@pytest.mark.parametrize(("asked", "sampled_tail", "divergence"), ASKED.values(), ids=ASKED)
def test_the_soft_loss_keeps_its_share_of_the_gradient_in_an_answer_of_any_length(
    asked, sampled_tail, divergence, plain_logprobs, supervise_with
):
    teacher, student = logits(3, 12, seed=20), logits(3, 12, seed=21)

    def ratio(times: int) -> float:
        leaf = student.repeat(times, 1).requires_grad_()
        supervision = supervise_with(teacher, 4, target_ids_N=torch.tensor([2, 5, 7]))
        longer = Supervision(supervision.target_ids_N.repeat(times), TopK.concatenate([supervision.teacher] * times))
        norms = []
        for loss in (divergence, cross_entropy):
            mean = loss(plain_logprobs(leaf, longer), longer).mean_over(3 * times)
            norms.append(float(torch.autograd.grad(mean, leaf)[0].norm()))
        return norms[0] / norms[1]

    assert ratio(16) == pytest.approx(ratio(1), rel=1e-9)


def test_no_loss_has_a_temperature_since_stored_candidates_do_not_tell_the_tail_at_another():
    with pytest.raises(ValueError, match="temperature"):
        Objective.model_validate({"type": "ForwardKL", "temperature": 2.0})


def test_sums_add_up_and_one_place_divides(plain_logprobs, supervise_with):
    supervision = supervise_with(logits(6, 12, seed=12), 4)
    student = logits(6, 12, seed=13)
    loss = mixed({"ForwardKL": (0.5, forward_kl_bucket), "CrossEntropy": (0.5, cross_entropy)})
    whole = loss(plain_logprobs(student, supervision), supervision)
    halves = [
        loss(plain_logprobs(student[rows], supervision[rows]), supervision[rows]) for rows in (slice(0, 1), slice(1, 6))
    ]
    together = halves[0] + halves[1]
    torch.testing.assert_close(together.total, whole.total)
    torch.testing.assert_close(dict(together.parts), dict(whole.parts))
    assert together.count == whole.count == 6
    torch.testing.assert_close(sum(half.mean_over(6) for half in halves), whole.total / 6)


def test_teacher_rows_that_do_not_match_the_targets_are_an_error(supervise_with):
    signal = supervise_with(logits(5, 12, seed=14), 3).teacher
    with pytest.raises(ValueError, match="4 targets but 5 rows"):
        Supervision(torch.zeros(4, dtype=torch.long), signal)

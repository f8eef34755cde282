"""The losses against definitions written out in float64, and the bugs that others shipped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kubedistill_api.training import Objective
from kubedistill_trainer.core.losses import cross_entropy, forward_kl_bucket, forward_kl_sampled, loss_of, mixed
from kubedistill_trainer.core.signals import NO_TOKEN, Logprobs, Supervision, Text, TopK, top_k

SOFT = {"bucket": forward_kl_bucket, "sampled": forward_kl_sampled}
ALL = {**SOFT, "cross-entropy": cross_entropy}


def logits(positions: int, vocabulary: int, seed: int, spread: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(positions, vocabulary, generator=draw, dtype=torch.float64)


def full_kl(teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    p, q = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


cases = given(
    seed=st.integers(0, 2**16),
    k=st.integers(1, 12),
    spread=st.sampled_from([0.01, 1.0, 5.0, 50.0]),
)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
def test_with_the_whole_vocabulary_as_candidates_the_loss_is_the_exact_divergence(loss, plain_logprobs, supervise_with):
    teacher, student = logits(7, 12, seed=1), logits(7, 12, seed=2)
    supervision = supervise_with(teacher, 12)
    total = loss(plain_logprobs(student, supervision), supervision).total
    torch.testing.assert_close(total, full_kl(teacher, student).sum(), rtol=1e-12, atol=0)


@few
@cases
def test_the_bucket_is_never_negative_and_never_more_than_the_full_divergence(
    seed, k, spread, plain_logprobs, supervise_with
):
    teacher, student = logits(5, 12, seed, spread), logits(5, 12, seed + 1, spread)
    supervision = supervise_with(teacher, k)
    for row in range(5):
        part = supervision[row : row + 1]
        value = float(forward_kl_bucket(plain_logprobs(student[row : row + 1], part), part).total)
        full = float(full_kl(teacher, student)[row])
        assert -1e-12 <= value <= full * (1 + 1e-9) + 1e-12


@few
@cases
@pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
def test_a_teacher_against_itself_is_zero(loss, seed, k, spread, plain_logprobs, supervise_with):
    teacher = logits(5, 12, seed, spread)
    supervision = supervise_with(teacher, k)
    assert abs(float(loss(plain_logprobs(teacher, supervision), supervision).total)) < 1e-9


@few
@cases
def test_the_sampled_tail_is_the_full_divergence_in_expectation(seed, k, spread, plain_logprobs):
    teacher, student = logits(1, 12, seed, min(spread, 5.0)), logits(1, 12, seed + 1, min(spread, 5.0))
    expectation = 0.0
    for token, chance in enumerate(teacher.softmax(-1)[0].tolist()):
        target = torch.tensor([token])
        supervision = Supervision(target, top_k(teacher, target, k))
        expectation += chance * float(forward_kl_sampled(plain_logprobs(student, supervision), supervision).total)
    assert expectation == pytest.approx(float(full_kl(teacher, student)), rel=1e-9, abs=1e-12)


def test_without_candidates_the_sampled_tail_is_cross_entropy_less_the_teachers_own(plain_logprobs, supervise_with):
    teacher, student = logits(6, 12, seed=3), logits(6, 12, seed=4)
    supervision = supervise_with(teacher, 0)
    seen = plain_logprobs(student, supervision)
    soft = forward_kl_sampled(seen, supervision).total
    hard = cross_entropy(seen, supervision).total
    torch.testing.assert_close(soft, hard + supervision.teacher.target_N.sum())


@pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
def test_the_direction_is_teacher_to_student(loss):
    """p = (0.7, 0.2, 0.1), q = (0.2, 0.5, 0.3): KL(p || q) = 0.5838, KL(q || p) = 0.5372."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.2, 0.5, 0.3]]).log()
    supervision = Supervision(torch.tensor([0]), top_k(p, torch.tensor([0]), 3))
    student = Logprobs(q, torch.tensor([-math.inf]), q[:, 0])
    assert float(loss(student, supervision).total) == pytest.approx(0.7 * math.log(3.5) + 0.2 * math.log(0.4)
                                                                    + 0.1 * math.log(1 / 3), rel=1e-6)  # fmt: skip


@pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
def test_leaving_the_teachers_support_is_punished(loss, plain_logprobs, supervise_with):
    """Renormalising both sides over the candidates would call these two students equal."""
    teacher = logits(40, 12, seed=5, spread=3.0)
    supervision = supervise_with(teacher, 4)
    stray = teacher.scatter_add(-1, supervision.candidates, torch.full((40, 4), -6.0, dtype=torch.float64))
    near = float(loss(plain_logprobs(teacher, supervision), supervision).total)
    far = float(loss(plain_logprobs(stray, supervision), supervision).total)
    assert far > near + 40


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@pytest.mark.parametrize("size", [1e4, 80.0], ids=["logits-of-10000", "logits-of-80"])
def test_extreme_logits_give_finite_values_and_gradients(loss, size, plain_logprobs, supervise_with):
    teacher = (size * torch.eye(6, 12)).float()
    student = (size * torch.eye(6, 12).roll(3, 1)).float().requires_grad_()
    supervision = supervise_with(teacher, 3)
    total = loss(plain_logprobs(student, supervision), supervision).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def test_all_mass_among_the_candidates_gives_finite_gradients(plain_logprobs, supervise_with):
    """P = 1 in float32: the tail rounds to nothing, and log 0 times 0 would be NaN."""
    student = logits(4, 12, seed=6).float().requires_grad_()
    teacher = torch.full((4, 12), -200.0)
    teacher[:, :2] = 0.0
    supervision = supervise_with(teacher, 2)
    total = forward_kl_bucket(plain_logprobs(student, supervision), supervision).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


@few
@cases
def test_float16_storage_keeps_the_bucket_non_negative_and_near(seed, k, spread, plain_logprobs, supervise_with):
    teacher, student = logits(5, 12, seed, spread).float(), logits(5, 12, seed + 1, spread).float()
    exact = supervise_with(teacher, k)
    signal = exact.teacher
    stored = TopK.from_storage(signal.ids_NK.int(), signal.logprobs_NK.half(), signal.tail_N, signal.target_N)
    against_itself = Supervision(exact.target_ids_N, stored)
    at_home = float(forward_kl_bucket(plain_logprobs(teacher, against_itself), against_itself).total)
    assert -2e-6 <= at_home <= 5 * 1e-4
    away = float(forward_kl_bucket(plain_logprobs(student, against_itself), against_itself).total)
    assert away == pytest.approx(
        float(forward_kl_bucket(plain_logprobs(student, exact), exact).total), rel=0.02, abs=0.02
    )


def test_what_was_stored_sums_to_one_with_its_tail():
    stored = TopK.from_storage(
        torch.tensor([[3, 1, NO_TOKEN]], dtype=torch.int32),
        torch.tensor([[-0.11, -2.9, -80.0]], dtype=torch.float16),
        torch.tensor([-3.5]),
        torch.tensor([-0.11]),
    )
    assert float(stored.logprobs_NK.exp().sum() + stored.tail_N.exp().sum()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("loss", SOFT.values(), ids=SOFT)
def test_fillers_count_for_nothing(loss, plain_logprobs, supervise_with):
    teacher, student = logits(6, 12, seed=7), logits(6, 12, seed=8)
    short = supervise_with(teacher, 3)
    signal = short.teacher
    filler = torch.full((6, 2), -80.0, dtype=torch.float64)
    long = Supervision(
        short.target_ids_N,
        TopK(
            torch.cat([signal.ids_NK, torch.full((6, 2), NO_TOKEN)], 1),
            torch.cat([signal.logprobs_NK, filler], 1),
            signal.tail_N,
            signal.target_N,
        ),
    )
    torch.testing.assert_close(
        loss(plain_logprobs(student, long), long).total, loss(plain_logprobs(student, short), short).total
    )


def test_the_gradient_of_the_tail_pushes_a_student_back_into_the_support(plain_logprobs, supervise_with):
    teacher = logits(1, 12, seed=9, spread=3.0)
    supervision = supervise_with(teacher, 3)
    student = torch.zeros(1, 12, dtype=torch.float64, requires_grad=True)
    forward_kl_bucket(plain_logprobs(student, supervision), supervision).total.backward()
    outside = torch.ones(12, dtype=torch.bool)
    outside[supervision.candidates[0]] = False
    assert (student.grad[0, outside] > 0).all()  # descent lowers them


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("sampled_tail", [False, True], ids=["bucket", "sampled"])
def test_an_objective_is_its_share_of_each_term_and_reports_both(share, sampled_tail, plain_logprobs, supervise_with):
    teacher, student = logits(6, 12, seed=10), logits(6, 12, seed=11)
    supervision = supervise_with(teacher, 4)
    seen = plain_logprobs(student, supervision)
    soft = (forward_kl_sampled if sampled_tail else forward_kl_bucket)(seen, supervision).total
    hard = cross_entropy(seen, supervision).total
    loss = loss_of(Objective(type="ForwardKL", soft_weight=share), sampled_tail=sampled_tail)(seen, supervision)
    torch.testing.assert_close(loss.total, share * soft + (1 - share) * hard)
    assert loss.count == 6
    assert {name: float(value) for name, value in loss.parts.items()} == pytest.approx(
        {"ForwardKL": float(soft), "CrossEntropy": float(hard)}
    )


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


def test_a_soft_loss_on_text_alone_is_an_error():
    student = Logprobs(torch.empty(1, 0), torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError, match="signal: TopK"):
        forward_kl_bucket(student, Supervision(torch.tensor([0]), Text()))


def test_teacher_rows_that_do_not_match_the_targets_are_an_error(supervise_with):
    signal = supervise_with(logits(5, 12, seed=14), 3).teacher
    with pytest.raises(ValueError, match="4 targets but 5 rows"):
        Supervision(torch.zeros(4, dtype=torch.long), signal)


def test_an_objective_that_is_not_built_is_refused():
    unbuilt = Objective.model_construct(type="SkewKL")
    with pytest.raises((ValueError, AttributeError)):
        loss_of(unbuilt, sampled_tail=False)

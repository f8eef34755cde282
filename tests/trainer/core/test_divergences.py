"""One table of divergences, and what each of them promises: against definitions written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kubedistill_trainer.core.losses import (
    Loss,
    cross_entropy,
    forward_kl_bucket,
    forward_kl_sampled,
    jensen_shannon_bucket,
    jensen_shannon_sampled,
    reverse_kl_bucket,
    skew_kl_bucket,
    skew_kl_sampled,
)
from kubedistill_trainer.core.signals import (
    NO_TOKEN,
    TAIL_FLOOR,
    Logprobs,
    Supervision,
    Text,
    TopK,
    top_k,
)
from kubedistill_trainer.store.candidates import kept


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Of logprobs, over the last dimension."""
    return (p.exp() * (p - q)).sum(-1)


def mixture(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return (beta * p.exp() + (1 - beta) * q.exp()).log()


def reverse_kl(p: Tensor, q: Tensor) -> Tensor:
    return kl(q, p)


def jensen_shannon(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = mixture(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_kl(p: Tensor, q: Tensor, beta: float) -> Tensor:
    return kl(p, mixture(p, q, beta))


@dataclass(frozen=True)
class Case:
    """A loss, and the divergence of whole distributions that it stands for."""

    loss: Loss
    exact: Callable[[Tensor, Tensor], Tensor]
    steepest: float = math.inf
    """Sampled: the largest slope by the written token's logprob."""

    @property
    def sampled(self) -> bool:
        return self.steepest < math.inf


BUCKETS = {
    "forward": Case(forward_kl_bucket, kl),
    "reverse": Case(reverse_kl_bucket, reverse_kl),
    "js-0.5": Case(partial(jensen_shannon_bucket, beta=0.5), partial(jensen_shannon, beta=0.5)),
    "js-0.9": Case(partial(jensen_shannon_bucket, beta=0.9), partial(jensen_shannon, beta=0.9)),
    "skew-0.1": Case(partial(skew_kl_bucket, beta=0.1), partial(skew_kl, beta=0.1)),
}
SAMPLED = {
    "forward-sampled": Case(forward_kl_sampled, kl, 1.0),
    "js-0.5-sampled": Case(partial(jensen_shannon_sampled, beta=0.5), partial(jensen_shannon, beta=0.5), 0.5),
    "js-0.9-sampled": Case(partial(jensen_shannon_sampled, beta=0.9), partial(jensen_shannon, beta=0.9), 0.9),
    "skew-0.1-sampled": Case(partial(skew_kl_sampled, beta=0.1), partial(skew_kl, beta=0.1), 1.0),
}
TABLE = {**BUCKETS, **SAMPLED}

every = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
bucket = pytest.mark.parametrize("case", BUCKETS.values(), ids=BUCKETS)
sampled = pytest.mark.parametrize("case", SAMPLED.values(), ids=SAMPLED)
cases = given(seed=st.integers(0, 2**16), k=st.integers(1, 12), spread=st.sampled_from([0.01, 1.0, 5.0, 50.0]))
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def logits(positions: int, vocabulary: int, seed: int, spread: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(positions, vocabulary, generator=draw, dtype=torch.float64)


def exact(case: Case, teacher_NV: Tensor, student_NV: Tensor) -> Tensor:
    """The divergence of the whole distributions, [N]."""
    return case.exact(teacher_NV.log_softmax(-1), student_NV.log_softmax(-1))


@every
def test_with_the_whole_vocabulary_as_candidates_the_loss_is_the_exact_divergence(case, plain_logprobs, supervise_with):
    teacher, student = logits(7, 12, seed=1), logits(7, 12, seed=2)
    supervision = supervise_with(teacher, 12)
    total = case.loss(plain_logprobs(student, supervision), supervision).total
    torch.testing.assert_close(total, exact(case, teacher, student).sum(), rtol=1e-12, atol=1e-14)


@few
@cases
@bucket
def test_the_bucket_is_never_negative_and_never_more_than_the_full_divergence(
    case, seed, k, spread, plain_logprobs, supervise_with
):
    teacher, student = logits(5, 12, seed, spread), logits(5, 12, seed + 1, spread)
    supervision = supervise_with(teacher, k)
    full = exact(case, teacher, student)
    for row in range(5):
        part = supervision[row : row + 1]
        value = float(case.loss(plain_logprobs(student[row : row + 1], part), part).total)
        assert -1e-12 <= value <= float(full[row]) * (1 + 1e-9) + 1e-12


@few
@cases
@sampled
def test_the_sampled_tail_is_the_full_divergence_in_expectation(case, seed, k, spread, plain_logprobs):
    teacher, student = logits(1, 12, seed, min(spread, 5.0)), logits(1, 12, seed + 1, min(spread, 5.0))
    expectation = 0.0
    for token, chance in enumerate(teacher.softmax(-1)[0].tolist()):
        target = torch.tensor([token])
        supervision = Supervision(target, top_k(teacher, target, k))
        expectation += chance * float(case.loss(plain_logprobs(student, supervision), supervision).total)
    assert expectation == pytest.approx(float(exact(case, teacher, student)), rel=1e-9, abs=1e-12)


@few
@cases
@every
def test_a_teacher_against_itself_is_zero(case, seed, k, spread, plain_logprobs, supervise_with):
    teacher = logits(5, 12, seed, spread)
    supervision = supervise_with(teacher, k)
    assert abs(float(case.loss(plain_logprobs(teacher, supervision), supervision).total)) < 1e-9


@few
@cases
@bucket
def test_a_teacher_against_itself_has_nothing_to_learn(case, seed, k, spread, plain_logprobs, supervise_with):
    teacher = logits(5, 12, seed, min(spread, 5.0)).requires_grad_()
    supervision = supervise_with(teacher.detach(), k)
    case.loss(plain_logprobs(teacher, supervision), supervision).total.backward()
    assert float(teacher.grad.abs().max()) < 1e-9


@every
@pytest.mark.parametrize("k", [0, 1, 5, 12])
def test_the_gradient_is_that_of_the_returned_loss_by_finite_differences(case, k, plain_logprobs, supervise_with):
    supervision = supervise_with(logits(2, 12, seed=20), k)
    student = logits(2, 12, seed=21).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda student: case.loss(plain_logprobs(student, supervision), supervision).total, (student,)
    )


@every
def test_the_direction_is_the_definitions(case):
    """Golden: p = (0.7, 0.2, 0.1), q = (0.2, 0.5, 0.3): KL(p || q) = 0.5838, KL(q || p) = 0.5372."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.2, 0.5, 0.3]]).log()
    supervision = Supervision(torch.tensor([0]), top_k(p, torch.tensor([0]), 3))
    value = float(case.loss(Logprobs(q, torch.tensor([-math.inf]), q[:, 0]), supervision).total)
    assert value == pytest.approx(float(case.exact(p.double(), q.double())), rel=1e-5)
    assert float(kl(p, q)) == pytest.approx(0.5838, abs=1e-4)
    assert float(reverse_kl(p, q)) == pytest.approx(0.5372, abs=1e-4)
    assert value != pytest.approx(float(case.exact(q.double(), p.double())), rel=1e-3) or "0.5" in str(case.loss)


@every
def test_leaving_the_teachers_support_is_punished(case, plain_logprobs, supervise_with):
    """Renormalising both sides over the candidates would call these two students equal."""
    teacher = logits(40, 12, seed=5, spread=3.0)
    supervision = supervise_with(teacher, 4)
    stray = teacher.scatter_add(-1, supervision.candidates, torch.full((40, 4), -6.0, dtype=torch.float64))
    near = float(case.loss(plain_logprobs(teacher, supervision), supervision).total)
    far = float(case.loss(plain_logprobs(stray, supervision), supervision).total)
    assert far > near + 0.05 * 40


@bucket
def test_a_student_of_the_tail_alone_is_driven_back_into_the_support(case, plain_logprobs, supervise_with):
    """Reverse KL over the candidates alone would be least for a student that empties them."""
    supervision = supervise_with(logits(1, 12, seed=9, spread=3.0), 3)
    student = torch.zeros(1, 12, dtype=torch.float64).scatter_(-1, supervision.candidates, -4.0).requires_grad_()
    case.loss(plain_logprobs(student, supervision), supervision).total.backward()
    inside = torch.zeros(12, dtype=torch.bool)
    inside[supervision.candidates[0]] = True
    assert (student.grad[0, ~inside] > 0).all()  # descent lowers them
    assert float(student.grad[0, inside].sum()) < 0


@pytest.mark.parametrize("case", [*TABLE.values(), Case(cross_entropy, kl)], ids=[*TABLE, "cross-entropy"])
@pytest.mark.parametrize("k", [3, 12])
@pytest.mark.parametrize("size", [1e4, 80.0], ids=["logits-of-10000", "logits-of-80"])
def test_extreme_logits_give_finite_values_and_gradients(case, size, k, plain_logprobs, supervise_with):
    teacher = (size * torch.eye(6, 12)).float()
    student = (size * torch.eye(6, 12).roll(3, 1)).float().requires_grad_()
    supervision = supervise_with(teacher, k, torch.arange(6).roll(1))
    total = case.loss(plain_logprobs(student, supervision), supervision).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


@every
def test_all_mass_among_the_candidates_gives_finite_gradients(case, plain_logprobs, supervise_with):
    """P = 1 in float32: the tail rounds to nothing, and log 0 times 0 would be NaN."""
    student = logits(4, 12, seed=6).float().requires_grad_()
    teacher = torch.full((4, 12), -200.0)
    teacher[:, :2] = 0.0
    supervision = supervise_with(teacher, 2)
    total = case.loss(plain_logprobs(student, supervision), supervision).total
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(student.grad).all()


def as_stored(supervision: Supervision) -> Supervision:
    signal = supervision.teacher
    assert isinstance(signal, TopK)
    candidates = kept(signal.ids_NK.int().numpy(), signal.logprobs_NK.half().numpy())
    stored = TopK.from_storage(*(torch.from_numpy(each) for each in candidates), signal.tail_N, signal.target_N)
    return Supervision(supervision.target_ids_N, stored)


@few
@cases
@every
def test_storage_keeps_a_divergence_near_and_a_bucket_non_negative(
    case, seed, k, spread, plain_logprobs, supervise_with
):
    teacher, student = logits(5, 12, seed, spread).float(), logits(5, 12, seed + 1, spread).float()
    plain = supervise_with(teacher, k)
    stored = as_stored(plain)
    at_home = float(case.loss(plain_logprobs(teacher, stored), stored).total)
    assert abs(at_home) <= (0.03 if case.sampled else 5 * 2e-4)
    assert at_home >= -5 * 1.5e-6 or case.sampled  # a millionth a position: at K = V the floor of the tail is too much
    believed = replace(plain.teacher, tail_N=plain.teacher.tail_N.clamp(min=TAIL_FLOOR))
    truth = float(case.loss(plain_logprobs(student, plain), Supervision(plain.target_ids_N, believed)).total)
    assert float(case.loss(plain_logprobs(student, stored), stored).total) == pytest.approx(truth, rel=0.02, abs=0.02)


@every
def test_minus_infinity_from_an_engine_gives_finite_values_and_gradients(case, plain_logprobs):
    nothing = torch.tensor([-math.inf])
    stored = TopK.from_storage(
        torch.tensor([[4, 2, NO_TOKEN]]), torch.tensor([[0.0, -math.inf, -math.inf]]).half(), nothing, nothing
    )
    student = logits(1, 12, seed=15).float().requires_grad_()
    for target in (4, 7):
        supervision = Supervision(torch.tensor([target]), stored)
        total = case.loss(plain_logprobs(student, supervision), supervision).total
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(student.grad).all()


def test_a_tail_that_a_server_rounded_away_is_no_certainty_to_reverse_kl(plain_logprobs):
    """1 - P is 0 in float32 where the teacher's tail was 1e-8; read as exp(-80) it would weigh four times as much."""
    nothing = torch.tensor([-math.inf])
    stored = TopK.from_storage(torch.tensor([[4]]), torch.tensor([[0.0]]), nothing, torch.tensor([0.0]))
    supervision = Supervision(torch.tensor([4]), stored)
    student = torch.zeros(1, 12)
    total = float(reverse_kl_bucket(plain_logprobs(student, supervision), supervision).total)
    assert total == pytest.approx(math.log(1 / 12) / 12 + 11 / 12 * math.log(11 / 12 / 1e-6), rel=1e-4)


@every
def test_fillers_count_for_nothing(case, plain_logprobs, supervise_with):
    teacher, student = logits(6, 12, seed=7), logits(6, 12, seed=8)
    short = supervise_with(teacher, 3)
    signal = short.teacher
    filler = torch.full((6, 2), -80.0, dtype=torch.float64)
    longer = TopK(
        torch.cat([signal.ids_NK, torch.full((6, 2), NO_TOKEN)], 1),
        torch.cat([signal.logprobs_NK, filler], 1),
        signal.tail_N,
        signal.target_N,
    )
    long = Supervision(short.target_ids_N, longer)
    torch.testing.assert_close(
        case.loss(plain_logprobs(student, long), long).total, case.loss(plain_logprobs(student, short), short).total
    )


@every
def test_a_loss_is_a_sum_over_positions(case, plain_logprobs, supervise_with):
    supervision, student = supervise_with(logits(6, 12, seed=12), 4), logits(6, 12, seed=13)
    whole = case.loss(plain_logprobs(student, supervision), supervision)
    alone = [case.loss(plain_logprobs(student[[n]], supervision[n : n + 1]), supervision[n : n + 1]) for n in range(6)]
    torch.testing.assert_close(sum(part.total for part in alone), whole.total)
    assert whole.count == sum(part.count for part in alone) == 6


@every
def test_on_text_alone_it_is_an_error(case):
    student = Logprobs(torch.empty(1, 0), torch.zeros(1), torch.zeros(1))
    with pytest.raises(TypeError, match="signal: TopK"):
        case.loss(student, Supervision(torch.tensor([0]), Text()))


def slopes(case: Case, student: float, teacher: float) -> float:
    """d loss / d log q(y) for a written token that is no candidate."""
    written = torch.tensor([student], dtype=torch.float64, requires_grad=True)
    signal = TopK(torch.tensor([[0]]), torch.tensor([[-0.01]]), torch.tensor([-5.0]), torch.tensor([teacher]))
    logprobs = Logprobs(torch.tensor([[-0.5]]), torch.tensor([-1.0]), written)
    case.loss(logprobs, Supervision(torch.tensor([3]), signal)).total.backward()
    return float(written.grad)


@sampled
def test_a_written_token_is_drawn_up_by_no_more_than_a_constant_however_wrong_the_student(case):
    """What makes a sampled tail worth having: q / p, and with it reverse KL's slope, has no bound."""
    found = [slopes(case, student, teacher) for student in (-0.01, -5, -60, -1e4) for teacher in (-0.01, -5, -79)]
    assert all(-case.steepest - 1e-9 <= slope <= 0 for slope in found)
    assert min(found) < -0.9 * case.steepest


@pytest.mark.parametrize("k", [3, 12])
@pytest.mark.parametrize(
    ("divide", "limit"),
    [
        pytest.param((jensen_shannon_bucket, 1e-7), forward_kl_bucket, id="js-to-forward"),
        pytest.param((jensen_shannon_bucket, 1 - 1e-7), reverse_kl_bucket, id="js-to-reverse"),
        pytest.param((skew_kl_bucket, 1e-9), forward_kl_bucket, id="skew-to-forward"),
        pytest.param((jensen_shannon_sampled, 1e-7), forward_kl_sampled, id="js-to-forward-sampled"),
        pytest.param((skew_kl_sampled, 1e-9), forward_kl_sampled, id="skew-to-forward-sampled"),
    ],
)
def test_at_its_ends_a_mixture_becomes_a_kl(divide, limit, k, plain_logprobs, supervise_with):
    loss, beta = divide
    supervision, student = supervise_with(logits(6, 12, seed=16), k), logits(6, 12, seed=17)
    seen = plain_logprobs(student, supervision)
    scale = beta * (1 - beta) if loss in (jensen_shannon_bucket, jensen_shannon_sampled) else 1.0
    value = loss(seen, supervision, beta=beta).total / scale
    torch.testing.assert_close(value, limit(seen, supervision).total, rtol=1e-5, atol=1e-5)


@few
@cases
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_a_mixture_bounds_its_divergence(beta, seed, k, spread, plain_logprobs, supervise_with):
    supervision, student = supervise_with(logits(1, 12, seed, spread), k), logits(1, 12, seed + 1, spread)
    seen = plain_logprobs(student, supervision)
    entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert float(jensen_shannon_bucket(seen, supervision, beta=beta).total) <= entropy + 1e-12
    assert float(skew_kl_bucket(seen, supervision, beta=beta).total) <= -math.log(beta) + 1e-12


def test_jensen_shannon_at_one_half_does_not_know_teacher_from_student(plain_logprobs, supervise_with):
    one, other = logits(6, 12, seed=18), logits(6, 12, seed=19)
    there, back = supervise_with(one, 12), supervise_with(other, 12)
    torch.testing.assert_close(
        jensen_shannon_bucket(plain_logprobs(other, there), there, beta=0.5).total,
        jensen_shannon_bucket(plain_logprobs(one, back), back, beta=0.5).total,
    )

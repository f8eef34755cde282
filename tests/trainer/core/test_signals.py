"""What is read off a teacher: candidates, tail, the written token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_trainer.core.floors import LOGPROB_FLOOR
from kubedistill_trainer.core.signals import TopK, tail_logprob, top_k


@given(st.floats(1e-12, 0.999))
def test_a_servers_tail_is_what_is_left_over(left):
    """Near one the K probabilities leave almost nothing: the precision of a float is all that is lost."""
    p = 1.0 - left
    logprobs = [math.log(p * share) for share in (0.6, 0.3, 0.1)]
    assert math.exp(tail_logprob(logprobs)) == pytest.approx(left, abs=1e-15, rel=1e-3)


def test_candidates_and_tail_of_logits_hold_all_the_mass():
    logits_NV = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)) * 4
    signal = top_k(logits_NV, torch.arange(8), 5)
    torch.testing.assert_close(signal.logprobs_NK.exp().sum(-1) + signal.tail_N.exp(), torch.ones(8))
    torch.testing.assert_close(signal.target_N, logits_NV.log_softmax(-1)[torch.arange(8), torch.arange(8)])
    assert (signal.logprobs_NK.diff() <= 0).all()


def test_the_tail_of_a_confident_teacher_is_summed_not_cancelled():
    """1 - P is 3e-9 here, far below float32's resolution of P itself."""
    logits_NV = torch.tensor([[20.0, 0.0, 0.0, -30.0]])
    signal = top_k(logits_NV, torch.tensor([0]), 2)
    exact = math.log((1 + math.exp(-30)) / (math.exp(20) + 2 + math.exp(-30)))
    assert float(signal.tail_N) == pytest.approx(exact, rel=1e-6)


def test_no_mass_is_the_floor_and_never_minus_infinity():
    signal = top_k(torch.tensor([[0.0, -1e4, -1e4]]), torch.tensor([2]), 3)
    for values in (signal.logprobs_NK, signal.tail_N, signal.target_N):
        assert torch.isfinite(values).all()
        assert float(values.min()) == LOGPROB_FLOOR


@pytest.mark.parametrize(
    ("logprobs", "tail"),
    [
        ([math.log(0.5), math.log(0.25)], math.log(0.25)),
        ([0.0], LOGPROB_FLOOR),
        ([math.log(0.6), math.log(0.400001)], LOGPROB_FLOOR),
        ([], 0.0),
    ],
    ids=["a-quarter-is-left", "nothing-is-left", "the-server-rounded-up", "no-candidates"],
)
def test_a_servers_logprobs_leave_a_tail(logprobs, tail):
    assert tail_logprob(logprobs) == pytest.approx(tail)


def test_minus_infinity_from_an_engine_becomes_the_floor_when_read():
    stored = TopK.from_storage(
        torch.tensor([[4, 2]]), torch.tensor([[0.0, -math.inf]]), torch.tensor([-math.inf]), torch.tensor([-math.inf])
    )
    for values in (stored.logprobs_NK, stored.tail_N, stored.target_N):
        assert torch.isfinite(values).all()

"""Gates decide by numbers alone."""

from __future__ import annotations

import math

import pytest

from kubedistill_api.evaluation import Gate, GateOf, Metric, OnGateFailure, Operator
from kubedistill_api.status import GateOutcome
from kubedistill_trainer.core.gates import Compared, decimal, judge, scores


def a_gate(metric: Metric, of: GateOf, asked: str, on_failure: OnGateFailure = OnGateFailure.FAIL) -> Gate:
    sign, value = asked.split()
    return Gate(metric=metric, of=of, operator=Operator(sign), value=float(value), on_failure=on_failure)


ACCURACY = Compared(Metric.ACCURACY, student=0.81, baseline=0.30, teacher=0.90)
PERPLEXITY = Compared(Metric.PERPLEXITY, student=5.0, baseline=400.0, teacher=4.0)
AGREEMENT_WITHOUT_TEACHER = Compared(Metric.TEACHER_AGREEMENT, student=0.5)

CASES = [
    pytest.param(ACCURACY, GateOf.STUDENT, ">= 0.81", GateOutcome.PASSED, id="at least, exactly reached"),
    pytest.param(ACCURACY, GateOf.STUDENT, "> 0.81", GateOutcome.FAILED, id="above, exactly reached"),
    pytest.param(ACCURACY, GateOf.STUDENT, "<= 0.81", GateOutcome.PASSED, id="at most, exactly reached"),
    pytest.param(ACCURACY, GateOf.STUDENT, "< 0.81", GateOutcome.FAILED, id="below, exactly reached"),
    pytest.param(ACCURACY, GateOf.RETAINED_SHARE, ">= 0.9", GateOutcome.PASSED, id="retained share, higher is better"),
    pytest.param(PERPLEXITY, GateOf.RETAINED_SHARE, ">= 0.8", GateOutcome.PASSED, id="retained share is inverted"),
    pytest.param(PERPLEXITY, GateOf.RETAINED_SHARE, "> 0.8", GateOutcome.FAILED, id="retained share, not reached"),
    pytest.param(ACCURACY, GateOf.CHANGE, ">= 0.5", GateOutcome.PASSED, id="change, gained"),
    pytest.param(PERPLEXITY, GateOf.CHANGE, "<= -390", GateOutcome.PASSED, id="change, fell"),
    pytest.param(
        AGREEMENT_WITHOUT_TEACHER, GateOf.RETAINED_SHARE, ">= 0", GateOutcome.FAILED, id="no teacher's number"
    ),
    pytest.param(AGREEMENT_WITHOUT_TEACHER, GateOf.CHANGE, ">= 0", GateOutcome.FAILED, id="no baseline's number"),
    pytest.param(Compared(Metric.BLEU, math.nan), GateOf.STUDENT, ">= 0", GateOutcome.FAILED, id="not a number"),
]


@pytest.mark.parametrize(("compared", "of", "asked", "outcome"), CASES)
def test_a_gate_compares_the_number_it_asks_for(
    compared: Compared, of: GateOf, asked: str, outcome: GateOutcome
) -> None:
    verdict = judge([compared], [a_gate(compared.metric, of, asked)])[-1]
    assert verdict.outcome is outcome


def test_a_gate_that_only_warns_never_fails() -> None:
    gate = a_gate(Metric.ACCURACY, GateOf.STUDENT, ">= 0.99", OnGateFailure.WARN)
    assert judge([ACCURACY], [gate])[-1].outcome is GateOutcome.WARNED


def test_a_gate_on_a_metric_nobody_measured_fails_and_says_so() -> None:
    verdict = judge([], [a_gate(Metric.ACCURACY, GateOf.STUDENT, ">= 0")])[0]
    assert verdict.outcome is GateOutcome.FAILED
    assert "could not be measured" in verdict.sentence


NOT_WORSE = [
    pytest.param(Metric.TEACHER_KL, 0.7, 3.1, GateOutcome.PASSED, id="better"),
    pytest.param(Metric.TEACHER_KL, 3.1, 3.1, GateOutcome.PASSED, id="equal"),
    pytest.param(Metric.TEACHER_KL, 3.1001, 3.1, GateOutcome.PASSED, id="worse within noise"),
    pytest.param(Metric.TEACHER_KL, 3.2, 3.1, GateOutcome.FAILED, id="worse"),
    pytest.param(Metric.TEACHER_KL, 0.0, 0.0, GateOutcome.PASSED, id="the teacher itself"),
    pytest.param(Metric.TEACHER_KL, math.nan, 3.1, GateOutcome.FAILED, id="training diverged"),
    pytest.param(Metric.PERPLEXITY, 9.0, 8.0, GateOutcome.FAILED, id="text alone, worse"),
]


@pytest.mark.parametrize(("metric", "after", "before", "outcome"), NOT_WORSE)
def test_a_student_worse_than_the_untrained_one_is_refused_without_any_gate(
    metric: Metric, after: float, before: float, outcome: GateOutcome
) -> None:
    (verdict,) = judge([Compared(metric, after, before)], [])
    assert (verdict.metric, verdict.outcome) == (metric, outcome)


def test_the_free_gate_prefers_the_divergence_to_the_perplexity() -> None:
    better_kl, worse_text = Compared(Metric.TEACHER_KL, 1.0, 2.0), Compared(Metric.PERPLEXITY, 9.0, 8.0)
    (verdict,) = judge([worse_text, better_kl], [])
    assert (verdict.metric, verdict.outcome) == (Metric.TEACHER_KL, GateOutcome.PASSED)


def test_a_metric_with_several_gates_shows_the_worst() -> None:
    gates = [
        a_gate(Metric.ACCURACY, GateOf.STUDENT, ">= 0.1"),
        a_gate(Metric.ACCURACY, GateOf.STUDENT, ">= 0.99", OnGateFailure.WARN),
    ]
    (score,) = scores([ACCURACY], judge([ACCURACY], gates))
    assert score.gate is GateOutcome.WARNED
    assert (score.student, score.baseline, score.teacher, score.retained) == ("0.810", "0.300", "0.900", "0.900")


def test_a_metric_without_a_gate_shows_none() -> None:
    (score,) = scores([AGREEMENT_WITHOUT_TEACHER], [])
    assert score.gate is GateOutcome.NONE
    assert (score.baseline, score.teacher, score.retained) == ("", "", "")


def test_a_divergence_has_no_retained_share_since_the_teachers_own_is_nothing() -> None:
    assert Compared(Metric.TEACHER_KL, student=0.7, baseline=3.0, teacher=0.0).retained is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "", id="none"),
        pytest.param(0.12345, "0.123", id="small"),
        pytest.param(-2.0, "-2.000", id="negative"),
        pytest.param(123456.7, "123457", id="large"),
        pytest.param(1e40, "1.000e+40", id="beyond words"),
    ],
)
def test_decimals_stay_short(value: float | None, text: str) -> None:
    assert decimal(value) == text

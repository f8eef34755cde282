"""Gates: what must hold of a comparison before the model is published."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kubedistill_api.evaluation import Gate, GateOf, Metric, OnGateFailure, Operator
from kubedistill_api.status import GateOutcome, Score
from kubedistill_trainer.core.scores import retained_share

NOISE = 1e-3
"""Relative. Two measurements of equal weights may differ by this much when a batch was put together differently."""

_COMPARE: Mapping[Operator, Callable[[float, float], bool]] = {
    Operator.AT_LEAST: operator.ge,
    Operator.AT_MOST: operator.le,
    Operator.ABOVE: operator.gt,
    Operator.BELOW: operator.lt,
}
_WORST = (GateOutcome.NONE, GateOutcome.PASSED, GateOutcome.WARNED, GateOutcome.FAILED)


@dataclass(frozen=True)
class Compared:
    """One metric side by side, in its own unit. None: there is no such number."""

    metric: Metric
    student: float | None
    baseline: float | None = None
    teacher: float | None = None

    @property
    def retained(self) -> float | None:
        """Student / teacher, or teacher / student where lower is better; None where the quotient says nothing."""
        lower = self.metric.lower_is_better
        if self.student is None or self.teacher is None or (lower and not self.teacher):
            return None  # a teacher's divergence from itself is 0: every student would retain nothing
        return retained_share(self.student, self.teacher, lower_is_better=lower)

    @property
    def change(self) -> float | None:
        """What training added to the untrained student's number; negative is better where lower is better."""
        return None if self.student is None or self.baseline is None else self.student - self.baseline


@dataclass(frozen=True)
class Verdict:
    """How one gate ended, and the sentence that says so."""

    metric: Metric
    outcome: GateOutcome
    sentence: str


def judge(comparison: Sequence[Compared], gates: Sequence[Gate]) -> list[Verdict]:
    """The verdict of the gate that is always there, then of each gate asked for, in order."""
    by_metric = {compared.metric: compared for compared in comparison}
    asked = [_judge_one(gate, by_metric.get(gate.metric)) for gate in gates]
    return [*not_worse(by_metric), *asked]


def not_worse(by_metric: Mapping[Metric, Compared]) -> list[Verdict]:
    """The student is not worse than the untrained one: by its KL to the teacher, or else by its perplexity.

    Empty if neither was measured on both.
    """
    for metric in (Metric.TEACHER_KL, Metric.PERPLEXITY):
        compared = by_metric.get(metric)
        if compared is None or compared.student is None or compared.baseline is None:
            continue
        holds = compared.student <= compared.baseline * (1 + NOISE) + NOISE**2
        word = "is not worse" if holds else "is worse"
        numbers = f"{metric} {decimal(compared.student)} after training, {decimal(compared.baseline)} before"
        outcome = GateOutcome.PASSED if holds else GateOutcome.FAILED
        return [Verdict(metric, outcome, f"The student {word} than the untrained one: {numbers}.")]
    return []


def scores(comparison: Iterable[Compared], verdicts: Sequence[Verdict]) -> list[Score]:
    """The comparison as the status shows it; a metric with several gates shows the worst of them."""
    return [
        Score(
            metric=compared.metric,
            student=decimal(compared.student),
            baseline=decimal(compared.baseline),
            teacher=decimal(compared.teacher),
            retained=decimal(compared.retained),
            gate=_worst(verdict.outcome for verdict in verdicts if verdict.metric is compared.metric),
        )
        for compared in comparison
    ]


def decimal(value: float | None) -> str:
    """A number as the status holds it: three decimals, none from a thousand on; empty for None."""
    if value is None:
        return ""
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.0f}" if abs(value) < 1e15 else f"{value:.3e}"


def _judge_one(gate: Gate, compared: Compared | None) -> Verdict:
    name, value = _number(gate, compared)
    asked = f"{gate.operator} {gate.value:g}"
    if value is None:
        return Verdict(gate.metric, _refused(gate), f"{name} must be {asked}, but could not be measured.")
    holds = _COMPARE[gate.operator](value, gate.value)
    outcome = GateOutcome.PASSED if holds else _refused(gate)
    return Verdict(gate.metric, outcome, f"{name} is {decimal(value)}, {'as asked' if holds else 'not'} {asked}.")


def _number(gate: Gate, compared: Compared | None) -> tuple[str, float | None]:
    compared = compared or Compared(gate.metric, None)
    match gate.of:
        case GateOf.STUDENT:
            return f"The student's {gate.metric}", compared.student
        case GateOf.RETAINED_SHARE:
            return f"The share of the teacher's {gate.metric} that the student retains", compared.retained
        case GateOf.CHANGE:
            return f"The change of {gate.metric} by training", compared.change


def _refused(gate: Gate) -> GateOutcome:
    return GateOutcome.FAILED if gate.on_failure is OnGateFailure.FAIL else GateOutcome.WARNED


def _worst(outcomes: Iterable[GateOutcome]) -> GateOutcome:
    return max(outcomes, key=_WORST.index, default=GateOutcome.NONE)

"""Evaluation: what is measured on held-out prompts, and what a student must reach to be published."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Model
from kubedistill_api.rules import Rule


class Metric(StrEnum):
    """What is measured. Perplexity, TeacherKL, Latency and Memory are better when lower."""

    ACCURACY = "Accuracy"
    EXACT_MATCH = "ExactMatch"
    BLEU = "BLEU"
    ROUGE = "ROUGE"
    PERPLEXITY = "Perplexity"
    TEACHER_AGREEMENT = "TeacherAgreement"
    TEACHER_KL = "TeacherKL"
    LATENCY = "Latency"
    THROUGHPUT = "Throughput"
    MEMORY = "Memory"

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller number is the better one."""
        return self in (Metric.PERPLEXITY, Metric.TEACHER_KL, Metric.LATENCY, Metric.MEMORY)


class Compare(StrEnum):
    """What the trained student is set beside."""

    STUDENT = "Student"
    TEACHER = "Teacher"


class GateOf(StrEnum):
    """Which number a gate looks at: the student's own, its share of the teacher's, or its change by training."""

    STUDENT = "Student"
    RETAINED_SHARE = "RetainedShare"
    CHANGE = "Change"


class Operator(StrEnum):
    """How a gate compares."""

    AT_LEAST = ">="
    AT_MOST = "<="
    ABOVE = ">"
    BELOW = "<"


class OnGateFailure(StrEnum):
    """What a gate that does not hold does."""

    FAIL = "Fail"
    WARN = "Warn"


TIMED = (Metric.LATENCY, Metric.THROUGHPUT)
"""Measured on the trained student, and on a teacher whose weights are at hand."""


class Gate(Model):
    """What must hold before the model is published."""

    rules: ClassVar = (
        Rule(
            cel="!(self.of == 'RetainedShare' && self.metric == 'TeacherKL') && "
            "!(self.of == 'Change' && self.metric in ['Latency', 'Throughput'])",
            message="this gate could never be measured (a teacher's divergence from itself is 0, and the untrained "
            "student is not timed): write of: Student",
            holds=lambda gate: (
                not (gate.of is GateOf.RETAINED_SHARE and gate.metric is Metric.TEACHER_KL)
                and not (gate.of is GateOf.CHANGE and gate.metric in TIMED)
            ),
            field="of",
        ),
    )

    metric: Metric
    """One of `metrics`."""
    of: GateOf = GateOf.STUDENT
    """Which number of it."""
    operator: Operator
    """How it is compared."""
    value: Annotated[float, Field(ge=-1e12, le=1e12)]
    """With what."""
    on_failure: OnGateFailure = OnGateFailure.FAIL
    """`Fail`: nothing is published. `Warn`: the status and the model card say so."""


class Evaluation(Model):
    """What is measured, beside what, and what must hold."""

    rules: ClassVar = (
        Rule(
            cel="self.gates.all(gate, gate.metric in self.metrics)",
            message="a gate's metric must be one of evaluation.metrics: add it there",
            holds=lambda evaluation: all(gate.metric in evaluation.metrics for gate in evaluation.gates),
            field="gates",
        ),
        Rule(
            cel="'Teacher' in self.compareWith || self.gates.all(gate, gate.of != 'RetainedShare')",
            message="a gate of: RetainedShare needs the teacher's number: write Teacher in evaluation.compareWith",
            holds=lambda evaluation: (
                Compare.TEACHER in evaluation.compare_with
                or all(gate.of is not GateOf.RETAINED_SHARE for gate in evaluation.gates)
            ),
            field="compareWith",
        ),
        Rule(
            cel="'Student' in self.compareWith || self.gates.all(gate, gate.of != 'Change')",
            message="a gate of: Change needs the untrained student's number: write Student in evaluation.compareWith",
            holds=lambda evaluation: (
                Compare.STUDENT in evaluation.compare_with
                or all(gate.of is not GateOf.CHANGE for gate in evaluation.gates)
            ),
            field="compareWith",
        ),
    )

    metrics: Annotated[list[Metric], Field(min_length=1, max_length=10)] = [
        Metric.PERPLEXITY,
        Metric.TEACHER_AGREEMENT,
        Metric.TEACHER_KL,
        Metric.ROUGE,
        Metric.LATENCY,
        Metric.THROUGHPUT,
        Metric.MEMORY,
    ]
    """What is measured. Accuracy needs labels; TeacherAgreement and TeacherKL need `signal: TopK`, and are left out
    without it."""
    compare_with: Annotated[list[Compare], Field(max_length=2)] = [Compare.STUDENT, Compare.TEACHER]
    """The untrained student, and the teacher's recorded answers."""
    gates: Annotated[list[Gate], Field(max_length=16)] = []
    """What must hold. One more is always there: the student is not worse than the untrained one."""
    max_rows: Annotated[int, Field(ge=1, le=10**6)] = 500
    """Held-out prompts that the student answers in full (teacher-forced metrics use all of them)."""

"""What a task needs of the labels in the data."""

from __future__ import annotations

from collections.abc import Sequence

from kubedistill_api.base import Task
from kubedistill_api.evaluation import Metric
from kubedistill_api.job import DistillationJobSpec
from kubedistill_trainer.core.quantities import number_in, several_in
from kubedistill_trainer.core.rows import LabelError, Row
from kubedistill_trainer.errors import BadData

_WRITE = "write it as label, or map your own name with data.columns: {label: answer}"


def check_row(row: Row, task: Task, labels: Sequence[str]) -> None:
    """Raises LabelError: the row has a label, and no answer to this task could ever agree with it."""
    if row.label is None:
        return
    if task is Task.CLASSIFICATION and row.label.strip().casefold() not in {label.casefold() for label in labels}:
        raise LabelError(f"the label {row.label!r} is none of data.labels ({', '.join(labels[:10])})")
    if task is Task.MATH and number_in(row.label) is None:
        raise LabelError(
            f"the label {row.label[:60]!r} holds no number that can be read, and task: Math compares numbers; write "
            "for example 42, -1.5 or 3/4"
        )
    if task is Task.MATH and several_in(row.label):
        raise LabelError(
            f"the label {_end(row.label)!r} could mean more than one number, and task: Math compares one; write the "
            'one that counts, alone or after reasoning as "#### 42"; for pairs, ratios and several solutions take '
            "task: QuestionAnswering"
        )


def _end(label: str) -> str:
    """Where the number stands, if the label is long."""
    return label if len(label) <= 60 else f"…{label[-60:]}"


def check_all(spec: DistillationJobSpec, train: Sequence[Row], valid: Sequence[Row]) -> list[str]:
    """Check that labels are there where the spec compares with them; notes come back.

    Raises:
        BadData: what was asked for needs labels, and there are none.
    """
    unlabelled = sum(row.label is None for row in train)
    examined = any(row.label for row in valid)
    if spec.generation.filters.require_label_match and unlabelled == len(train):
        raise BadData(
            "LabelsMissing",
            "generation.filters.requireLabelMatch compares answers with labels, but no training row has a label: "
            f"{_WRITE}; or leave requireLabelMatch out.",
        )
    if any(gate.metric is Metric.ACCURACY for gate in spec.evaluation.gates) and not examined:
        raise BadData(
            "LabelsMissing",
            f"evaluation.gates asks for Accuracy, but no held-out row has a label: {_WRITE}; or take the gate out.",
        )
    notes = []
    if Metric.ACCURACY in spec.evaluation.metrics and not examined:
        notes.append("No held-out row has a label: Accuracy will be left out.")
    if spec.task is Task.MATH and unlabelled:
        notes.append(f"{unlabelled} training rows have no label: what the teacher gets wrong there trains the student.")
    return notes

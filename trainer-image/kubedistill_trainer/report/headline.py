"""What came of an evaluation, in a sentence or two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kubedistill_api.evaluation import Metric
from kubedistill_trainer.core.footprint import Size
from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.report.content import amount, share, shown

_CLAUSES: Mapping[Metric, str] = {
    Metric.ACCURACY: "answers {number} of the labelled prompts rightly",
    Metric.TEACHER_AGREEMENT: "agrees with its {teacher} on {number} of the tokens",
    Metric.TEACHER_KL: "is {number} away from its {teacher}",
    Metric.PERPLEXITY: "reads the {whose} answers with a perplexity of {number}",
}


def headline(
    comparison: Sequence[Compared], sizes: Mapping[str, Size], layers: tuple[int, int] | None, teachers: int = 1
) -> str:
    """How large the student is, and how close to its teachers. `layers`: kept, and of how many."""
    several = teachers > 1
    said = [_clause(compared, several) for compared in comparison if compared.metric in _CLAUSES][:2]
    close = f"It {' and '.join(said)}." if said else ""
    return " ".join(part for part in (_size(sizes, layers, several), close) if part)


def _size(sizes: Mapping[str, Size], layers: tuple[int, int] | None, several: bool) -> str:
    if "Student" not in sizes:
        return ""
    student, teacher = sizes["Student"], sizes.get("Teacher")
    of = (
        f", {share(student.parameters / teacher.parameters)} of the teacher's" if teacher and teacher.parameters else ""
    )
    kept = f" in {layers[0]} of {'one' if several else 'the'} teacher's {layers[1]} layers" if layers else ""
    return f"The student has {amount(student.parameters)} parameters{kept}{of}."


def _clause(compared: Compared, several: bool) -> str:
    teacher, whose = ("teachers", "teachers'") if several else ("teacher", "teacher's")
    number = shown(compared.metric, compared.student)
    said = _CLAUSES[compared.metric].format(number=number, teacher=teacher, whose=whose)
    before = f" ({shown(compared.metric, compared.baseline)} before training)" if compared.baseline is not None else ""
    return said + before

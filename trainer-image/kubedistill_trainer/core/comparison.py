"""Student before, student after and teacher as numbers side by side, and as answers side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from kubedistill_api.base import Task
from kubedistill_api.evaluation import TIMED, Metric
from kubedistill_api.job import LABELLED_TASKS
from kubedistill_trainer.core import scores
from kubedistill_trainer.core.answers import agrees
from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.footprint import Size, Speed
from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.core.scores import Reading
from kubedistill_trainer.core.signals import TopK


class Match(StrEnum):
    """How the trained student's answer stands to what was expected."""

    RIGHT = "Right"
    WRONG = "Wrong"
    SAME = "Same"
    CLOSER = "Closer"
    NO_CLOSER = "NoCloser"
    OTHER = "Other"


@dataclass(frozen=True)
class Measured:
    """What is known of one model. None: it was not measured."""

    reading: Reading | None = None
    answers: Sequence[str] | None = None
    """To the questions, in their order."""
    unended: int = 0
    """Of these answers, those that came to no end in the length they were given."""
    size: Size | None = None
    speed: Speed | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    """The parts of the reading, by the teacher whose answers were read."""


@dataclass(frozen=True)
class Yardstick:
    """What answers and readings are held against."""

    task: Task
    labels: Sequence[str]
    """Classification: the answers that count."""
    expected: Sequence[str]
    """For each question, its label; empty: none is known."""
    teacher: Sequence[str]
    """For each question, the teacher's answer."""
    guidance: Guidance = field(default_factory=Guidance)
    """How the teacher was led to it: tells what of a reasoned answer is the answer."""
    names: Sequence[str] = ()
    """For each question, the teacher whose answer it has."""

    def only(self, name: str) -> tuple[Yardstick, list[int]]:
        """The questions of one teacher, and which they are among all."""
        kept = [index for index, one in enumerate(self.names) if one == name]
        parts = ([side[index] for index in kept] for side in (self.expected, self.teacher, self.names))
        expected, answers, names = parts
        return replace(self, expected=expected, teacher=answers, names=names), kept

    @property
    def references(self) -> list[str]:
        """What an answer should be: the label where one is known, else what the teacher said."""
        return [label or answer for label, answer in zip(self.expected, self.teacher, strict=True)]

    def proper(self, texts: Sequence[str]) -> list[str]:
        """Answers without the reasoning before them, as they are judged."""
        return [self.guidance.judged(text) for text in texts]

    def same(self, one: str, other: str) -> bool:
        """Whether two answers are equal: as numbers where numbers are asked for, else but for their dress."""
        first, second = self.proper([one, other])
        return bool(scores.exact_match([first], [second], self.task))

    @property
    def labelled(self) -> list[int]:
        """Indices of the questions with a label."""
        return [index for index, label in enumerate(self.expected) if label]


def compare(
    metrics: Sequence[Metric], by: Yardstick, before: Measured, after: Measured, teacher: Measured
) -> list[Compared]:
    """The metrics that the trained student has a number for, in the order asked for; the one that is always judged
    comes last if nobody asked for it.

    With several teachers each answer is held against that of the prompt's own teacher, and so is what the student
    thinks of each of its tokens: "the teacher" is whoever answered.

    The divergence takes the tail as one class: a lower bound, but never negative, and comparable between jobs
    whatever their sampling was.
    """
    always = Metric.TEACHER_KL if after.reading and after.reading.scored else Metric.PERPLEXITY
    rows = (
        Compared(metric, *(_NUMBERS[metric](measured, by) for measured in (after, before, teacher)))
        for metric in dict.fromkeys([*metrics, always])
    )
    return [row for row in rows if row.student is not None]


def by_teacher(
    metrics: Sequence[Metric], by: Yardstick, before: Measured, after: Measured, teacher: Measured
) -> dict[str, list[Compared]]:
    """The same for each teacher's prompts alone, by its name; speed and size are the student's, whoever taught it."""
    told = [metric for metric in metrics if metric not in (*TIMED, Metric.MEMORY)]
    found = {}
    for name in after.readings:
        only, kept = by.only(name)

        def part(measured: Measured, name: str = name, kept: Sequence[int] = kept) -> Measured:
            answers = [measured.answers[index] for index in kept] if measured.answers and kept else None
            return Measured(measured.readings.get(name), answers)

        found[name] = compare(told, only, *(part(measured) for measured in (before, after, teacher)))
    return found


def teacher_reading(examples: Sequence[Example]) -> Reading | None:
    """The teacher reading its own answers, from the logprobs it left; None if it left none."""
    signals = [example.teacher for example in examples if isinstance(example.teacher, TopK)]
    if not signals:
        return None
    count = sum(len(signal) for signal in signals)
    likelihood = -sum(float(signal.target_N.sum()) for signal in signals)
    return Reading(count, likelihood, scored=count, agreements=count)


def match(index: int, before: str | None, after: str, by: Yardstick) -> Match:
    """How the trained student's answer to a question stands to what was expected."""
    label, reference = by.expected[index], by.references[index]
    if label and by.task in LABELLED_TASKS:
        return Match.RIGHT if agrees(by.proper([after])[0], label, by.task, by.labels) else Match.WRONG
    if by.same(after, reference):
        return Match.SAME
    if before is None:
        return Match.OTHER
    closer = scores.rouge([after], [reference]) > scores.rouge([before], [reference])
    return Match.CLOSER if closer else Match.NO_CLOSER


def _accuracy(measured: Measured, by: Yardstick) -> float | None:
    if measured.answers is None or not by.labelled:
        return None
    answers = by.proper([measured.answers[index] for index in by.labelled])
    return scores.accuracy(answers, [by.expected[index] for index in by.labelled], by.task, by.labels)


def _exact_match(measured: Measured, by: Yardstick) -> float | None:
    if measured.answers is None:
        return None
    return scores.exact_match(by.proper(measured.answers), by.proper(by.references), by.task)


def _against_references(metric: Callable[[Sequence[str], Sequence[str]], float]) -> _Number:
    def number(measured: Measured, by: Yardstick) -> float | None:
        return None if measured.answers is None else metric(measured.answers, by.references)

    return number


def _of_reading(number: Callable[[Reading], float | None]) -> _Number:
    return lambda measured, _: None if measured.reading is None else number(measured.reading)


def _of_speed(number: Callable[[Speed], float]) -> _Number:
    return lambda measured, _: None if measured.speed is None else number(measured.speed)


_Number = Callable[[Measured, Yardstick], float | None]
_NUMBERS: Mapping[Metric, _Number] = {
    Metric.ACCURACY: _accuracy,
    Metric.EXACT_MATCH: _exact_match,
    Metric.BLEU: _against_references(scores.bleu),
    Metric.ROUGE: _against_references(scores.rouge),
    Metric.PERPLEXITY: _of_reading(lambda reading: reading.perplexity),
    Metric.TEACHER_AGREEMENT: _of_reading(lambda reading: reading.agreement),
    Metric.TEACHER_KL: _of_reading(lambda reading: reading.teacher_kl(sampled_tail=False)),
    Metric.LATENCY: _of_speed(lambda speed: speed.latency_p50),
    Metric.THROUGHPUT: _of_speed(lambda speed: speed.tokens_per_second),
    Metric.MEMORY: lambda measured, _: None if measured.size is None else measured.size.mebibytes,
}

"""What a report says, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from kubedistill_api.base import Task
from kubedistill_api.evaluation import Metric
from kubedistill_api.status import Estimate, Ledger
from kubedistill_trainer.core.comparison import Match
from kubedistill_trainer.core.footprint import Size, Speed
from kubedistill_trainer.core.gates import Compared, Verdict

MATCH_WORDS: Mapping[Match, str] = {
    Match.RIGHT: "right",
    Match.WRONG: "wrong",
    Match.SAME: "word for word",
    Match.CLOSER: "closer than before",
    Match.NO_CLOSER: "no closer than before",
    Match.OTHER: "in other words",
}


@dataclass(frozen=True)
class Turn:
    """One message of a prompt."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """One held-out prompt and its answers, side by side."""

    row_id: str
    prompt: Sequence[Turn]
    before: str | None
    """None: the untrained student was not asked (`evaluation.compareWith`)."""
    after: str
    teacher: str
    label: str
    """The answer that counts; empty: none is known."""
    match: Match
    teacher_name: str = ""
    """Who answered."""


@dataclass(frozen=True)
class Point:
    """A value at an optimizer step."""

    step: int
    value: float


@dataclass(frozen=True)
class Scorecard:
    """What an evaluation found; `scores.json`, from which Publish makes the model card."""

    headline: str
    """What came of it, in a sentence or two."""
    comparison: Sequence[Compared]
    verdicts: Sequence[Verdict]
    sizes: Mapping[str, Size] = field(default_factory=dict)
    """By who: Student, Teacher."""
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """What a reader must know to judge the numbers."""
    by_teacher: Mapping[str, Sequence[Compared]] = field(default_factory=dict)
    """The comparison on each teacher's prompts alone; empty: there is one teacher."""


SCORECARD = TypeAdapter(Scorecard)
"""Reads and writes scorecards as JSON; a number that is none becomes null."""


@dataclass(frozen=True)
class Report:
    """Everything that the report of an evaluation shows. What is empty is left out."""

    job: str
    """namespace/name."""
    task: Task
    card: Scorecard
    training_loss: Sequence[Point] = ()
    """Nats a target token."""
    validation_loss: Sequence[Point] = ()
    answer_lengths: Sequence[int] = ()
    """Tokens of each accepted answer."""
    prompt_lengths: Sequence[int] = ()
    """Tokens of each accepted answer's prompt."""
    ledger: Ledger | None = None
    estimate: Estimate | None = None
    lineage: Sequence[tuple[str, str]] = ()
    """Label and value, in the order in which they are shown."""
    samples: Sequence[Sample] = ()
    samples_elsewhere: int = 0
    """Rows that were sampled but are only in samples.jsonl."""


@dataclass(frozen=True)
class MetricText:
    """What a metric is called, in which unit it is shown, and what it says."""

    title: str
    unit: str
    meaning: str
    factor: float = 1.0
    """From the stored number to the shown one."""


METRICS: Mapping[Metric, MetricText] = {
    Metric.ACCURACY: MetricText("Accuracy", "%", "answers that name the right label", 100),
    Metric.EXACT_MATCH: MetricText("Exact match", "%", "answers equal to the expected one, case and blanks aside", 100),
    Metric.BLEU: MetricText("BLEU", "", "n-grams shared with the expected answer, 0 to 100"),
    Metric.ROUGE: MetricText("ROUGE-L", "%", "longest common run of words with the expected answer", 100),
    Metric.PERPLEXITY: MetricText("Perplexity", "", "of the teacher's answers; lower is better"),
    Metric.TEACHER_AGREEMENT: MetricText(
        "Agreement", "%", "positions where student and teacher think the same token likeliest", 100
    ),
    Metric.TEACHER_KL: MetricText("KL to the teacher", "nats", "divergence a token; lower is better, 0 is the teacher"),
    Metric.LATENCY: MetricText("Latency", "s", "median time to a whole answer, one prompt at a time; lower is better"),
    Metric.THROUGHPUT: MetricText("Throughput", "tokens/s", "answering in batches"),
    Metric.MEMORY: MetricText("Memory", "MiB", "of the weights; lower is better"),
}


def shown(metric: Metric, value: float | None) -> str:
    """A number of this metric as people read it: three significant digits and its unit; a dash for None."""
    if value is None:
        return "–"
    text = METRICS[metric]
    number = three_digits(value * text.factor)
    return f"{number} {text.unit}".rstrip()


def three_digits(value: float) -> str:
    """1.23, 12.3, 123, 1,234, 1.23e+09."""
    size = abs(value)
    if size >= 1e9 or (0 < size < 1e-3):
        return f"{value:.2e}"
    digits = 2 if size < 10 else 1 if size < 100 else 0
    return f"{value:,.{digits}f}"


def share(value: float | None) -> str:
    """A share as percent; a dash for None."""
    return "–" if value is None else f"{100 * value:.0f} %"


def amount(count: int) -> str:
    """A count with a short suffix: 99.2 M, 135 M, 8.03 B."""
    for size, suffix in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{three_digits(count / size)} {suffix}"
    return str(count)


def data_size(count: int) -> str:
    """Bytes in binary units: 189 MiB, 14.9 GiB."""
    for size, suffix in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{three_digits(count / size)} {suffix}"
    return f"{count} B"


def seconds(value: float) -> str:
    """A duration: 42 ms, 1.23 s."""
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{three_digits(value)} s"

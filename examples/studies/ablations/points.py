"""What is trained: points that differ from one base in what a study asks, and the order in which they are worth having.
Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

RENORMALISED = "Renormalised"
"""A tail that the product does not offer: see `renormalised`."""


@dataclass(frozen=True)
class Point:
    """One training."""

    objective: str = "ForwardKL"
    """As `training.objective.type`."""
    beta: float | None = None
    """None: the objective's own."""
    soft_weight: float = 1.0
    k: int = 32
    tail: str = "Sampled"
    """Sampled, Bucket, or `RENORMALISED`; of no meaning to CrossEntropy."""
    temperature: float = 1.0
    """At which the teacher's answers were sampled; 0: greedy."""
    choose: str = "BlockInfluence"
    """As `student.prunedFrom.choose`."""
    layers: int = 15
    """Kept."""
    prompts: int = 200
    epochs: int = 1
    learning_rate: float = 5e-4
    seed: int = 1
    """Of which prompts are taken and of their order."""

    def as_json(self) -> dict[str, Any]:
        """All fields, for a line of the results."""
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Point:
        """The inverse of `as_json`. Raises TypeError for a field that is none."""
        return Point(**fields)

    @property
    def rows(self) -> int:
        """Answers that are read: what a training costs."""
        return self.prompts * self.epochs


BASE = Point()


@dataclass(frozen=True)
class Study:
    """One question: rows of a table, each a point that differs from its neighbours in one choice."""

    name: str
    question: str
    varied: str
    """The head of the table's first column."""
    points: tuple[tuple[str, Point], ...]
    """Rows by their labels, of the base's seed."""

    def of_seed(self, seed: int) -> list[Point]:
        return [replace(point, seed=seed) for _, point in self.points]


_BUCKET = replace(BASE, tail="Bucket")
_K8 = replace(BASE, k=8)

STUDIES = (
    Study(
        "rate",
        "Which learning rate?",
        "`learningRate`",
        tuple((f"{rate:g}", replace(BASE, learning_rate=rate)) for rate in (2e-4, 5e-4, 1e-3)),
    ),
    Study(
        "objectives",
        "Which objective?",
        "`objective`",
        (
            ("`CrossEntropy`", replace(BASE, objective="CrossEntropy")),
            ("`ForwardKL`", BASE),
            ("`ForwardKL`, `softWeight: 0.75`", replace(BASE, soft_weight=0.75)),
            ("`SkewKL` (β 0.1)", replace(BASE, objective="SkewKL")),
            ("`JensenShannon` (β 0.5)", replace(BASE, objective="JensenShannon")),
            ("`ReverseKL`", replace(_BUCKET, objective="ReverseKL")),
        ),
    ),
    Study(
        "k",
        "How many candidates?",
        "`topK`",
        tuple((str(k), replace(BASE, k=k)) for k in (1, 8, 32, 128)),
    ),
    Study(
        "tail",
        "What of the tokens that the teacher did not name?",
        "tail",
        (
            ("K = 8, `Sampled`", _K8),
            ("K = 8, `Bucket`", replace(_K8, tail="Bucket")),
            ("K = 8, both sides renormalised", replace(_K8, tail=RENORMALISED)),
            ("K = 32, `Sampled`", BASE),
            ("K = 32, `Bucket`", _BUCKET),
        ),
    ),
    Study(
        "choose",
        "Which layers?",
        "`choose`, layers",
        tuple(
            (f"`{choose}`, {layers}", replace(BASE, choose=choose, layers=layers))
            for layers in (9, 15)
            for choose in ("BlockInfluence", "EvenlySpaced")
        ),
    ),
    Study(
        "layers",
        "How large a student?",
        "layers of 30",
        tuple((str(layers), replace(BASE, layers=layers)) for layers in (9, 15, 20)),
    ),
    Study(
        "prompts",
        "How much data?",
        "prompts × epochs",
        tuple(
            (f"{prompts:,} × {epochs}", replace(BASE, prompts=prompts, epochs=epochs))
            for prompts, epochs in ((100, 1), (100, 3), (200, 1), (300, 1), (1000, 1))
        ),
    ),
    Study(
        "temperature",
        "At which temperature does the teacher answer?",
        "`temperature`, tail",
        (
            ("0 (greedy), `Bucket`", replace(_BUCKET, temperature=0.0)),
            ("1, `Bucket`", _BUCKET),
            ("1, `Sampled`", BASE),
        ),
    ),
)
"""In the order in which they are worth having."""


def plan(studies: Sequence[Study], seeds: Sequence[int]) -> list[Point]:
    """Each point once, in the order in which they are worth having.

    1. The base at every seed, which tells what a difference means. 2. All others at the first seed, those that cost
    more than the base last. 3. The same at the next seed.
    """
    bases = [replace(BASE, seed=seed) for seed in seeds]
    others = [point for seed in seeds for point in _of_seed(studies, seed)]
    return [point for point in dict.fromkeys([*bases, *others]) if point in others]


def _of_seed(studies: Sequence[Study], seed: int) -> Iterator[Point]:
    points = [point for study in studies for point in study.of_seed(seed)]
    yield from sorted(points, key=lambda point: point.rows > BASE.rows)


def named(names: Sequence[str]) -> list[Study]:
    """The studies of these names; all, if there are none. Raises ValueError for a name that is none."""
    known = {study.name: study for study in STUDIES}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: write some of {', '.join(known)}")
    return [known[name] for name in names] if names else list(STUDIES)

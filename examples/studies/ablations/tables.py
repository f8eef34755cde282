"""A study's figures as a Markdown table, and what seeds alone do to them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from ablations.points import BASE, Point, Study
from ablations.results import Line

COLUMNS = (
    ("forward_kl", "KL(teacher ‖ student)", 3),
    ("reverse_kl", "KL(student ‖ teacher)", 3),
    ("cross_entropy", "cross-entropy", 3),
    ("agreement", "same first choice", 3),
    ("rouge_l", "ROUGE-L", 2),
)
"""Figures, their heads, and the digits that are shown."""


@dataclass(frozen=True)
class Row:
    """One row of a table: a point at each seed that is done."""

    label: str
    is_base: bool
    by_seed: Mapping[int, Mapping[str, float]]
    """Figures."""

    def mean(self, figure: str) -> float:
        return fmean(figures[figure] for figures in self.by_seed.values())

    def values(self, figure: str) -> list[float]:
        """By seed."""
        return [self.by_seed[seed][figure] for seed in sorted(self.by_seed)]

    def gaps(self, other: Row, figure: str) -> list[float]:
        """This row's figure less the other's, at the seeds that both have: these read the same prompts."""
        both = sorted(self.by_seed.keys() & other.by_seed.keys())
        return [self.by_seed[seed][figure] - other.by_seed[seed][figure] for seed in both]


def rows_of(study: Study, lines: Iterable[Line]) -> list[Row]:
    """The study's rows, in its order; those of which nothing is done are left out."""
    figures = {line.point: line.figures for line in lines}
    seeds = sorted({point.seed for point in figures})
    found = [
        Row(
            label,
            point == BASE,
            {seed: figures[at] for seed in seeds if (at := replace(point, seed=seed)) in figures},
        )
        for label, point in study.points
    ]
    return [row for row in found if row.by_seed]


def table(study: Study, rows: Sequence[Row]) -> str:
    """Means over the seeds. "Against the base" is seed by seed: the mean of the differences, and the range of several.

    The lowest mean of a divergence and the highest of an agreement are bold.
    """
    base = next((row for row in rows if row.is_base), None)
    heads = [study.varied, COLUMNS[0][1], "against the base", *(head for _, head, _ in COLUMNS[1:]), "seeds"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        first, *others = (_cell(row, rows, figure, digits) for figure, _, digits in COLUMNS)
        cells = [row.label, first, _against(row, base), *others, str(len(row.by_seed))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(lines: Iterable[Line], figure: str = "forward_kl") -> float | None:
    """Standard deviation of a figure over the seeds of one point, pooled over the points that have several.

    None: no point has.
    """
    groups: dict[Point, list[float]] = {}
    for line in lines:
        groups.setdefault(replace(line.point, seed=0), []).append(line.figures[figure])
    several = [(len(values) - 1, stdev(values)) for values in groups.values() if len(values) > 1]
    if not several:
        return None
    return float((sum(count * sd**2 for count, sd in several) / sum(count for count, _ in several)) ** 0.5)


def paired_spread(lines: Iterable[Line], figure: str = "forward_kl") -> float | None:
    """The same of differences from the base at the same seed, which reads the same prompts where it reads as many."""
    kept = list(lines)
    bases = {line.point.seed: line.figures[figure] for line in kept if replace(line.point, seed=BASE.seed) == BASE}
    gaps = [
        replace(line, figures={figure: line.figures[figure] - bases[line.point.seed]})
        for line in kept
        if line.point.seed in bases and replace(line.point, seed=BASE.seed) != BASE
    ]
    return spread(gaps, figure)


def _cell(row: Row, rows: Sequence[Row], figure: str, digits: int) -> str:
    text = f"{row.mean(figure):.{digits}f}"
    means = [each.mean(figure) for each in rows]
    best = max(means) if figure in ("agreement", "rouge_l") else min(means)
    return f"**{text}**" if row.mean(figure) == best else text


def _against(row: Row, base: Row | None) -> str:
    if base is None or row is base:
        return "the base" if row is base else ""
    gaps = row.gaps(base, COLUMNS[0][0])
    if not gaps:
        return ""
    several = f" ({min(gaps):+.3f} … {max(gaps):+.3f})" if len(gaps) > 1 else ""
    return f"{fmean(gaps):+.3f}{several}".replace("-", "−")

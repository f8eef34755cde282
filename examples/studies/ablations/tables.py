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
    """The study's rows, in its order, at the seeds that all of them have: means over other seeds are not comparable.

    Rows of which nothing is done are left out.
    """
    figures = {line.point: line.figures for line in lines}
    done = {
        label: {point.seed for point in figures if replace(point, seed=at.seed) == at} for label, at in study.points
    }
    seeds = sorted(set.intersection(*(found for found in done.values() if found))) if any(done.values()) else []
    return [
        Row(label, at == BASE, {seed: figures[replace(at, seed=seed)] for seed in seeds})
        for label, at in study.points
        if done[label] and seeds
    ]


def table(study: Study, rows: Sequence[Row]) -> str:
    """Means over the seeds. "Against the base" is the mean of the differences seed by seed, and the range of several.

    The lowest mean of a divergence and the highest of an agreement are bold.
    """
    base = next((row for row in rows if row.is_base), None)
    heads = [study.varied, COLUMNS[0][1], "against the base", *(head for _, head, _ in COLUMNS[1:])]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for row in rows:
        first, *others = (_cell(row, rows, figure, digits) for figure, _, digits in COLUMNS)
        cells = [row.label, first, _against(row, base), *others]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted(rows[0].by_seed) if rows else []
    return "\n".join([*lines, "", f"{'Seed' if len(seeds) == 1 else 'Seeds'} {', '.join(map(str, seeds))}."])


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

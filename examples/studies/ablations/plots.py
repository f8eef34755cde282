"""A study as a picture: a line for each row, a dot for each seed and a bar at their mean. Pure.

In the colours of the product's reports, light and dark, as an SVG that stands alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import median

from ablations.tables import Row
from kubedistill_trainer.report.plots import Scale

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 760, 232, 28, 44, 30, 44
"""Pixels."""
FAR = 2.0
"""A row beyond so many times the median row is written at the edge."""
STYLE = """
  svg { --card: #ffffff; --ink: #1d2126; --soft: #626a73; --hair: #e4e1db; --after: #2f6fde; --teacher: #d9822b }
  @media (prefers-color-scheme: dark) {
    svg { --card: #1d2024; --ink: #e8e6e1; --soft: #9aa1a9; --hair: #30343a; --after: #6ea2ff; --teacher: #f0a35a }
  }
  .card { fill: var(--card); stroke: var(--hair) } .grid { stroke: var(--hair) }
  text { font: 12.5px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: var(--ink) }
  .title { font-weight: 600; font-size: 14px } .tick, .axis { fill: var(--soft); font-size: 11px }
  .dot { fill: var(--after); opacity: 0.45 } .mean { stroke: var(--after); stroke-width: 3; stroke-linecap: round }
  .base .dot { fill: var(--teacher) } .base .mean { stroke: var(--teacher) }
"""


def plot(title: str, rows: Sequence[Row], figure: str, axis: str) -> str:
    """The picture of a figure, smaller values at the left. Raises ValueError for no rows."""
    if not rows:
        raise ValueError(f"{title}: nothing to draw")
    shown = _near(rows, figure)
    low, high = min(shown), max(shown)
    margin = 0.08 * (high - low or high or 1.0)
    x = Scale(low - margin, high + margin, LEFT, WIDTH - RIGHT)
    height = TOP + ROW * len(rows) + BOTTOM
    bottom = height - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12"/>',
        f'<text class="title" x="20" y="27">{escape(title)}</text>',
    ]
    for tick in x.ticks(6):
        parts += [
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>',
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:.4g}</text>',
        ]
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{height - 9}" text-anchor="end">{escape(axis)}</text>')
    parts += [_row(row, figure, x, TOP + ROW * (index + 0.5), max(shown)) for index, row in enumerate(rows)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(row: Row, figure: str, x: Scale, y: float, most: float) -> str:
    label = escape(row.label.replace("`", ""))
    values, mean = row.values(figure), row.mean(figure)
    parts = [f'<g class="{"base" if row.is_base else "other"}"><text x="20" y="{y + 4:.1f}">{label}</text>']
    if mean > most:
        parts.append(f'<text x="{x.end:.1f}" y="{y + 4:.1f}" text-anchor="end">{mean:.2f} →</text></g>')
        return "".join(parts)
    parts += [
        f'<circle class="dot" cx="{x(value):.1f}" cy="{y:.1f}" r="4.5"><title>{value:.3f}</title></circle>'
        for value in values
    ]
    at = f"{x(mean):.1f}"
    parts.append(f'<line class="mean" x1="{at}" x2="{at}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"/></g>')
    return "".join(parts)


def _near(rows: Sequence[Row], figure: str) -> list[float]:
    """All values but those of rows so far off that the others would lie on one spot."""
    limit = FAR * median(row.mean(figure) for row in rows)
    return [value for row in rows if row.mean(figure) <= limit for value in row.values(figure)]

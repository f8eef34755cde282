"""Plots as inline SVG. Colours are classes of the page's style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup, escape

from kubedistill_trainer.report.content import Point, three_digits

LEFT, RIGHT, TOP, BOTTOM = 44, 14, 22, 34
"""Pixels of the margins: numbers at the left, a label above, numbers and a label below."""


@dataclass(frozen=True)
class Frame:
    """The size of a plot in its own pixels; the page stretches it to the room there is."""

    width: int
    height: int
    x_ticks: int

    def x(self, low: float, high: float) -> Scale:
        """Values to pixels, left to right."""
        return Scale(low, high, LEFT, self.width - RIGHT)

    def y(self, low: float, high: float) -> Scale:
        """Values to pixels, bottom to top."""
        return Scale(low, high, self.height - BOTTOM, TOP)


WIDE = Frame(980, 300, x_ticks=10)
NARROW = Frame(360, 240, x_ticks=4)
"""On a phone; the page shows one of the two, so that letters keep their size."""
SMALL = Frame(300, 200, x_ticks=6)


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    """Pixel of `low`."""
    end: float
    """Pixel of `high`."""

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale."""
        step = round_step((self.high - self.low) or 1.0, about)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def round_step(span: float, about: int) -> float:
    """1, 2 or 5 times a power of ten, so that a span has about so many steps."""
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def smoothed(points: Sequence[Point], reach: int) -> list[Point]:
    """The mean of each point and up to `reach` neighbours on each side, as many on both: a mean of the past alone
    would draw a falling curve too high.
    """
    values = [point.value for point in points]
    spans = [min(reach, at, len(points) - 1 - at) for at in range(len(points))]
    means = [fmean(values[at - span : at + span + 1]) for at, span in enumerate(spans)]
    return [Point(point.step, mean) for point, mean in zip(points, means, strict=True)]


def loss_curves(training: Sequence[Point], validation: Sequence[Point]) -> Markup:
    """Loss by optimizer step: each step faintly, their running mean, and the validations as dots, the best ringed."""
    training, validation = _finite(training), _finite(validation)
    if not training and not validation:
        return Markup("")
    wide, narrow = (_curves(frame, training, validation) for frame in (WIDE, NARROW))
    return _svg(WIDE, "Loss by optimizer step", wide, "wide") + _svg(NARROW, "Loss by optimizer step", narrow, "narrow")


def _curves(frame: Frame, training: Sequence[Point], validation: Sequence[Point]) -> list[str]:
    points = [*training, *validation]
    x = frame.x(min(p.step for p in points), max(p.step for p in points))
    values = [p.value for p in points]
    low = 0.0 if min(values) >= 0 else min(values)
    y = frame.y(low, max(values) * 1.05 or 1.0)
    parts = [_axes(frame, x, y, "optimizer step", "nats a token")]
    if training:
        parts.append(_path(training, x, y, "line train faint"))
        parts.append(_path(smoothed(training, len(training) // 30), x, y, "line train"))
    if validation:
        best = min(validation, key=lambda point: point.value)
        parts.append(_path(validation, x, y, "line valid"))
        parts += [_dot(point, x, y, "dot valid") for point in validation]
        parts.append(_dot(best, x, y, "ring valid", radius=7))
    return parts


def histogram(values: Sequence[int], title: str, unit: str, bins: int = 24) -> Markup:
    """How often each length occurs."""
    if not values:
        return Markup("")
    width = max(1, int(round_step(max(max(values), 1), bins)))
    counts = [0] * (max(values) // width + 1)
    for value in values:
        counts[value // width] += 1
    x, y = SMALL.x(0, len(counts) * width), SMALL.y(0, max(counts) * 1.05)
    parts = [_axes(SMALL, x, y, unit, "answers")]
    for index, count in enumerate(counts):
        left, right = x(index * width) + 1, x((index + 1) * width) - 1
        label = f"{index * width} to {(index + 1) * width - 1} {unit}: {count}"
        parts.append(
            f'<rect class="bar" x="{left:.1f}" y="{y(count):.1f}" width="{right - left:.1f}" '
            f'height="{y(0) - y(count):.1f}" rx="1.5"><title>{escape(label)}</title></rect>'
        )
    return _svg(SMALL, title, parts)


def _axes(frame: Frame, x: Scale, y: Scale, x_label: str, y_label: str) -> str:
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y(v) + 3.5:.1f}" text-anchor="end">{_tick(v)}</text>'
        for v in y.ticks(4)
    ]
    lines += [
        f'<text class="tick" x="{x(v):.1f}" y="{bottom + 15}" text-anchor="middle">{_tick(v)}</text>'
        for v in x.ticks(frame.x_ticks)
    ]
    lines.append(
        f'<text class="axis" x="{right}" y="{frame.height - 4}" text-anchor="end">{escape(x_label)}</text>'
        f'<text class="axis" x="{LEFT + 4}" y="{TOP - 10}">{escape(y_label)}</text>'
    )
    return "".join(lines)


def _path(points: Sequence[Point], x: Scale, y: Scale, classes: str) -> str:
    steps = " ".join(f"{x(p.step):.1f},{y(p.value):.1f}" for p in points)
    return f'<polyline class="{classes}" points="{steps}"/>'


def _dot(point: Point, x: Scale, y: Scale, classes: str, radius: float = 3.5) -> str:
    label = f"step {point.step}: {three_digits(point.value)}"
    return (
        f'<circle class="{classes}" cx="{x(point.step):.1f}" cy="{y(point.value):.1f}" r="{radius}">'
        f"<title>{escape(label)}</title></circle>"
    )


def _svg(frame: Frame, title: str, parts: Sequence[str], kind: str = "") -> Markup:
    return Markup(
        f'<svg class="{f"plot {kind}".rstrip()}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _tick(value: float) -> str:
    return f"{value:g}" if abs(value) < 10_000 else f"{value / 1000:g}k"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.value)]

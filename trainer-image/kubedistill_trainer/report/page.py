"""The report of an evaluation: as one HTML file that needs nothing but itself, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.report import plots
from kubedistill_trainer.report.content import (
    MATCH_WORDS,
    METRICS,
    Report,
    amount,
    data_size,
    seconds,
    share,
    shown,
    three_digits,
)

_SPREAD = 20.0
"""From this ratio on, bars on a linear scale would show the larger number only."""


@dataclass(frozen=True)
class Bar:
    """One number as a bar."""

    who: str
    """before, after or teacher."""
    text: str
    percent: float
    """Of the longest possible bar."""


def as_html(report: Report) -> str:
    """The report as one HTML document."""
    return (
        _environment(True)
        .get_template("report.html.j2")
        .render(
            report=report,
            card=report.card,
            rows=[(compared, METRICS[compared.metric], bars(compared)) for compared in report.card.comparison],
            losses=plots.loss_curves(report.training_loss, report.validation_loss),
            answer_lengths=plots.histogram(report.answer_lengths, "Lengths of the accepted answers", "tokens"),
            prompt_lengths=plots.histogram(report.prompt_lengths, "Lengths of their prompts", "tokens"),
            reasons=_reasons(report),
        )
    )


def as_markdown(report: Report) -> str:
    """The same in Markdown, without plots and with the first samples only."""
    return template("report.md.j2").render(report=report, card=report.card)


def bars(compared: Compared) -> list[Bar]:
    """The numbers of one metric as bars of comparable length; on a logarithmic scale where they are far apart."""
    numbers = (("before", compared.baseline), ("after", compared.student), ("teacher", compared.teacher))
    present = [(who, value) for who, value in numbers if value is not None]
    finite = [value * METRICS[compared.metric].factor for _, value in present if math.isfinite(value)]
    full = _full_bar(compared, finite)
    scale = math.log1p if is_logarithmic(compared) else float
    return [
        Bar(who, shown(compared.metric, value), _percent(value * METRICS[compared.metric].factor, full, scale))
        for who, value in present
    ]


def is_logarithmic(compared: Compared) -> bool:
    """Whether a metric's bars have a logarithmic scale."""
    if METRICS[compared.metric].unit == "%":
        return False
    values = [value for value in (compared.baseline, compared.student, compared.teacher) if value and value > 0]
    return bool(values) and min(values) * _SPREAD < max(values)


def _full_bar(compared: Compared, finite: Sequence[float]) -> float:
    """The number that fills a bar: 100 for percentages, else the largest."""
    return 100.0 if METRICS[compared.metric].unit == "%" else max([*finite, 1e-9])


def _percent(value: float, full: float, scale: Callable[[float], float]) -> float:
    if not math.isfinite(value):
        return 100.0
    return max(0.0, min(100.0, 100.0 * scale(max(value, 0.0)) / scale(full)))


def _reasons(report: Report) -> list[Bar]:
    if report.ledger is None or not report.ledger.top_reasons:
        return []
    most = max(reason.count for reason in report.ledger.top_reasons)
    return [Bar(r.reason, f"{r.count:,}", 100.0 * r.count / max(most, 1)) for r in report.ledger.top_reasons]


def template(name: str) -> Template:
    """A template of this package; what it is given is escaped if it is HTML."""
    return _environment(html=".html" in name).get_template(name)


@cache
def _environment(html: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "amount": amount,
        "data_size": data_size,
        "seconds": seconds,
        "share": share,
        "three_digits": three_digits,
        "cell": _cell,
        "fenced": _fenced,
    }
    environment.globals |= {
        "METRICS": METRICS,
        "MATCH_WORDS": MATCH_WORDS,
        "shown": shown,
        "is_logarithmic": is_logarithmic,
    }
    return environment


def _cell(text: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("|", "\\|") or " "


def _fenced(text: str) -> str:
    """Text as a Markdown code block, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"

"""The report is one file that needs nothing but itself, and says what it was given."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from kubedistill_api.base import Task
from kubedistill_api.evaluation import Gate, GateOf, Metric, OnGateFailure, Operator
from kubedistill_api.status import Estimate, Ledger, RejectReason
from kubedistill_trainer.core.comparison import Match
from kubedistill_trainer.core.footprint import Size, Speed
from kubedistill_trainer.core.gates import Compared, judge
from kubedistill_trainer.report.content import (
    Point,
    Report,
    Sample,
    Scorecard,
    Turn,
    amount,
    data_size,
    seconds,
    shown,
    three_digits,
)
from kubedistill_trainer.report.page import as_html, as_markdown, bars, is_logarithmic
from kubedistill_trainer.report.plots import histogram, loss_curves, smoothed

COMPARISON = (
    Compared(Metric.TEACHER_KL, 0.71, 3.12, 0.0),
    Compared(Metric.TEACHER_AGREEMENT, 0.62, 0.31, 1.0),
    Compared(Metric.PERPLEXITY, 6.1, 812.0, 3.4),
    Compared(Metric.ROUGE, 0.41, 0.07, None),
    Compared(Metric.ACCURACY, 0.81, 0.12, 0.92),
    Compared(Metric.LATENCY, 1.21, 1.22, 1.79),
    Compared(Metric.THROUGHPUT, 402.0, 398.0, 290.0),
    Compared(Metric.MEMORY, 189.0, 189.0, 257.0),
)
GATES = (
    Gate(metric=Metric.TEACHER_KL, operator=Operator.AT_MOST, value=0.8),
    Gate(
        metric=Metric.ACCURACY,
        of=GateOf.RETAINED_SHARE,
        operator=Operator.AT_LEAST,
        value=0.92,
        on_failure=OnGateFailure.WARN,
    ),
)
PROMPT = (Turn("system", "You are the support desk of Northwind."), Turn("user", "My router blinks red. What now?"))


def a_sample(match: Match = Match.CLOSER, **changes: str) -> Sample:
    texts = {"before": "red red red red", "after": "Hold the reset button.", "teacher": "Hold reset for 10 s."}
    texts |= changes
    return Sample("0a1b", PROMPT, texts["before"], texts["after"], texts["teacher"], changes.get("label", ""), match)


def falling(to: float, steps: range, wobble: float = 0.0) -> list[Point]:
    return [Point(step, to + 2.6 * math.exp(-step / 30) + wobble * math.sin(step * 1.7)) for step in steps]


def a_card(**changes: Any) -> Scorecard:
    card = Scorecard(
        headline="The student keeps 20 of the teacher's 30 layers and agrees with it at 62 % of the tokens.",
        comparison=COMPARISON,
        verdicts=judge(COMPARISON, GATES),
        speeds={"Student": Speed(1.21, 1.43, 0.081, 402.0, 24), "Teacher": Speed(1.79, 2.02, 0.117, 290.0, 24)},
        sizes={"Student": Size(99_170_000, 198_340_000), "Teacher": Size(134_515_008, 269_030_016)},
        notes=("The teacher's own answers are the expected ones where a prompt has no label.",),
    )
    return replace(card, **changes)


def a_report(card: Scorecard | None = None, **changes: Any) -> Report:
    report = Report(
        job="team/support",
        task=Task.CONVERSATION,
        card=card or a_card(),
        training_loss=falling(0.6, range(1, 161), wobble=0.08),
        validation_loss=[*falling(0.72, range(20, 141, 20)), Point(160, 0.79)],
        answer_lengths=[20 + (i * i * 7) % 90 for i in range(280)],
        prompt_lengths=[30 + (i * 13) % 50 for i in range(280)],
        ledger=Ledger(
            accepted=280,
            rejected=31,
            top_reasons=[RejectReason(reason="Truncated", count=19), RejectReason(reason="Refusal", count=12)],
        ),
        estimate=Estimate(
            rows=300, validation_rows=32, tokens_to_generate=38_400, student_memory_bytes=2 * 2**30, gpu_hours="0"
        ),
        lineage=[("Teacher", "hf://HuggingFaceTB/SmolLM2-135M-Instruct at 12fd25f7"), ("Spec", "sha256:9f")],
        samples=[
            a_sample(),
            a_sample(Match.SAME),
            a_sample(Match.WRONG, label="billing", after="shipping", teacher="billing", before="blue"),
        ],
        samples_elsewhere=4,
    )
    return replace(report, **changes)


class Checker(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed."""

    FETCHED = frozenset({"src", "href", "srcset", "xlink:href", "action", "data", "poster"})
    VOID = frozenset({"meta", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [
            f"{n}={v}" for n, v in attrs if n in ("src", "href", "srcset", "xlink:href", "action", "data")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


def test_the_page_asks_for_nothing_outside_itself_and_runs_no_script() -> None:
    page = as_html(a_report())
    checker = checked(page)
    assert checker.references == []
    assert checker.tags & {"script", "link", "img", "iframe", "object", "embed"} == set()
    assert not re.search(r"url\(|@import", page)


def test_the_page_shows_numbers_gates_samples_and_lineage() -> None:
    page = as_html(a_report())
    for text in ("0.71 nats", "62.0 %", "99.2 M", "81 ms", "Passed", "Warned", "My router", "12fd25f7", "38,400"):
        assert text in page


@pytest.mark.parametrize("render", [as_html, as_markdown], ids=["html", "markdown"])
def test_a_report_with_nothing_but_a_comparison_is_still_a_report(render: object) -> None:
    assert callable(render)
    card = Scorecard("Nothing more is known.", (Compared(Metric.PERPLEXITY, 3.0),), ())
    bare = Report("team/x", Task.CONVERSATION, card)
    assert "Perplexity" in render(bare)


def test_what_a_model_wrote_is_never_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    prompt = (Turn("user", evil),)
    sample = Sample(evil, prompt, evil, evil, evil, evil, Match.CLOSER)
    page = as_html(a_report(a_card(notes=(evil,), headline=evil), job=evil, samples=[sample], lineage=[(evil, evil)]))
    assert checked(page).tags & {"script", "img"} == set()


def test_what_a_model_wrote_never_leaves_its_code_block_in_markdown() -> None:
    text = as_markdown(a_report(samples=[a_sample(after="```\n# not a heading\n````")]))
    assert "`````text\n```\n# not a heading\n````\n`````" in text


def test_a_table_row_in_markdown_survives_bars_and_line_breaks() -> None:
    text = as_markdown(a_report(lineage=[("Teacher", "a|b\nc")]))
    assert "| Teacher | a\\|b c |" in text


def test_the_markdown_has_the_same_comparison() -> None:
    text = as_markdown(a_report())
    assert "| KL to the teacher | 3.12 nats | 0.71 nats | 0.00 nats | – |" in text
    assert "| Accuracy | 12.0 % | 81.0 % | 92.0 % | 88 % |" in text


def test_bars_of_a_percentage_fill_up_at_a_hundred() -> None:
    assert [bar.percent for bar in bars(Compared(Metric.ACCURACY, 0.5, 0.25, 1.0))] == [25.0, 50.0, 100.0]


def test_bars_of_other_metrics_fill_up_at_the_largest() -> None:
    assert [bar.percent for bar in bars(Compared(Metric.THROUGHPUT, 50.0, None, 200.0))] == [25.0, 100.0]


def test_bars_far_apart_get_a_logarithmic_scale_and_say_so() -> None:
    compared = Compared(Metric.PERPLEXITY, 6.0, 1e6, 3.0)
    before, after, teacher = (bar.percent for bar in bars(compared))
    assert before == 100.0
    assert after > teacher > 5.0
    assert is_logarithmic(compared)
    assert "logarithmic" in as_html(a_report(a_card(comparison=(compared,))))


def test_a_number_that_is_none_draws_a_page_and_a_full_bar() -> None:
    compared = Compared(Metric.PERPLEXITY, math.inf, math.nan, 3.0)
    assert [bar.percent for bar in bars(compared)] == [100.0, 100.0, 100.0]
    checked(as_html(a_report(a_card(comparison=(compared,)), training_loss=[Point(1, math.nan), Point(2, 1.0)])))


def test_the_best_validation_is_ringed() -> None:
    plot = loss_curves([], [Point(10, 2.0), Point(20, 1.0), Point(30, 1.5)])
    assert plot.count("ring") == 2  # one in each width
    ring = plot[plot.index("ring") :]
    assert "step 20: 1.00" in ring


def test_nothing_to_plot_plots_nothing() -> None:
    assert loss_curves([], []) == ""
    assert histogram([], "lengths", "tokens") == ""


def test_one_step_and_one_answer_can_be_plotted() -> None:
    assert "polyline" in loss_curves([Point(1, 0.0)], [])
    assert "0 to 0 tokens: 2" in histogram([0, 0], "lengths", "tokens", bins=1)


def test_a_histogram_counts_every_value_once() -> None:
    lengths = [3, 3, 17, 99, 100, 250]
    counts = [int(n) for n in re.findall(r"tokens: (\d+)</title>", histogram(lengths, "lengths", "tokens"))]
    assert sum(counts) == len(lengths)


def test_a_running_mean_keeps_a_straight_line_straight() -> None:
    line = [Point(step, 10.0 - step) for step in range(9)]
    assert smoothed(line, 3) == line


def test_a_running_mean_takes_as_many_neighbours_as_there_are_on_both_sides() -> None:
    points = [Point(1, 4.0), Point(2, 1.0), Point(3, 1.0)]
    assert [point.value for point in smoothed(points, 5)] == [4.0, 2.0, 1.0]


NUMBERS = [
    pytest.param(three_digits(0.0), "0.00", id="zero"),
    pytest.param(three_digits(12.345), "12.3", id="tens"),
    pytest.param(three_digits(1234567), "1,234,567", id="millions"),
    pytest.param(three_digits(0.00012), "1.20e-04", id="tiny"),
    pytest.param(amount(134_515_008), "135 M", id="parameters"),
    pytest.param(amount(12), "12", id="few"),
    pytest.param(data_size(269_030_016), "257 MiB", id="mebibytes"),
    pytest.param(data_size(12), "12 B", id="bytes"),
    pytest.param(seconds(0.0421), "42 ms", id="milliseconds"),
    pytest.param(seconds(1.234), "1.23 s", id="seconds"),
    pytest.param(shown(Metric.ACCURACY, 0.5), "50.0 %", id="percent"),
    pytest.param(shown(Metric.BLEU, 31.0), "31.0", id="no unit"),
    pytest.param(shown(Metric.BLEU, None), "–", id="none"),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_numbers_read_well(text: str, expected: str) -> None:
    assert text == expected


def test_an_answer_without_words_is_said_to_be_one() -> None:
    assert "It wrote nothing." in as_html(a_report(samples=[a_sample(before="")]))
    assert "It wrote nothing." not in as_html(a_report())


def test_a_number_that_is_nothing_has_no_bar() -> None:
    card = a_card(comparison=(Compared(Metric.ROUGE, 0.41, 0.0, 1.0),))
    assert (
        as_html(a_report(card)).count('<span class="fill ')
        == as_html(a_report(a_card(comparison=()))).count('<span class="fill ') + 2
    )


def test_the_loss_is_drawn_for_wide_and_for_narrow_pages_and_one_of_them_is_shown() -> None:
    page = as_html(a_report())
    assert re.search(r'class="plot wide" viewBox="0 0 980 ', page)
    assert re.search(r'class="plot narrow" viewBox="0 0 360 ', page)
    assert page.count("best is ringed") == 1
    before, narrow = page.split("@media (max-width: 720px)")
    assert ".plot.narrow { display: none }" in before
    assert ".plot.wide { display: none } .plot.narrow { display: block }" in narrow


TEXT_ON = [
    ("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("soft", "track"), ("after", "card"),
    ("teacher-ink", "card"), ("good", "good-wash"), ("bad", "bad-wash"), ("warn", "warn-wash"), ("ink", "good-wash"),
    ("ink", "bad-wash"), ("ink", "warn-wash"), ("paper", "ink"),
]  # fmt: skip


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXT_ON, ids=map("-on-".join, TEXT_ON))
def test_letters_stand_out_from_their_ground(text: str, ground: str, scheme: int) -> None:
    """Level AA of WCAG 2.2 for small text."""
    palettes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in as_html(a_report()).split(":root {")[1:]]
    assert len(palettes) == 2
    light, dark = sorted((luminance(palettes[scheme][name]) for name in (text, ground)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_what_each_of_several_teachers_taught_is_shown_apart() -> None:
    parts = {"north": (Compared(Metric.TEACHER_KL, 0.25, 3.5, 0.0),), "south": (Compared(Metric.TEACHER_KL, 0.75),)}
    report = a_report(a_card(by_teacher=parts), samples=[replace(a_sample(), teacher_name="south")])
    page, text = as_html(report), as_markdown(report)
    assert "<h2>By teacher</h2>" in page
    assert "teacher south</h3>" in page
    assert "| north | KL to the teacher | 3.50 nats | 0.25 nats | 0.00 nats | – |" in text
    assert "| south | KL to the teacher | – | 0.75 nats | – | – |" in text
    assert "teacher south:" in text
    alone = a_report(samples=[replace(a_sample(), teacher_name="south")])
    assert not any("south" in page or "By teacher" in page for page in (as_html(alone), as_markdown(alone)))

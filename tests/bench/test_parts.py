"""The parts of the benchmarks that need no minutes: what is asked, how sides take turns, when a bound holds."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_generate
import pytest
import torch
from measuring import PROMPTS, Figure
from real_answers import kept_at, real_rows
from students import STUDENTS, student_of
from teaching.server import TestTeacher
from toys.example import load_make_toy
from transformers import AutoModelForCausalLM, AutoTokenizer

BOUNDS: dict[str, tuple[dict[str, float], str, bool | None]] = {
    "nothing is promised": ({}, "", None),
    "above the least": ({"at_least": 1.5}, ">= 1.5", True),
    "the least": ({"at_least": 2}, ">= 2", True),
    "below the least": ({"at_least": 2.5}, ">= 2.5", False),
    "below the most": ({"at_most": 2.5}, "<= 2.5", True),
    "above the most": ({"at_most": 1e-5}, "<= 1e-05", False),
    "between": ({"at_least": 1, "at_most": 3}, ">= 1 and <= 3", True),
    "beyond one of two": ({"at_least": 1, "at_most": 1.5}, ">= 1 and <= 1.5", False),
}


@pytest.mark.parametrize(("bounds", "words", "holds"), BOUNDS.values(), ids=BOUNDS)
def test_a_figure_holds_within_its_bounds(bounds: dict[str, float], words: str, holds: bool | None) -> None:
    figure = Figure("it", 2.0, "x", **bounds)
    assert (figure.bound, figure.holds) == (words, holds)
    assert Figure("it", math.nan, **bounds).holds in (None, False), "what is no number holds nowhere"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of random weights."""
    toys = load_make_toy()
    return Path(toys.make_toy(tmp_path_factory.mktemp("models") / "toy", toys.Toy(layers=1, vocabulary=512)))


def asking(toy: Path, **more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"model": toy, "rows": 3, "tokens": 4, "concurrency": 2, **more})


def test_the_examples_questions_are_asked_each_under_a_key_of_its_own(toy: Path) -> None:
    requests = bench_generate.requests_of(asking(toy, rows=64))
    assert len({request.key for request in requests}) == 64
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()[:64]]
    asked = [row["messages"][0]["content"] if "messages" in row else row["prompt"] for row in rows]
    assert [[message["content"] for message in request.messages] for request in requests] == [[text] for text in asked]


@pytest.mark.parametrize(("k", "times"), [(0, 1), (4, 2)], ids=["text", "scores"])
def test_scores_take_a_second_request_for_each_answer(k: int, times: int, toy: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(toy), AutoModelForCausalLM.from_pretrained(toy)
    with TestTeacher(tokenizer, model) as teacher:
        rate = bench_generate.over_http(asking(toy), teacher.url.removesuffix("/v1"), k)
    assert rate > 0
    assert len(teacher.seen) == 3 * times
    assert teacher.most_at_once <= 2


def test_both_sides_take_turns_and_the_ratio_is_of_their_medians() -> None:
    asked: list[str] = []
    ours, theirs = iter([30.0, 10.0, 20.0]), iter([5.0, 1.0, 10.0])

    def side(name: str, rates: Any) -> Any:
        return lambda: (asked.append(name), next(rates))[1]

    found = bench_generate.in_turns(3, side("ours", ours), side("theirs", theirs))
    assert asked == ["ours", "theirs"] * 3
    assert (found["ours"], found["theirs"], found["ratio"]) == (20, 5, 4)
    assert found["all"] == [(30, 5), (10, 1), (20, 10)]


def test_asking_is_shown_with_the_figures_that_are_promised(capsys: pytest.CaptureFixture[str]) -> None:
    sides = {"ours": 135.4, "theirs": 134.4, "ratio": 1.0074}
    found = {"rows": 64, "tokens": 64, "concurrency": 16, "text": sides, "scores": {**sides, "ratio": 1.9}}
    bench_generate.show(found)
    assert "135.4" in capsys.readouterr().out
    assert [figure.holds for figure in bench_generate.figures(found)] == [True, None, False, None]


def test_a_teacher_is_asked_again_only_for_what_it_was_not_asked(toy: Path, tmp_path: Path) -> None:
    asked = argparse.Namespace(teacher=toy, answers=tmp_path / "answers", prompts=2, max_tokens=4, k=4)
    first = real_rows(asked)
    written = kept_at(asked).stat().st_mtime_ns
    again = real_rows(asked)
    assert [row.text for row in again] == [row.text for row in first]
    assert kept_at(asked).stat().st_mtime_ns == written, "it answered once"
    names = {kept_at(asked)}
    for more in ({"prompts": 3}, {"max_tokens": 5}, {"k": 5}):
        names.add(kept_at(argparse.Namespace(**{**vars(asked), **more})))
    (toy / "config.json").touch()
    names.add(kept_at(asked))
    assert len(names) == 5
    assert len(list((tmp_path / "answers").iterdir())) == 1


def test_every_benchmark_trains_the_same_student() -> None:
    first, second = (student_of(replace(STUDENTS["cpu"], layers=1, vocabulary=64)) for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)

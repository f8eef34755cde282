"""Answers side by side: each task's scores read them as the task means them."""

from __future__ import annotations

import pytest

from kubedistill_api.base import Task
from kubedistill_api.evaluation import Metric
from kubedistill_api.generation import Reasoning, ReasoningTarget
from kubedistill_trainer.core.comparison import Match, Measured, Yardstick, by_teacher, compare, match
from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.core.scores import Reading

READING = Reading(count=1, negative_log_likelihood=1.0)


def yardstick(task: Task, expected: list[str], teacher: list[str], reasoning: Reasoning = Reasoning.NONE) -> Yardstick:
    guidance = Guidance(task, reasoning, ReasoningTarget.REASONING_AND_ANSWER)
    return Yardstick(task, ("yes", "no"), expected, teacher, guidance)


def number(metric: Metric, by: Yardstick, answers: list[str]) -> Compared:
    after = Measured(READING, answers)
    (found, *_) = compare([metric], by, Measured(READING, ["?"] * len(answers)), after, Measured(READING, by.teacher))
    assert found.metric is metric
    return found


def test_numbers_match_exactly_however_they_are_written():
    by = yardstick(Task.MATH, ["1000", "3/4", ""], ["It is 1,000.", "0.75", r"\boxed{-2}"])
    found = number(Metric.EXACT_MATCH, by, ["$1,000.00", "four", "The answer is −2."])
    assert found.student == pytest.approx(2 / 3)
    assert (found.baseline, found.teacher) == (0, 1)
    accuracy = number(Metric.ACCURACY, by, ["$1,000.00", "four", "The answer is −2."])
    assert accuracy.student == 0.5, "the last question has no label"


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.EXACT_MATCH])
def test_of_a_reasoned_number_the_first_after_the_word_counts(metric):
    reasoned = ["9*2=18\nAnswer: 18 (9 eggs at $2 each)", "18 (9 eggs at $2 each)"]
    by = yardstick(Task.MATH, ["18", "18"], reasoned, Reasoning.CHAIN_OF_THOUGHT)
    found = number(metric, by, reasoned)
    assert (found.student, found.teacher) == (1.0, 1.0)


def test_other_texts_match_as_they_did():
    by = yardstick(Task.QUESTION_ANSWERING, ["", ""], ["Paris.", "It makes 3"])
    assert number(Metric.EXACT_MATCH, by, ["paris", "3"]).student == 0.5


@pytest.mark.parametrize("metric", [Metric.ACCURACY, Metric.EXACT_MATCH])
def test_of_a_reasoned_answer_the_answer_is_judged(metric):
    by = yardstick(
        Task.CLASSIFICATION,
        ["yes", "no"],
        ["No doubt.\nAnswer: yes", "Yes and no.\nAnswer: no"],
        Reasoning.CHAIN_OF_THOUGHT,
    )
    assert number(metric, by, ["No way around it.\nAnswer: Yes.", "no"]).student == 1.0
    assert number(metric, by, ["No way around it.\nAnswer: no", "yes"]).student == 0.0


VERDICTS = {
    "right-number": (Task.MATH, "1000", "so 1,000", Match.RIGHT),
    "wrong-number": (Task.MATH, "1000", "so 100", Match.WRONG),
    "the-teachers-number": (Task.MATH, "", "That is 7.0", Match.SAME),
    "closer-to-a-reference-summary": (Task.SUMMARIZATION, "The parcel is late", "the parcel was late", Match.CLOSER),
    "no-closer": (Task.SUMMARIZATION, "The parcel is late", "a lamp", Match.NO_CLOSER),
    "a-chat-is-never-right-or-wrong": (Task.CONVERSATION, "Hello", "hello!", Match.SAME),
}


@pytest.mark.parametrize(("task", "label", "answer", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_an_answer_gets_the_verdict_of_its_task(task, label, answer, verdict):
    assert match(0, "something else", answer, yardstick(task, [label], ["It is 7"])) is verdict


def test_with_several_teachers_each_answer_is_held_against_its_own_teachers():
    by = Yardstick(Task.CONVERSATION, (), ["", "", ""], ["north", "south", "north"], names=["a", "b", "a"])
    readings = {"a": Reading(4, 4.0, 4, kl_bucket=0.4), "b": Reading(1, 3.0, 1, kl_bucket=0.6)}
    after = Measured(sum(readings.values(), Reading()), ["north", "north", "east"], readings=readings)
    before, teacher = Measured(), Measured(answers=by.teacher)
    metrics = [Metric.EXACT_MATCH, Metric.TEACHER_KL, Metric.MEMORY]
    whole = {found.metric: found for found in compare(metrics, by, before, after, teacher)}
    assert whole[Metric.EXACT_MATCH].student == pytest.approx(1 / 3)
    assert whole[Metric.TEACHER_KL].student == pytest.approx(0.2), "a mean over all tokens, whoever wrote them"
    parts = by_teacher(metrics, by, before, after, teacher)
    numbers = {name: {found.metric: found.student for found in compared} for name, compared in parts.items()}
    assert numbers == {
        "a": {Metric.EXACT_MATCH: 0.5, Metric.TEACHER_KL: pytest.approx(0.1)},
        "b": {Metric.EXACT_MATCH: 0.0, Metric.TEACHER_KL: pytest.approx(0.6)},
    }


def test_a_teacher_whose_answers_are_read_but_whose_prompts_were_not_asked_has_no_score_of_answers():
    by = Yardstick(Task.CONVERSATION, (), [""], ["north"], names=["a"])
    after = Measured(READING + READING, ["north"], readings={"a": READING, "b": READING})
    parts = by_teacher([Metric.ROUGE, Metric.PERPLEXITY], by, Measured(), after, Measured(answers=by.teacher))
    assert [found.metric for found in parts["b"]] == [Metric.PERPLEXITY]

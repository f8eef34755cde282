"""Reading, answering and timing: what does not need a whole pipeline."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.signals import Text
from kubedistill_trainer.evaluation import answering, reading, timing
from kubedistill_trainer.evaluation.answering import Question, limit_for, until_end
from kubedistill_trainer.evaluation.meter import Exam
from kubedistill_trainer.stages.held_out import chosen, last_answer, question
from kubedistill_trainer.store.shards import AnswerRow

TOKENS = 258
"""Of the tiny tokenizer; the tiny model has six rows more."""


def an_example(length: int, name: str = "") -> Example:
    ids_T = torch.arange(length) % 200 + 2
    return Example(name or str(length), ids_T, torch.arange(length) >= length // 2, Text())


def test_examples_are_batched_by_length_and_none_is_lost() -> None:
    examples = [an_example(length, f"{length}") for length in (50, 7, 30, 8, 100, 9)]
    groups = [[len(example.input_ids_T) for example in group] for group in reading.batches(examples, tokens=60)]
    assert groups == [[7, 8, 9], [30], [50], [100]]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_reading_is_the_same_whether_rows_are_read_alone_or_together(tiny_model: Any, packing: bool) -> None:
    model, ticks = deepcopy(tiny_model), list[int]()
    examples = [an_example(length) for length in (6, 9, 14)]
    together = reading.read_with(model, examples, TOKENS, packing=packing, tick=ticks.append)
    alone = [reading.read_with(model, [one], TOKENS, packing=packing, tick=ticks.append) for one in examples]
    assert together.count == sum(one.count for one in alone) == sum(example.targets for example in examples)
    assert together.negative_log_likelihood == pytest.approx(
        sum(one.negative_log_likelihood for one in alone), rel=1e-5
    )
    assert sum(ticks) == 2 * len(examples)


def test_a_reading_is_what_the_models_own_loss_says(tiny_model: Any) -> None:
    example = an_example(12)
    found = reading.read_with(deepcopy(tiny_model), [example], 264, packing=True, tick=lambda _: None)
    labels_T = torch.where(example.target_mask_T, example.input_ids_T, -100)
    with torch.inference_mode():
        loss = tiny_model(input_ids=example.input_ids_T[None], labels=labels_T[None]).loss
    assert found.negative_log_likelihood / found.count == pytest.approx(float(loss), rel=1e-5)


def test_answers_come_back_in_the_order_of_the_questions_whatever_the_batches(tiny_model: Any) -> None:
    questions = [Question((5, 6, 7), 6), Question((5,), 3), Question((9, 8, 7, 6, 5), 6), Question((5, 6), 3)]
    together = answering.answer(tiny_model, questions, [0], TOKENS, lambda _: None)
    alone = [answering.answer(tiny_model, [one], [0], TOKENS, lambda _: None)[0] for one in questions]
    assert together == alone
    assert all(len(answer) <= question.limit for answer, question in zip(together, questions, strict=True))


def test_answers_that_found_no_end_are_counted(tiny_model: Any, tiny_tokenizer: Any) -> None:
    questions = [Question((5, 6, 7), 6), Question((5,), 3), Question((9, 8), 4)]
    written = answering.answer(tiny_model, questions, [], TOKENS, lambda _: None)
    end = written[0][2]
    exam = Exam({}, questions, tiny_tokenizer, packing=True)
    assert exam.unended(written) == 3, "there is no end"
    assert exam.unended([until_end(written[0], [end]), *written[1:]]) == 2
    assert exam.unended([written[0], written[1], written[2][:3]]) == 2, "the end was the last token it might write"


def test_a_model_never_answers_with_a_token_its_tokenizer_does_not_have(tiny_model: Any) -> None:
    model = deepcopy(tiny_model)
    model.lm_head.weight.data[TOKENS:] *= 50  # rows of a padded vocabulary, as loud as can be
    prompts = [[start, start + 1] for start in range(5, 25)]
    assert int(answering.generate(model, prompts, 4, [0], 264).max()) >= TOKENS
    assert int(answering.generate(model, prompts, 4, [0], TOKENS).max()) < TOKENS


def test_questions_of_one_batch_stay_within_its_tokens_and_rows() -> None:
    questions = [Question(tuple(range(length)), limit) for length, limit in [(3000, 500)] * 7 + [(5, 10)] * 40]
    groups = list(answering.batches(questions))
    assert sorted(index for group in groups for index in group) == list(range(47))
    assert [len(group) for group in groups] == [32, 8, 4, 3]


@pytest.mark.parametrize(
    ("reference", "limit"),
    [pytest.param(2, 19, id="short"), pytest.param(100, 128, id="at most what the teacher got")],
)
def test_an_answer_may_be_half_as_long_again_as_the_teachers(reference: int, limit: int) -> None:
    assert limit_for(reference, 128) == limit


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        pytest.param([5, 6, 0, 0], [5, 6], id="up to the end"),
        pytest.param([5, 6], [5, 6], id="cut off"),
        pytest.param([0], [], id="nothing said"),
        pytest.param([5, 9, 6], [5], id="any of the ends"),
    ],
)
def test_nothing_after_the_first_end_is_an_answer(ids: list[int], kept: list[int]) -> None:
    assert until_end(ids, [0, 9]) == kept


def a_stored_answer(mask: str) -> AnswerRow:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    return AnswerRow(
        row_id="1",
        sample=0,
        split="valid",
        label="",
        messages=json.dumps(chat),
        text="hello",
        finish_reason="stop",
        teacher="big",
        input_ids=np.arange(len(mask), dtype=np.int32),
        target_mask=np.array([letter == "x" for letter in mask]),
    )


@pytest.mark.parametrize(
    ("mask", "span"),
    [
        pytest.param("...xx", (3, 5), id="one turn"),
        pytest.param("..xx...xxx", (7, 10), id="the last of two turns, the first being history"),
        pytest.param("..xx.", (2, 4), id="the template goes on after the end"),
    ],
)
def test_students_are_asked_for_the_teachers_last_answer(mask: str, span: tuple[int, int]) -> None:
    row = a_stored_answer(mask)
    assert last_answer(row) == span
    assert question(row, 96).prompt_ids == tuple(range(span[0]))


def test_one_answer_is_compared_for_each_prompt_whatever_the_order_of_the_shards() -> None:
    rows = [replace(a_stored_answer(".x"), row_id=name, sample=sample) for name in "cab" for sample in (1, 0)]
    assert [(row.row_id, row.sample) for row in chosen(rows, 2)] == [("a", 0), ("b", 0)]
    assert chosen(rows[::-1], 2) == chosen(rows, 2)


def test_times_are_those_of_a_clock_and_the_first_answer_does_not_count(tiny_model: Any) -> None:
    ticks = count()
    speed = timing.measure(tiny_model, [(5, 6), (7, 8, 9)], 4, [0], TOKENS, clock=lambda: float(next(ticks)))
    assert (speed.first_token_p50, speed.latency_p50, speed.latency_p95) == (1.0, 1.0, 1.0)
    assert speed.tokens_per_second == 8.0
    assert next(ticks) == 2 * (1 + 2 + 2 + timing.BATCHES)

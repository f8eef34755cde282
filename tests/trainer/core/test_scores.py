"""How good a student is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from kubedistill_api.base import Task
from kubedistill_trainer.core.chunked import chunked_loss, student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import forward_kl_bucket
from kubedistill_trainer.core.scores import (
    Reading,
    accuracy,
    bleu,
    exact_match,
    percentile,
    read,
    retained_share,
    rouge,
)
from kubedistill_trainer.core.signals import Supervision, Text
from kubedistill_trainer.core.words import words


@pytest.fixture
def states():
    return torch.randn(9, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head():
    return Head(torch.randn(31, 8, generator=torch.Generator().manual_seed(1)))


@pytest.fixture
def supervision(supervise_with):
    return supervise_with(2 * torch.randn(9, 31, generator=torch.Generator().manual_seed(2)), 5)


def test_a_reading_adds_up_over_batches(states, head, supervision):
    whole = read(student_view(states, head, supervision), supervision)
    parts = [
        read(student_view(states[rows], head, supervision[rows]), supervision[rows])
        for rows in (slice(0, 2), slice(2, 9))
    ]
    together = Reading() + parts[0] + parts[1]
    assert together.__dict__ == pytest.approx(whole.__dict__, rel=1e-5)


def test_evaluation_and_training_report_the_same_divergence(states, head, supervision):
    reading = read(student_view(states, head, supervision), supervision)
    loss = chunked_loss(states, head, supervision, forward_kl_bucket)
    assert reading.teacher_kl(sampled_tail=False) == pytest.approx(loss.total.item() / loss.count, rel=1e-6)


def test_perplexity_is_that_of_the_written_tokens(states, head, supervision):
    reading = read(student_view(states, head, supervision), supervision)
    mean = torch.nn.functional.cross_entropy(states @ head.weight_VH.T, supervision.target_ids_N)
    assert reading.perplexity == pytest.approx(math.exp(mean), rel=1e-5)


def test_a_student_that_is_the_teacher_agrees_everywhere(states, head, supervise_with):
    itself = supervise_with(states @ head.weight_VH.T, 5)
    reading = read(student_view(states, head, itself), itself)
    assert reading.agreement == 1.0
    assert reading.teacher_kl(sampled_tail=True) == pytest.approx(0, abs=1e-5)
    assert reading.teacher_kl(sampled_tail=False) == pytest.approx(0, abs=1e-5)


def test_agreement_is_the_share_of_equal_first_choices(supervise_with):
    teacher = supervise_with(4 * torch.eye(4), 2)
    view = student_view(torch.eye(4)[[0, 1, 3, 3]], Head(torch.eye(4)), teacher)
    assert read(view, teacher).agreement == 0.75


def test_text_alone_gives_perplexity_and_no_divergence(states, head, supervision):
    text = Supervision(supervision.target_ids_N, Text())
    reading = read(student_view(states, head, text), text)
    assert reading.perplexity > 1
    assert reading.agreement is None
    assert reading.teacher_kl(sampled_tail=True) is None


def test_a_hopeless_student_has_infinite_perplexity_not_an_overflow():
    assert Reading(count=1, negative_log_likelihood=1e5).perplexity == math.inf


def test_accuracy_reads_answers_as_the_task_does():
    labels = ("billing", "shipping")
    assert accuracy(["Label: Billing", "maybe"], ["billing", "shipping"], Task.CLASSIFICATION, labels) == 0.5
    assert accuracy(["B) Paris", "(c)"], ["B", "C"], Task.QUESTION_ANSWERING) == 1.0


def test_exact_match_does_not_look_inside_statements():
    assert exact_match(["Billing.", "It is billing"], ["billing", "billing"]) == 0.5


def test_bleu_and_rouge_of_the_references_themselves_are_perfect_and_of_other_words_nothing():
    references = ["the parcel left the house on monday", "a refund takes three days at most"]
    assert bleu(references, references) == pytest.approx(100)
    assert rouge(references, references) == pytest.approx(1)
    assert rouge(["xyz", "uvw"], references) == 0
    assert 0 < rouge(["the parcel left", "a refund"], references) < 1


ALPHABETS = {
    "accents": ("Où est le colis à présent", "Où est mon colis", 6 / 10),
    "cyrillic": ("Посылка придёт завтра", "Посылка придёт в среду", 4 / 7),
    "greek-in-capitals": ("ΤΟ ΔΈΜΑ", "το δέμα", 1.0),
    "combining-marks": ("मेरा पार्सल कहाँ है", "मेरा पार्सल", 4 / 6),
    "composed-and-decomposed": ("caf\u00e9", "cafe\u0301", 1.0),
    "chinese-by-letters": ("包裹明天到", "包裹今天到", 0.8),
    "japanese": ("荷物は明日", "荷物は今日", 0.8),
    "other-words": ("собака", "кошка", 0.0),
}


@pytest.mark.parametrize(("answer", "reference", "score"), ALPHABETS.values(), ids=ALPHABETS)
def test_rouge_sees_words_of_every_alphabet(answer, reference, score):
    assert rouge([answer], [reference]) == pytest.approx(score)


@given(st.text(st.characters(max_codepoint=127)))
def test_of_ascii_texts_rouge_is_what_rouge_score_says(text):
    assert words(text) == DefaultTokenizer().tokenize(text)


def test_scores_of_nothing_are_zero_not_an_error():
    assert (bleu([], []), rouge([], []), exact_match([], []), accuracy([], [], Task.CONVERSATION)) == (0, 0, 0, 0)


@pytest.mark.parametrize("score", [exact_match, rouge], ids=["exact-match", "rouge"])
def test_answers_and_references_that_do_not_pair_are_an_error(score):
    with pytest.raises(ValueError, match="zip"):
        score(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("student", "teacher", "lower", "share"),
    [(0.8, 0.9, False, 8 / 9), (4.0, 2.0, True, 0.5), (0.5, 0.0, False, None), (0.0, 2.0, True, None)],
    ids=["of-accuracy", "of-perplexity", "of-a-teacher-at-zero", "of-a-student-at-zero"],
)
def test_the_retained_share_is_one_where_both_are_equal_and_higher_is_better(student, teacher, lower, share):
    assert retained_share(student, teacher, lower_is_better=lower) == pytest.approx(share)


@pytest.mark.parametrize(("share", "value"), [(0.5, 3), (0.95, 5), (0.2, 1), (0.0, 1), (1.0, 5)])
def test_a_percentile_is_a_value_that_was_measured(share, value):
    assert percentile([5, 3, 1, 4, 2], share) == value

"""What an answer says, apart from how it says it."""

from __future__ import annotations

import pytest

from kubedistill_api.base import Task
from kubedistill_trainer.core.answers import agrees, choice_in, is_choice, label_in, normalized, said

LABELS = ("billing", "billing dispute", "Shipping", "return_request")

NAMED = {
    "as-spelt": ("billing", "billing"),
    "another-case": ("SHIPPING", "Shipping"),
    "full-stop": ("Billing.", "billing"),
    "quotes": ('"shipping"', "Shipping"),
    "markdown": ("**Billing dispute**", "billing dispute"),
    "label-prefix": ("Label: shipping", "Shipping"),
    "the-label-is": ("The category is: Shipping.", "Shipping"),
    "the-longer-of-two": ("billing dispute", "billing dispute"),
    "first-line": ("Shipping\n\nBecause the parcel is late.", "Shipping"),
    "a-short-statement": ("This message belongs to shipping.", "Shipping"),
    "a-statement-with-the-longer-of-two": ("I would file it under billing dispute", "billing dispute"),
    "underscore-kept": ("return_request", "return_request"),
}
NOT_NAMED = {
    "no-label": "maybe",
    "two-labels": "billing or shipping",
    "denied": "This is not a shipping question",
    "part-of-a-word": "shippings",
    "an-essay": "Thank you for your message, which I have read, and which seems to be about billing to me",
    "empty": "",
}


@pytest.mark.parametrize(("text", "label"), NAMED.values(), ids=NAMED)
def test_a_label_is_found_however_it_is_dressed(text, label):
    assert label_in(text, LABELS) == label


@pytest.mark.parametrize("text", NOT_NAMED.values(), ids=NOT_NAMED)
def test_an_answer_that_names_no_one_label_has_none(text):
    assert label_in(text, LABELS) is None


CHOICES = {
    "B": "B",
    "b": "B",
    "(C)": "C",
    "D.": "D",
    "A) Paris": "A",
    "B: the second": "B",
    "**C**": "C",
    "The answer is D": "D",
    "The correct answer is (a).": "A",
    "Answer: B\nbecause ...": "B",
    "I choose option C, since": "C",
    "A dog barked": None,
    "I do not know": None,
    "": None,
    "The answer is obvious": None,
}


@pytest.mark.parametrize(("text", "letter"), CHOICES.items())
def test_a_choice_is_its_letter(text, letter):
    assert choice_in(text) == letter


@pytest.mark.parametrize(
    ("reference", "choice"), [("B", True), ("(b)", True), ("C.", True), ("Paris", False), ("42", False)]
)
def test_a_reference_of_one_letter_is_a_choice(reference, choice):
    assert is_choice(reference) is choice


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("  Paris. ", "paris"),
        ("Answer: Paris", "paris"),
        ("The answer is Paris", "paris"),
        ("“Paris”", "paris"),
        ("ＰＡＲＩＳ", "paris"),
        ("the   city of  light", "city of light"),
        ("snake_case", "snake_case"),
        ("...", ""),
    ],
)
def test_texts_are_compared_without_their_dress(text, plain):
    assert normalized(text) == plain


AGREE = {
    "label": ("Label: Billing", "billing", Task.CLASSIFICATION, True),
    "another-label": ("shipping", "billing", Task.CLASSIFICATION, False),
    "no-label-never-agrees-with-none": ("maybe", "perhaps", Task.CLASSIFICATION, False),
    "choice": ("B) Paris", "b", Task.QUESTION_ANSWERING, True),
    "another-choice": ("A) Rome", "B", Task.QUESTION_ANSWERING, False),
    "free-answer": ("paris.", "Paris", Task.QUESTION_ANSWERING, True),
    "another-free-answer": ("Rome", "Paris", Task.QUESTION_ANSWERING, False),
    "conversation": ("Hello!", "hello", Task.CONVERSATION, True),
    "two-empty-answers": ("", "...", Task.CONVERSATION, False),
}


@pytest.mark.parametrize(("text", "reference", "task", "same"), AGREE.values(), ids=AGREE)
def test_an_answer_agrees_with_a_reference_if_both_say_the_same(text, reference, task, same):
    assert agrees(text, reference, task, LABELS) is same


def test_classification_without_a_label_set_takes_any_text():
    assert said("Label: Anything.", Task.CLASSIFICATION) == "anything"

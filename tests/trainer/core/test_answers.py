"""What an answer says, apart from how it says it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    "a-label-and-a-longer-one": "billing, or rather a billing dispute",
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


SPAM = ("spam", "ham")
YES_NO = ("yes", "no")
NLI = ("entailment", "neutral", "contradiction")
OTHER_SETS = {
    "nli": ("The premise entails it: **Entailment**.", NLI, "entailment"),
    "nli-named-once": ("The label is neutral.", NLI, "neutral"),
    "nli-named-twice": ("Neither neutral nor a contradiction", NLI, None),
    "a-label-that-denies": ("This is not entailment.", ("entailment", "not entailment"), "not entailment"),
    "a-label-that-is-denied": ("This is not entailment.", NLI, None),
    "digits": ("Answer: 2", ("0", "1", "2"), "2"),
    "signs": ("+", ("+", "-"), "+"),
    "signs-that-are-not-there": ("*", ("+", "-"), None),
    "punctuation-tells-apart": ("C++", ("C", "C++"), "C++"),
    "punctuation-tells-apart-in-lower-case": ("c", ("C", "C++"), "C"),
    "either-of-two": ("It is c", ("C", "C++"), None),
    "case-tells-apart": ("us", ("US", "us"), "us"),
    "another-alphabet": ("Ответ: ДА", ("да", "нет"), "да"),
    "chinese": ("“矛盾”。", ("蕴含", "中立", "矛盾"), "矛盾"),
    "denied-with-a-curly-apostrophe": ("This isn’t spam.", SPAM, None),
    "denied-by-a-prefix": ("Non-toxic", ("toxic", "benign"), None),
    "none-detected": ("No hate speech detected.", ("hate speech", "harmless"), None),
    "cannot-be-called-so": ("I cannot call this positive.", ("positive", "negative"), None),
    "a-line-with-a-lead-in": (
        "The review starts out positive.\nLabel: negative", ("positive", "negative"), "negative",
    ),
    "the-last-lead-in": ("Answer: positive?\nAnswer: negative", ("positive", "negative"), "negative"),
    "no-and-a-denial": ("No, this is not spam.", YES_NO, "no"),
    "yes-and-a-denial": ("Yes, this is not spam.", YES_NO, "yes"),
    "a-denial-of-yes": ("I would not say yes", YES_NO, None),
    "no-and-then-yes": ("No, or rather yes", YES_NO, None),
    "twice-in-the-set": ("Yes", ("yes", "yes"), "yes"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "labels", "label"), OTHER_SETS.values(), ids=OTHER_SETS)
def test_any_set_of_labels_is_told_apart(text, labels, label):
    assert label_in(text, labels) == label


words = st.text(min_size=1, max_size=12).filter(str.strip)
dresses = st.sampled_from(["{}", " {}\n", "{}.", "**{}**", '"{}"', "Label: {}", "The answer is {}.", "{}\n\nBecause."])


@given(st.lists(words.map(str.strip), min_size=1, max_size=6, unique=True), st.data())
def test_every_label_of_every_set_names_itself(labels, data):
    label = data.draw(st.sampled_from(labels))
    assert label_in(label, labels) == label


letters = st.text("abcdefghij", min_size=2, max_size=6)


@given(st.lists(letters, min_size=2, max_size=6, unique=True), dresses, st.data())
def test_a_dressed_label_is_still_itself(labels, dress, data):
    label = data.draw(st.sampled_from(labels))
    assert label_in(dress.format(data.draw(st.sampled_from([label, label.upper()]))), labels) == label


@given(st.lists(letters, min_size=2, max_size=6, unique=True), st.data())
def test_two_labels_are_none(labels, data):
    one, other = data.draw(st.lists(st.sampled_from(labels), min_size=2, max_size=2, unique=True))
    assert label_in(f"It is {one} or {other}", labels) is None


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
    "Option A is wrong because it is too hot. The answer is B.": "B",
    "Answer A is tempting, but the correct answer is C.": "C",
    "X-rays are electromagnetic waves, so the answer is B.": "B",
    "E. coli is a bacterium. The answer is D.": "D",
    "U.S. law applies, so the answer is (C).": "C",
    "Answer: b": "B",
    "B, because Paris is the capital.": "B",
    r"\boxed{B}": "B",
    r"Option A is close, but \boxed{\text{B}}": "B",
    "Answer: I think it is B": "B",
    "**Answer:** **B**": "B",
    "Answer: C. Wait.\nAnswer: D": "D",
    "The answer is not A but B.": "B",
    "The answer is not A.": None,
    "The answer is A or B.": None,
    "The answer is a dog.": None,
    "The answer is A dog.": None,
    "It is option A or option B": None,
    "X-rays are waves": None,
    "Answer: I'm sure it's D.": "D",
    "C. Paris": "C",
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
    "number": ("It makes $1,000 in all.", "1000", Task.MATH, True),
    "number-of-a-worked-label": ("\\boxed{15}", "5 * 3 = 15\n#### 15", Task.MATH, True),
    "another-number": ("The answer is 15", "-15", Task.MATH, False),
    "no-number-never-agrees-with-none": ("none", "none", Task.MATH, False),
    "conversation": ("Hello!", "hello", Task.CONVERSATION, True),
    "two-empty-answers": ("", "...", Task.CONVERSATION, False),
}


@pytest.mark.parametrize(("text", "reference", "task", "same"), AGREE.values(), ids=AGREE)
def test_an_answer_agrees_with_a_reference_if_both_say_the_same(text, reference, task, same):
    assert agrees(text, reference, task, LABELS) is same


def test_classification_without_a_label_set_takes_any_text():
    assert said("Label: Anything.", Task.CLASSIFICATION) == "anything"

"""What an answer says, apart from how it says it: the label, the choice, or the plain text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence

from kubedistill_api.base import Task

_LEAD_IN = re.compile(
    r"^(?:final |correct |predicted )?(?:answer|label|category|class|intent|topic|sentiment)\s*(?:is\b|[:=-])\s*"
)
_CHOICE_ALONE = re.compile(r"^\W*([A-Za-z])(?:\W*$|[).:\]]|\s*[\n-])")
_CHOICE_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b\W*(?:is\b)?\W*(?:option\b)?\W*)(?:([A-Z])\b|(?<=\()([a-z])(?=\)))"
)
_NEGATED = re.compile(r"\b(?:not|neither|nor|never)\b|n't\b")
_LONGEST_STATEMENT = 12  # words: "This message belongs to the category billing." is one, an essay is not


def said(text: str, task: Task, labels: Sequence[str] = (), reference: str | None = None) -> str | None:
    """What an answer amounts to, comparable by `==`; None if it cannot be read.

    Classification: one of `labels`, as spelt there (any text, if there are none). QuestionAnswering: the letter if
    the reference is a letter, else the text. Other tasks: the text. Texts are compared normalised.
    """
    match task:
        case Task.CLASSIFICATION if labels:
            return label_in(text, labels)
        case Task.QUESTION_ANSWERING if reference is not None and is_choice(reference):
            return choice_in(text)
        case _:
            return normalized(text) or None


def agrees(text: str, reference: str, task: Task, labels: Sequence[str] = ()) -> bool:
    """Whether an answer says what the reference says."""
    answer = said(text, task, labels, reference)
    return answer is not None and answer == said(reference, task, labels, reference)


def normalized(text: str) -> str:
    """Blind to case, spacing, Markdown emphasis and quotes, outer punctuation, and a lead-in such as "Answer:"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(re.sub(r"[*`\"“”]+", " ", plain).split())
    plain = _LEAD_IN.sub("", plain.strip(string.punctuation + " ").removeprefix("the "))
    return plain.strip(string.punctuation + " ")


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The one label that the answer names: alone, alone on its first line, or in a short first statement."""
    by_form = {normalized(label): label for label in labels}
    lines = text.strip().splitlines() or [""]
    for form in (normalized(text), normalized(lines[0])):
        if form in by_form:
            return by_form[form]
    statement = normalized(lines[0])
    if len(statement.split()) > _LONGEST_STATEMENT or _NEGATED.search(statement):
        return None
    named = [form for form in by_form if re.search(rf"(?<!\w){re.escape(form)}(?!\w)", statement)]
    whole = [form for form in named if not any(form != other and form in other for other in named)]
    return by_form[whole[0]] if len(whole) == 1 else None


def is_choice(reference: str) -> bool:
    """Whether a reference is the letter of a choice: "B", "(b)", "C."."""
    return re.fullmatch(r"\W*[A-Za-z]\W*", reference) is not None


def choice_in(text: str) -> str | None:
    """The letter that an answer chooses: "B", "(B) Paris", "The answer is B". None for "A dog barked"."""
    found = _CHOICE_ALONE.match(text.strip()) or _CHOICE_NAMED.search(text)
    return next(filter(None, found.groups())).upper() if found else None

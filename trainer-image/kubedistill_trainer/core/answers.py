"""What an answer says, apart from how it says it: the label, the choice, the number, or the plain text."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from kubedistill_api.base import Task
from kubedistill_trainer.core.quantities import number_in

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
    """What an answer amounts to; None if it cannot be read.

    Classification: one of `labels`, as spelt there (any text, if there are none). QuestionAnswering: the letter if
    the reference is a letter, else the text. Math: the number. Other tasks: the text. Texts come normalised.
    """
    match task:
        case Task.CLASSIFICATION if labels:
            return label_in(text, labels)
        case Task.QUESTION_ANSWERING if reference is not None and is_choice(reference):
            return choice_in(text)
        case Task.MATH:
            number = number_in(text)
            return None if number is None else str(number.amount)
        case _:
            return normalized(text) or None


def agrees(text: str, reference: str, task: Task, labels: Sequence[str] = ()) -> bool:
    """Whether an answer says what the reference says. Numbers are compared as numbers: see `Number.same`."""
    if task is Task.MATH:
        number, wanted = number_in(text), number_in(reference)
        return number is not None and wanted is not None and number.same(wanted)
    answer = said(text, task, labels, reference)
    return answer is not None and answer == said(reference, task, labels, reference)


def normalized(text: str) -> str:
    """Blind to case, spacing, Markdown emphasis and quotes, outer punctuation, and a lead-in such as "Answer:"."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(re.sub(r"[*`\"“”]+", " ", plain).split())
    plain = _LEAD_IN.sub("", plain.strip(string.punctuation + " ").removeprefix("the "))
    return plain.strip(string.punctuation + " ")


_FORMS: tuple[Callable[[str], str], ...] = (
    str.strip,
    lambda text: unicodedata.normalize("NFKC", text).casefold().strip(),
    normalized,
)
"""The same text less and less closely."""


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The one label that the answer names: alone, alone on its first line, or in a short first statement.

    Labels that only case or punctuation tells apart ("C" and "C++") are told apart where the answer is exactly one of
    them; where it could be either, it is neither.
    """
    lines = text.strip().splitlines() or [""]
    looks = _by_form(tuple(labels))
    for part in (text, lines[0]):
        for form, by_form in zip(_FORMS, looks, strict=True):
            alike = by_form.get(form(part), [])
            if len(alike) == 1:
                return alike[0]
    return _label_named(normalized(lines[0]), looks[-1])


@lru_cache(maxsize=8)
def _by_form(labels: tuple[str, ...]) -> tuple[dict[str, list[str]], ...]:
    """For each way to see a text, the labels that look like it; empty looks are left out."""
    found: tuple[dict[str, list[str]], ...] = tuple({} for _ in _FORMS)
    for label in dict.fromkeys(labels):
        for form, by_form in zip(_FORMS, found, strict=True):
            if look := form(label):
                by_form.setdefault(look, []).append(label)
    return found


def _label_named(statement: str, by_form: Mapping[str, Sequence[str]]) -> str | None:
    """The only label in a statement that says nothing else of weight. The longest are looked for first and taken out,
    so that "billing dispute" does not name "billing", and "not entailment" denies nothing.
    """
    if len(statement.split()) > _LONGEST_STATEMENT:
        return None
    named: list[Sequence[str]] = []
    for form in sorted(by_form, key=len, reverse=True):
        if form in statement:
            rest = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "|", statement)
            named += [by_form[form]] if rest != statement else []
            statement = rest
    clear = len(named) == 1 and len(named[0]) == 1 and not _NEGATED.search(statement)
    return named[0][0] if clear else None


def is_choice(reference: str) -> bool:
    """Whether a reference is the letter of a choice: "B", "(b)", "C."."""
    return re.fullmatch(r"\W*[A-Za-z]\W*", reference) is not None


def choice_in(text: str) -> str | None:
    """The letter that an answer chooses: "B", "(B) Paris", "The answer is B". None for "A dog barked"."""
    found = _CHOICE_ALONE.match(text.strip()) or _CHOICE_NAMED.search(text)
    return next(filter(None, found.groups())).upper() if found else None

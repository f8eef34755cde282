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
_ENDS = r"(?=[*_\s]*(?:$|[.,;:!?)\]}\n]|\(|[-–—]\s|(?:because|since|as|for|but|not|and|or)\b))"
_LETTER = rf"(?:\(([A-Za-z])\)|([B-HJ-Z])\b(?!['’-])|([A-Za-z]){_ENDS})"
"""Of a choice. "A", "I" and small letters may be words: they count where something ends after them."""
_OR_ANOTHER = r"(?!\W*(?:and|or|/|&)\W*[A-Za-z]\b)"
_ANSWER_IS = re.compile(r"\banswer\b\W{0,4}?(?:(?:is|was|would be|should be|must be)\b|[:=]|\s[-–—]\s)", re.IGNORECASE)
_CHOSEN = re.compile(rf"[\W_]*(?:(?i:option|choice|letter)\b[\W_]*)?(?<![A-Za-z]){_LETTER}{_OR_ANOTHER}")
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\s*\{)?\W*([A-Za-z])\W*\}")
_ALONE = re.compile(r"^\W*([A-Za-z])(?:\W*$|[)\]:]|[^\w\n]*\n|,?\s+(?:because|since)\b)")
_OPTION = re.compile(
    rf"(?<!not )\b(?i:answer|option|choice)\b\W*{_LETTER}"
    r"(?!\W*(?i:is|was|seems|looks)\s+(?i:not|wrong|incorrect|false|tempting|unlikely|too)\b)"
)
_MENTIONED = re.compile(rf"(?<![\w'’-])(?<!\bnot ){_LETTER}")
_FIRST = re.compile(r"^\W*([A-Za-z])(?:\.\s|\s+[-–—]\s|,\s)")
_NEGATED = re.compile(r"\b(?:not|no|non|neither|nor|never|without|lacks?|cannot|hardly)\b|n['’]t\b")
_OPENING = re.compile(r"(yes|no|true|false)\s*[,.;:!–—-]")
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
    return _LEAD_IN.sub("", _undressed(text)).strip(string.punctuation + " ")


def _undressed(text: str) -> str:
    """Normalised, but with its lead-in."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    plain = " ".join(re.sub(r"[*`\"“”]+", " ", plain).split())
    return plain.strip(string.punctuation + " ").removeprefix("the ")


_FORMS: tuple[Callable[[str], str], ...] = (
    str.strip,
    lambda text: unicodedata.normalize("NFKC", text).casefold().strip(),
    normalized,
)
"""The same text less and less closely."""


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The one label that the answer names: alone, alone on a line, or in a short statement. The line is the last one
    with a lead-in such as "Label:", else the first.

    Labels that only case or punctuation tells apart ("C" and "C++") are told apart where the answer is exactly one of
    them; where it could be either, it is neither.
    """
    lines = text.strip().splitlines() or [""]
    line = next((line for line in reversed(lines) if _LEAD_IN.match(_undressed(line))), lines[0])
    looks = _by_form(tuple(labels))
    for part in (text, line):
        for form, by_form in zip(_FORMS, looks, strict=True):
            alike = by_form.get(form(part), [])
            if len(alike) == 1:
                return alike[0]
    return _label_named(normalized(line), looks[-1])


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
    opening = _OPENING.match(statement)
    named: list[Sequence[str]] = []
    for form in sorted(by_form, key=len, reverse=True):
        if form in statement:
            rest = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", "|", statement)
            named += [by_form[form]] if rest != statement else []
            statement = rest
    answered = opening is not None and [by_form.get(opening[1])] == named  # "No, this is not spam."
    clear = len(named) == 1 and len(named[0]) == 1 and (answered or not _NEGATED.search(statement))
    return named[0][0] if clear else None


def is_choice(reference: str) -> bool:
    """Whether a reference is the letter of a choice: "B", "(b)", "C."."""
    return re.fullmatch(r"\W*[A-Za-z]\W*", reference) is not None


def choice_in(text: str) -> str | None:
    """The letter that an answer chooses: "B", "(B) Paris", "The answer is B". None for "A dog barked".

    The last "answer is" that a letter follows counts; else the last box, a letter alone, options if all that are
    named are the same, and at last a letter that the text begins with: "E. coli" does, too.
    """
    for mark in reversed(list(_ANSWER_IS.finditer(text))):
        if letter := _letter_stated(text[mark.end() :]):
            return letter
    if boxes := _BOXED.findall(text):
        return str(boxes[-1]).upper()
    if alone := _ALONE.match(text.strip()):
        return alone[1].upper()
    if options := _letters(_OPTION, text):
        return options.pop() if len(options) == 1 else None
    first = _FIRST.match(text.strip())
    return first[1].upper() if first else None


def _letter_stated(rest: str) -> str | None:
    """The letter right after "the answer is", or the only one in that sentence: "I think it is B"."""
    if found := _CHOSEN.match(rest):
        return _letter(found)
    letters = _letters(_MENTIONED, re.split(r"[.!?](?:\s|$)|\n", rest.strip(), maxsplit=1)[0])
    return letters.pop() if len(letters) == 1 else None


def _letters(pattern: re.Pattern[str], text: str) -> set[str]:
    return {_letter(found) for found in pattern.finditer(text)}


def _letter(found: re.Match[str]) -> str:
    return str(next(filter(None, found.groups()))).upper()

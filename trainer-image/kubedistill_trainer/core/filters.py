"""Which of a teacher's answers may train a student. A readable list of checks; the first that finds something names
the one reason that the ledger keeps. Nothing rejected ever trains."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kubedistill_api.base import Task
from kubedistill_api.generation import Filters, Reasoning
from kubedistill_trainer.core.answers import agrees, is_choice, said
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.core.words import words

WORDY = 2
"""A summary of more words than so many times those that were asked for is too long."""


class Reject(StrEnum):
    """Why an answer was rejected: exactly one reason for each."""

    REQUEST_FAILED = "RequestFailed"
    UNANSWERABLE = "Unanswerable"
    EMPTY = "Empty"
    TRUNCATED = "Truncated"
    TOO_SHORT = "TooShort"
    TOO_LONG = "TooLong"
    REFUSAL = "Refusal"
    REPETITIVE = "Repetitive"
    UNPARSABLE = "Unparsable"
    OUT_OF_LABEL_SET = "OutOfLabelSet"
    LABEL_MISMATCH = "LabelMismatch"
    DUPLICATE = "Duplicate"


@dataclass(frozen=True)
class Answer:
    """What came back for one prompt."""

    text: str
    """All that the teacher wrote, its reasoning included."""
    tokens: int
    """Of this text alone."""
    complete: bool
    """The teacher ended it itself; False: `finish_reason: length`."""


@dataclass(frozen=True)
class Asked:
    """What was asked, and what the job wants of an answer."""

    task: Task
    filters: Filters = field(default_factory=Filters)
    labels: Sequence[str] = ()
    label: str | None = None
    """The row's own expected answer."""
    kept: Collection[str] = ()
    """Answers to the same prompt that were accepted before."""
    guidance: Guidance = field(default_factory=Guidance)
    """How the teacher was led to it."""

    def proper(self, answer: Answer) -> str:
        """The answer without the reasoning before it; empty if it cannot be told from it."""
        return self.guidance.answer_in(answer.text) or ""

    def judged(self, answer: Answer) -> str:
        """The answer proper as labels and numbers are read from it."""
        return self.guidance.judged(answer.text) if self.proper(answer) else ""


def is_empty(answer: Answer, asked: Asked) -> bool:
    return not answer.text.strip()


def is_truncated(answer: Answer, asked: Asked) -> bool:
    return asked.filters.drop_truncated and not answer.complete


def is_too_short(answer: Answer, asked: Asked) -> bool:
    return answer.tokens < asked.filters.min_tokens


def is_refusal(answer: Answer, asked: Asked) -> bool:
    """Of a reasoned answer the reasoning may decline, or only what follows it."""
    return asked.filters.drop_refusals and (refuses(answer.text) or refuses(asked.proper(answer)))


def is_repetitive(answer: Answer, asked: Asked) -> bool:
    """A chain of density says everything four times; there the last summary is looked at."""
    dense = asked.guidance.reasoning is Reasoning.CHAIN_OF_DENSITY
    return asked.filters.drop_repetitive and loops(asked.proper(answer) if dense else answer.text)


def is_unparsable(answer: Answer, asked: Asked) -> bool:
    proper = asked.proper(answer)
    if not proper:
        return True
    choice = asked.task is Task.QUESTION_ANSWERING and asked.label is not None and is_choice(asked.label)
    read = said(asked.judged(answer), asked.task, reference=asked.label)
    return (choice or asked.task is Task.MATH) and read is None


def is_too_long(answer: Answer, asked: Asked) -> bool:
    wanted = asked.guidance.words
    return wanted is not None and len(words(asked.proper(answer))) > WORDY * wanted


def is_out_of_label_set(answer: Answer, asked: Asked) -> bool:
    return asked.task is Task.CLASSIFICATION and said(asked.proper(answer), asked.task, asked.labels) is None


def is_label_mismatch(answer: Answer, asked: Asked) -> bool:
    wanted = asked.label if asked.filters.matches_labels(asked.task) else None
    return wanted is not None and not agrees(asked.judged(answer), wanted, asked.task, asked.labels)


def is_duplicate(answer: Answer, asked: Asked) -> bool:
    return asked.filters.deduplicate and answer.text.strip() in asked.kept


CHECKS: tuple[tuple[Reject, Callable[[Answer, Asked], bool]], ...] = (
    (Reject.EMPTY, is_empty),
    (Reject.TRUNCATED, is_truncated),
    (Reject.TOO_SHORT, is_too_short),
    (Reject.REFUSAL, is_refusal),
    (Reject.REPETITIVE, is_repetitive),
    (Reject.UNPARSABLE, is_unparsable),
    (Reject.TOO_LONG, is_too_long),
    (Reject.OUT_OF_LABEL_SET, is_out_of_label_set),
    (Reject.LABEL_MISMATCH, is_label_mismatch),
    (Reject.DUPLICATE, is_duplicate),
)
"""In this order: what says least about the text comes first."""


def problem(answer: Answer, asked: Asked) -> Reject | None:
    """Why an answer may not train; None: it may. (RequestFailed and Unanswerable are for the caller to know.)"""
    return next((reason for reason, finds in CHECKS if finds(answer, asked)), None)


_APOLOGY = (
    r"(?:(?:i'?m|i am|we'?re|we are) (?:very |so |really )?sorry|sorry|(?:i|we) apologi[sz]e|apologies|unfortunately)"
)
_AS_AI = r"as an? (?:ai|artificial intelligence|large language model|language model)\b"
_UNABLE = (
    r"(?:i|we) (?:cannot|can ?not|can'?t|could not|couldn'?t|won'?t|will not|must decline|have to decline"
    r"|(?:am|are|'m|'re) (?:not able|unable|not allowed|not permitted|not comfortable)(?: to)?)"
    r"|(?:i'?m|we'?re) (?:not able|unable|not allowed|not permitted|not comfortable)(?: to)?"
)
_SERVE = (
    r"(?:assist|help|provid|answer|fulfil|comply|complet|do (?:that|this|so)|discuss|engag|creat|generat|writ|giv|shar"
    r"|continu|support|respond|offer|produc|process|satisf|accommodat)"
)
_REFUSAL = re.compile(
    rf"^(?:{_APOLOGY}\b.{{0,12}}?)?(?:{_AS_AI}.{{0,60}}?)?(?:{_UNABLE})\b.{{0,24}}?\b{_SERVE}"
    rf"|^(?:{_APOLOGY}\b.{{0,12}}?)?{_AS_AI}.{{0,60}}?\b(?:{_UNABLE}|do not|don'?t)\b"
    rf"|^i (?:must|have to|need to) (?:decline|refuse)\b"
)
_LONGEST_REFUSAL = 60  # words: a longer answer may open with "I can't" and go on to help


def refuses(text: str) -> bool:
    """Whether an answer only declines: it opens with the words of a refusal and is short.

    Regret is no refusal: "I'm sorry to hear that your parcel is late" is how a support desk begins to help.
    """
    opening = " ".join(text.replace("’", "'").casefold().split())
    return len(opening.split()) <= _LONGEST_REFUSAL and _REFUSAL.match(opening) is not None


def loops(text: str) -> bool:
    """Whether an answer got caught in a loop: at its end, throughout, or within one word."""
    words = text.casefold().split()
    return _ends_in_loop(words) or _repeats_throughout(words) or _stutters(text)


def _ends_in_loop(words: Sequence[str], repeats: int = 4, longest_period: int = 40) -> bool:
    """The last words are one phrase, `repeats` times over, at least 12 words in all."""
    for period in range(1, min(longest_period, len(words) // repeats) + 1):
        times = max(repeats, -(-12 // period))
        tail = words[-period * times :]
        if len(tail) == period * times and all(word == tail[i % period] for i, word in enumerate(tail)):
            return True
    return False


def _repeats_throughout(words: Sequence[str], size: int = 4, least: int = 40) -> bool:
    """More than half of the phrases of four words were said before, in a text of some length."""
    if len(words) < least:
        return False
    phrases = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    return len(phrases) < 0.5 * phrases.total()


def _stutters(text: str) -> bool:
    """A piece of up to 12 letters, 10 times in a row. Rules and table borders (---, ...) are no stutter."""
    return re.search(r"([^\W\d_][^\n]{0,11}?)\1{9,}", text) is not None

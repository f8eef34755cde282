"""How the teacher is led to its answer: what it is told beyond the user's prompt, and where in its reply the answer is.

The student never sees what the teacher is told here. It is trained, and later asked, with the user's own prompt, and
learns to answer as the teacher did under guidance. A user's system prompt is added to and never replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubedistill_api.base import Task
from kubedistill_api.generation import DENSITY_ROUNDS, Generation, Reasoning, ReasoningTarget

LABELS_SHOWN = 50
"""More labels than these are not listed to the teacher; the user's prompt explains them anyway."""

_THOUGHT = (
    "First think step by step and write your reasoning down. Then begin a new line with Answer: followed by {what}, "
    "and write nothing after it."
)
_LENGTH = "Write the summary in about {words} words."
_DENSITY = (
    "Summarise in {rounds} rounds. In each round, name one to three informative details of the text that the summary "
    "of the round before lacks, then write a new summary {length} that keeps all of the one before and has these "
    "details too. Reply with JSON and nothing else: a list of {rounds} objects, each of the form "
    '{{"missing": "detail; detail", "summary": "the summary"}}.'
)


@dataclass(frozen=True)
class Guidance:
    """What a job tells its teacher, and what it takes from the replies."""

    task: Task = Task.CONVERSATION
    reasoning: Reasoning = Reasoning.NONE
    target: ReasoningTarget = ReasoningTarget.ANSWER_ONLY
    words: int | None = None
    """Of a summary, about."""
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: Task, generation: Generation, labels: Sequence[str]) -> Guidance:
        """That of a job."""
        return cls(task, generation.reasoning, generation.reasoning_target, generation.summary_words, tuple(labels))

    @property
    def instruction(self) -> str:
        """What the teacher is told beyond the user's prompt; empty: nothing."""
        length = _LENGTH.format(words=self.words) if self.words else ""
        match self.reasoning:
            case Reasoning.CHAIN_OF_DENSITY:
                how_long = f"of about {self.words} words" if self.words else "of the same length"
                return _DENSITY.format(rounds=DENSITY_ROUNDS, length=how_long)
            case Reasoning.CHAIN_OF_THOUGHT:
                return " ".join(filter(None, [length, _THOUGHT.format(what=self._what)]))
            case _:
                return length

    @property
    def _what(self) -> str:
        match self.task:
            case Task.MATH:
                return "the final number"
            case Task.CLASSIFICATION if len(self.labels) <= LABELS_SHOWN:
                return f"one of these labels, exactly as it is spelt here: {', '.join(self.labels)}"
            case Task.CLASSIFICATION:
                return "the label"
            case Task.QUESTION_ANSWERING:
                return "the final answer (of a choice its letter alone)"
            case Task.SUMMARIZATION:
                return "the summary"
            case _:
                return "your reply"

    def asked(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A chat as the teacher gets it: the instruction stands at the end of the system prompt.

        Where there is none, it stands at the end of the last user message: a system message of our own would hide the
        one that many templates bring, and some templates refuse any.
        """
        chat = [dict(message) for message in messages]
        if self.instruction:
            places = [at for at, message in enumerate(chat) if message["role"] in ("system", "developer")][:1]
            places = places or [at for at, message in enumerate(chat) if message["role"] == "user"][-1:]
            for at in places:
                chat[at]["content"] = f"{chat[at]['content']}\n\n{self.instruction}"
        return chat

    def answer_in(self, reply: str) -> str | None:
        """The answer without what led to it; None: it cannot be told from it."""
        match self.reasoning:
            case Reasoning.CHAIN_OF_THOUGHT:
                return _after_thought(reply)
            case Reasoning.CHAIN_OF_DENSITY:
                return _last_summary(reply)
            case _:
                return reply

    def taught(self, reply: str) -> str | None:
        """What of a reply the student learns; None: there is no answer in it."""
        answer = self.answer_in(reply)
        return reply if answer is not None and self.target is ReasoningTarget.REASONING_AND_ANSWER else answer

    def said_by_student(self, text: str) -> str:
        """The answer in a student's text. One that was never trained knows nothing of our "Answer:"."""
        if self.reasoning is not Reasoning.CHAIN_OF_THOUGHT:
            return text
        return _after_thought(text) or text

    def judged(self, text: str) -> str:
        """The answer in a text, as it is read for judging: a number stands behind "Answer:" again.

        Without it the last number would count, and "Answer: 18 (9 eggs at $2 each)" would come to 2. A student that
        learned the answer only leaves "Answer:" out: there it is added to one sentence that begins with a number.
        """
        answer = self.said_by_student(text)
        if self.task is not Task.MATH or self.reasoning is not Reasoning.CHAIN_OF_THOUGHT:
            return answer
        marked = _ANSWER.search(text.rpartition(_THOUGHT_ENDS)[2]) is not None
        return f"Answer: {answer}" if marked or _NUMBER_FIRST.fullmatch(answer) else answer


_ANSWER = re.compile(
    r"^[ \t>#]*(?P<open>\*\*|__|\*|_)?(?:the\s+)?(?:final\s+)?answer(?P<before>\*\*|__|\*|_)?[ \t]*[:：]"
    r"[ \t]*(?P<after>(?P=open))?",
    re.IGNORECASE | re.MULTILINE,
)
_THOUGHT_ENDS = "</think>"
_NUMBER_FIRST = re.compile(r"[^\w\n]{0,6}\d(?:[^.!?\n]|[.!?](?!\s))*\s*", re.ASCII)
"""One sentence that begins with a number."""


def _after_thought(reply: str) -> str | None:
    """What follows the last line that begins with "Answer:"; of a model that thinks in tags, at least its thoughts are
    taken away.
    """
    _, tags, rest = reply.rpartition(_THOUGHT_ENDS)
    marks = list(_ANSWER.finditer(rest))
    if marks:
        mark = marks[-1]
        rest = rest[mark.end() :]
        if mark["open"] and not mark["before"] and not mark["after"]:
            rest = rest.replace(mark["open"], "", 1)  # **Answer: 42**
    elif not tags:
        return None
    return rest.strip() or None


_SUMMARY = re.compile(
    r'"[^"\\]*summary[^"\\]*"\s*:\s*"(?P<text>(?:[^"\\]|\\.)*)"(?=\s*(?:[,}\]]|\Z))', re.IGNORECASE | re.DOTALL
)
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|\\(?P<none>.)', re.DOTALL)


def _last_summary(reply: str) -> str | None:
    """The last summary of a chain of density that can be read.

    Each is looked for by itself, so that code fences, words around the JSON, trailing commas, missing fields and a
    list that was cut off cost nothing but what is broken itself.
    """
    for found in reversed(list(_SUMMARY.finditer(reply))):
        text = _ESCAPE.sub(lambda escape: escape["none"] or escape[0], found["text"])
        try:
            summary = str(json.loads(f'"{text}"', strict=False)).strip()
            summary.encode()  # half of a surrogate pair is no text
        except ValueError:
            continue
        if summary:
            return summary
    return None

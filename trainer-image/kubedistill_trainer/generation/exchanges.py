"""One chat with the teacher: its questions as they stand in the row, its answers as the teacher gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kubedistill_api.base import Task
from kubedistill_api.generation import Filters, Reasoning
from kubedistill_trainer.core.filters import Answer, Asked, Reject, problem
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.generation.plan import seed_of
from kubedistill_trainer.store.rows import PromptRow
from kubedistill_trainer.teachers.protocol import Answered, Failed, Outcome, Request


@dataclass(frozen=True)
class Wanted:
    """What the job wants of every answer."""

    task: Task
    filters: Filters
    labels: Sequence[str]
    seed: int
    guidance: Guidance = field(default_factory=Guidance)


@dataclass(frozen=True)
class Rejection:
    """Why an answer may not train."""

    reason: Reject
    detail: str = ""


@dataclass
class Exchange:
    """A chat under way. Recorded answers in the row mark turns; each is replaced by the teacher's own.

    The history is the chat as the student will see it: without what only the teacher is told, and with that part of
    its answers that is taught. The teacher is asked with this history and its instruction.
    """

    row: PromptRow
    sample: int
    wanted: Wanted
    history: list[dict[str, Any]] = field(default_factory=list)
    """The chat so far, the teacher's answers in it."""
    answers: list[Answered] = field(default_factory=list)
    """All that the teacher wrote."""
    taught: list[Answered] = field(default_factory=list)
    """What of it the student learns, as it stands in the history."""
    prompts: list[int] = field(default_factory=list)
    """For each answer, how many messages of the history come before it."""
    rejection: Rejection | None = None
    _left: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = self.row.chat
        self._go_on()

    @property
    def key(self) -> tuple[str, int]:
        """Names the exchange within a job."""
        return (self.row.row_id, self.sample)

    @property
    def finished(self) -> bool:
        """Whether all answers are there, or one was rejected."""
        return self.rejection is not None or len(self.prompts) == len(self.answers)

    def request(self) -> Request:
        """The next answer that is wanted."""
        turn = len(self.answers)
        seed = seed_of(self.wanted.seed, self.row.row_id, self.sample, turn)
        messages = tuple(self.wanted.guidance.asked(self.history))
        return Request(self.row.row_id, self.sample, turn, messages, self.row.tool_list, seed)

    def give(self, outcome: Outcome) -> None:
        """Take what came back, and judge it: a chat is as good as its worst answer."""
        if isinstance(outcome, Failed):
            reason = Reject.UNANSWERABLE if outcome.by_request else Reject.REQUEST_FAILED
            self.rejection = Rejection(reason, outcome.reason)
            return
        self.answers.append(outcome)
        self.taught.append(self._taught(outcome))
        self.history.append({"role": "assistant", "content": self.taught[-1].text})
        last = not self._left
        self.rejection = self._judge(outcome, last)
        if not last:
            self._go_on()

    def messages(self) -> str:
        """The chat so far as JSON."""
        return json.dumps(self.history, ensure_ascii=False)

    @property
    def written(self) -> str:
        """All that the teacher wrote last, where the student learns only a part of it; else empty."""
        return self.answers[-1].text if self.answers[-1].text != self.taught[-1].text else ""

    def _taught(self, outcome: Answered) -> Answered:
        """The answer as the student learns it. A part of the teacher's text is text alone: its scores were given after
        what the student never sees. A summary that could be read is whole, even if what followed it was cut off.
        """
        text = self.wanted.guidance.taught(outcome.text)
        if text is None or text == outcome.text:
            return outcome
        whole = outcome.complete or self.wanted.guidance.reasoning is Reasoning.CHAIN_OF_DENSITY
        return replace(outcome, text=text, complete=whole, token_ids=None, signal=None)

    def _go_on(self) -> None:
        """Move messages into the history up to where the teacher answers next."""
        while self._left and not _is_answer(self._left[0]):
            self.history.append(self._left.pop(0))
        if self._left:
            self._left.pop(0)
        self.prompts.append(len(self.history))

    def _judge(self, outcome: Answered, last: bool) -> Rejection | None:
        """Labels speak of the last answer; what makes an answer unusable speaks of all."""
        asked = Asked(
            task=self.wanted.task if last else Task.CONVERSATION,
            filters=self.wanted.filters,
            labels=self.wanted.labels,
            label=(self.row.label or None) if last else None,
            guidance=self.wanted.guidance,
        )
        reason = problem(Answer(outcome.text, outcome.tokens, outcome.complete), asked)
        if reason is None:
            return None
        detail = {
            Reject.LABEL_MISMATCH: f"expected {self.row.label!r}",
            Reject.TOO_LONG: f"about {self.wanted.guidance.words} words were asked for",
        }.get(reason, "")
        return Rejection(reason, detail if last else f"answer {len(self.answers)} of the chat")


def _is_answer(message: Mapping[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")

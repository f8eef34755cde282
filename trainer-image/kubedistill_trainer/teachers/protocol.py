"""What a teacher is asked and what comes back. Two kinds of teacher speak it: HTTP servers and engines in process.

A teacher pulls requests from `Work` as fast as it can answer and gives every outcome back at once, in any order. It
knows nothing of shards, files or filters.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kubedistill_trainer.chats import TemplateRefused, prompt_ids
from kubedistill_trainer.store.shards import Signal


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. Scores are always raw: temperature 1, before top-p."""

    temperature: float = 1.0
    """0: greedy."""
    top_p: float = 1.0
    max_tokens: int = 1024
    k: int = 0
    """Candidates stored at each position; 0: the text is enough."""


@dataclass(frozen=True)
class Request:
    """One answer that is wanted."""

    row_id: str
    sample: int
    turn: int
    """0: the first answer of the chat."""
    messages: Sequence[Mapping[str, Any]]
    """Everything before the answer."""
    tools: Sequence[Mapping[str, Any]] | None = None
    seed: int = 0
    """Depends on job, row, sample and turn alone: asking again asks the same."""

    @property
    def key(self) -> str:
        """Names the request in logs."""
        return f"{self.row_id}/{self.sample}/{self.turn}"


@dataclass(frozen=True)
class Answered:
    """What the teacher wrote."""

    text: str
    complete: bool
    """The teacher ended it itself; False: it was cut off at `max_tokens`."""
    token_ids: tuple[int, ...] | None = None
    """The teacher's own tokens, the end included where it was written. None: the server did not say."""
    signal: Signal | None = None
    """One row for each of `token_ids`."""
    tokens: int = 0
    """As the server counts them."""


@dataclass(frozen=True)
class Failed:
    """No answer, and asking again would not help."""

    reason: str
    """A few words, for the ledger and for people."""
    by_request: bool = False
    """The request itself cannot be answered, by whatever server and at whatever time."""


Outcome = Answered | Failed


def encode(tokenizer: Any, request: Request) -> list[int]:
    """A request as the token ids that the teacher's chat template makes of it.

    Raises TemplateRefused: it makes none of this chat.
    """
    return prompt_ids(tokenizer, request.messages, request.tools)


def refused(error: TemplateRefused) -> Failed:
    """What comes of a request that the teacher's chat template does not take."""
    return Failed(f"the teacher's chat template refuses it: {error}", by_request=True)


def prompt_of(tokenizer: Any, request: Request, context: int) -> list[int] | Failed:
    """The token ids of a request, which leave room for an answer in the teacher's context, or why it is not asked."""
    try:
        prompt = encode(tokenizer, request)
    except TemplateRefused as error:
        return refused(error)
    if len(prompt) >= context:
        return Failed(f"the prompt has {len(prompt)} tokens, the teacher takes {context}", by_request=True)
    return prompt


class Work(Protocol):
    """Where requests come from and outcomes go."""

    def take(self, limit: int) -> list[Request]:
        """At most `limit` requests; none: nothing is left, or the rest waits for outcomes that are under way."""

    def give(self, request: Request, outcome: Outcome) -> None:
        """Hand back what came of a request."""


class Teacher(Protocol):
    """A model that answers."""

    def answer(self, work: Work, stopping: threading.Event) -> None:
        """Answer until `work` has nothing more and nothing is under way, or until `stopping` is set.

        Raises:
            StageError: nobody could answer: credentials refused, no such model, the server is away for good.
        """

    def close(self) -> None:
        """Free what is held."""


@dataclass
class ListOfWork:
    """The simplest `Work`: a list, and the outcomes by request."""

    requests: list[Request]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def take(self, limit: int) -> list[Request]:
        taken, self.requests = self.requests[:limit], self.requests[limit:]
        return taken

    def give(self, request: Request, outcome: Outcome) -> None:
        self.outcomes[request.key] = outcome

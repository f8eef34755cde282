"""A provider's limits per minute, kept from this side, so that its 429 stays the exception.

`Limits` is arithmetic: who may go when. `Gate` is the queue before it. Both are one process's; a job's workers have
each their part of the provider's numbers, since they share no clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

MINUTE_SECONDS = 60.0
SLACK = 1 / 60
"""Windows are so much longer than they are called: what leaves evenly may arrive bunched."""
PIECES = 12
"""A minute's units are also spread over pieces of it: many providers count by the second."""


@dataclass
class Taken:
    """What one request was let through with."""

    at: float
    tokens: int
    """What it may cost; once it is answered, what it did."""


class Window:
    """At most `limit` units in any `seconds`. What is larger than the whole limit goes alone."""

    def __init__(self, limit: int, seconds: float, cost: Callable[[Taken], int]) -> None:
        self._limit, self._seconds, self.cost = limit, seconds, cost
        self._inside: deque[Taken] = deque()
        self._total = 0

    def seconds_until(self, units: int, now: float) -> float:
        """How long until so many units fit."""
        self._forget(now)
        left, at = self._total + min(units, self._limit) - self._limit, now
        for taken in self._inside:
            if left <= 0:
                break
            left, at = left - self.cost(taken), taken.at + self._seconds
        return at - now

    def add(self, taken: Taken) -> None:
        """Count it from now on."""
        self._inside.append(taken)
        self._total += self.cost(taken)

    def correct(self, taken: Taken, units: int) -> None:
        """It will cost so many units more, or less; what has left the window is left alone."""
        if self._inside and taken.at >= self._inside[0].at:
            self._total += units

    def _forget(self, now: float) -> None:
        while self._inside and self._inside[0].at + self._seconds <= now:
            self._total -= self.cost(self._inside.popleft())


class Limits:
    """Limits of requests and of tokens together; None: no limit. Times are those of one monotonic clock."""

    def __init__(
        self, requests_per_minute: int | None, tokens_per_minute: int | None, minute_seconds: float = MINUTE_SECONDS
    ) -> None:
        seconds = minute_seconds * (1 + SLACK)
        counted: list[tuple[int | None, Callable[[Taken], int]]] = [
            (requests_per_minute, lambda _: 1),
            (tokens_per_minute, lambda taken: taken.tokens),
        ]
        limited = [(limit, cost) for limit, cost in counted if limit is not None]
        self._minutes = [Window(limit, seconds, cost) for limit, cost in limited]
        self._pieces = [Window(-(-limit // PIECES), seconds / PIECES, cost) for limit, cost in limited]
        self._closed_until = float("-inf")

    def seconds_until(self, tokens: int, now: float) -> float:
        """How long until one more request of so many tokens may go; 0: it may go now.

        Minutes are never exceeded. A piece of one may be, by its last request: most of it may come back.
        """
        taken = Taken(now, tokens)
        waits = [
            self._closed_until - now,
            *(window.seconds_until(window.cost(taken), now) for window in self._minutes),
            *(window.seconds_until(1, now) for window in self._pieces),
        ]
        return max(0.0, *waits)

    def take(self, tokens: int, now: float) -> Taken:
        """Let a request through."""
        taken = Taken(now, tokens)
        for window in (*self._minutes, *self._pieces):
            window.add(taken)
        return taken

    def settle(self, taken: Taken, tokens: int) -> None:
        """A request cost so many tokens, whatever was expected of it."""
        corrected = Taken(taken.at, tokens)
        for window in (*self._minutes, *self._pieces):
            window.correct(taken, window.cost(corrected) - window.cost(taken))
        taken.tokens = tokens

    def close(self, seconds: float, now: float) -> None:
        """Nothing may go for so long: the provider has said so to one request, and means all of them."""
        self._closed_until = max(self._closed_until, now + seconds)


@dataclass
class Gate:
    """The queue before limits: first come, first served, so that a large request is not overtaken for ever.

    Belongs to one event loop.
    """

    limits: Limits
    clock: Callable[[], float] = time.monotonic
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, tokens: int) -> Taken:
        """Return when one more request of so many tokens (at most) may go."""
        async with self._turn:
            while (seconds := self.limits.seconds_until(tokens, self.clock())) > 0:
                self._freed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._freed.wait()
            return self.limits.take(tokens, self.clock())

    def settle(self, taken: Taken, tokens: int) -> None:
        """See `Limits.settle`; who waits looks again."""
        self.limits.settle(taken, tokens)
        self._freed.set()

    def close(self, seconds: float) -> None:
        """See `Limits.close`."""
        self.limits.close(seconds, self.clock())

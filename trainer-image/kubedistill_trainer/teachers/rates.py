"""A provider's limits per minute, kept from this side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Bucket:
    """So many units a minute, evenly: a full bucket holds `burst_seconds` worth, and who overdraws it waits."""

    def __init__(self, per_minute: float, now: float, burst_seconds: float = 5.0) -> None:
        self._rate = per_minute / 60
        self._size = self._rate * burst_seconds
        self._level = self._size
        self._at = now

    def take(self, units: float, now: float) -> float:
        """Take units; the seconds to wait before using them."""
        self._level = min(self._size, self._level + (now - self._at) * self._rate)
        self._at = now
        self._level -= units
        return max(0.0, -self._level / self._rate)


class Rates:
    """Limits of requests and tokens together; None: no limit."""

    def __init__(
        self,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        now = clock()
        self._requests = Bucket(requests_per_minute, now) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute, now) if tokens_per_minute else None

    async def wait(self, tokens: int) -> None:
        """Return when one more request of so many tokens (at most) may go."""
        now = self._clock()
        seconds = self._requests.take(1, now) if self._requests else 0.0
        seconds = max(seconds, self._tokens.take(tokens, now) if self._tokens else 0.0)
        if seconds:
            await asyncio.sleep(seconds)

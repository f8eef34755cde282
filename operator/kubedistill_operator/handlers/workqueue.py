"""One deduplicating queue with delays: a key waits once, is worked on once at a time, and is never lost.

A key that is added while it is worked on comes back when that ends: the worker may have looked before the change.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """Keys that are due now or later."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds: the event loop's."""
        self._clock = clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._busy: set[K] = set()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait, due or not."""
        return len(self._due)

    @property
    def overdue(self) -> int:
        """Keys that are due and wait for a worker."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    @property
    def busy(self) -> int:
        """Keys that are worked on."""
        return len(self._busy)

    def add(self, key: K, after_seconds: float = 0.0) -> None:
        """Ask for a pass in so many seconds; an earlier one that waits already stands."""
        due = self._clock() + after_seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            self._order += 1
            heapq.heappush(self._heap, (due, self._order, key))
            self._wake.set()

    async def take(self) -> K:
        """The next key that is due and not worked on; call `done` when it is."""
        while True:
            now = self._clock()
            self._wake.clear()
            later: float | None = None
            while self._heap:
                due, _, key = self._heap[0]
                if self._due.get(key) != due or key in self._busy:
                    # Outdated by an earlier time, or `done` puts it back.
                    heapq.heappop(self._heap)
                elif due <= now:
                    heapq.heappop(self._heap)
                    del self._due[key]
                    self._busy.add(key)
                    return key
                else:
                    later = due - now
                    break
            try:
                async with asyncio.timeout(later):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The work on the key has ended."""
        self._busy.discard(key)
        if key in self._due:
            self._order += 1
            heapq.heappush(self._heap, (self._due[key], self._order, key))
            self._wake.set()

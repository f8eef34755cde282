"""How fast a training reads."""

from __future__ import annotations

import time
from collections import deque

RATE_STEPS = 20
"""Tokens a second are those of the last so many steps."""


class Rate:
    """Tokens a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._tokens = 0
        self._recent: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=RATE_STEPS + 1)

    def add(self, tokens: int) -> None:
        self._tokens += tokens
        self._recent.append((time.monotonic(), self._tokens))

    @property
    def recent(self) -> float:
        (start, before), (end, after) = self._recent[0], self._recent[-1]
        return (after - before) / (end - start) if end > start else 0.0

    @property
    def overall(self) -> float:
        end, tokens = self._recent[-1]
        return tokens / (end - self._started) if end > self._started else 0.0

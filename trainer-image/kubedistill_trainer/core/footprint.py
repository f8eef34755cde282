"""What a model takes to run: time and room."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Speed:
    """How quickly a model answers, on the device of the evaluation. Seconds are for one prompt at a time."""

    latency_p50: float
    latency_p95: float
    first_token_p50: float
    tokens_per_second: float
    """New tokens of all prompts answered in one batch."""
    tokens: int
    """New tokens of each answer that was timed; the same for every model."""


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    parameters: int
    bytes: int
    """Of its weights."""

    @property
    def mebibytes(self) -> float:
        return self.bytes / 2**20

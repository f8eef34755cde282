"""How quickly a model answers: alone, which is what a user waits for, and in a batch, which is what a server earns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from kubedistill_trainer.core.footprint import Speed
from kubedistill_trainer.core.scores import percentile
from kubedistill_trainer.evaluation.answering import generate

BATCHES = 3
"""The median of so many: one alone is at the mercy of whatever else the machine does."""


@torch.inference_mode()
def measure(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    end_ids: Sequence[int],
    vocabulary: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Speed:
    """Time greedy answers of exactly `tokens` new tokens. The first answer, which warms up, does not count."""

    def timed(batch: Sequence[Sequence[int]], length: int) -> float:
        begin = clock()
        generate(model, batch, length, end_ids, vocabulary, at_least=length)
        return clock() - begin

    timed(prompts[:1], 2)
    first = [timed([prompt], 1) for prompt in prompts]
    whole = [timed([prompt], tokens) for prompt in prompts]
    together = percentile([timed(prompts, tokens) for _ in range(BATCHES)], 0.5)
    return Speed(
        latency_p50=percentile(whole, 0.5),
        latency_p95=percentile(whole, 0.95),
        first_token_p50=percentile(first, 0.5),
        tokens_per_second=len(prompts) * tokens / together,
        tokens=tokens,
    )

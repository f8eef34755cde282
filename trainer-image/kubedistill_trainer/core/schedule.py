"""The learning rate over the steps, as a factor of the peak."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kubedistill_api.training import Scheduler


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to 1, then Cosine or Linear down to 0 after the last step, or Constant."""

    kind: Scheduler
    total_steps: int
    warmup_ratio: float

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.total_steps * self.warmup_ratio)

    def factor(self, step: int) -> float:
        """The factor for optimizer step `step`, counted from 0; the first step already learns something."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        over = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        match self.kind:
            case Scheduler.COSINE:
                return 0.5 * (1.0 + math.cos(math.pi * min(1.0, over)))
            case Scheduler.LINEAR:
                return max(0.0, 1.0 - over)
            case Scheduler.CONSTANT:
                return 1.0

"""What a running stage says of itself at `:9100/progress`; the operator pulls it."""

from __future__ import annotations

from kubedistill_api.base import Stage, Tolerant
from kubedistill_api.status import Ledger, Progress, TrainingStatus


class ProgressReport(Tolerant):
    """One worker's progress. Reports of several workers of a stage are added up."""

    stage: Stage
    attempt: int = 1
    worker: int = 0
    """Completion index of the pod."""
    progress: Progress
    """Of this worker's share."""
    training: TrainingStatus | None = None
    """Train only."""
    ledger: Ledger | None = None
    """Generate only."""
    tokens_generated: int = 0
    """Generate only."""

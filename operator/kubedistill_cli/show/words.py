"""Numbers and places in words. Pure."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path

from kubedistill_api import uris
from kubedistill_api.status import Progress, StageStatus, Status


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def took(stage: StageStatus, now: datetime) -> str:
    """How long a step has taken."""
    if stage.start_time is None:
        return ""
    end = datetime.fromisoformat(stage.completion_time) if stage.completion_time else now
    return duration(max((end - datetime.fromisoformat(stage.start_time)) / timedelta(seconds=1), 0))


def rate(progress: Progress) -> str:
    """`3.2 rows/s, 1 min 20 s left`."""
    parts = []
    if progress.rate_per_second:
        parts.append(f"{progress.rate_per_second} {progress.unit}/s")
    if progress.eta_seconds:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return ", ".join(parts)


def training(status: Status) -> str:
    """`loss 0.412, validation 0.455, 6120 tokens/s`."""
    now = status.training
    if now is None or not now.loss:
        return ""
    parts = [f"loss {now.loss}"]
    if now.validation_loss:
        parts.append(f"validation {now.validation_loss}")
    if now.tokens_per_second:
        parts.append(f"{now.tokens_per_second} tokens/s")
    return ", ".join(parts)


def answers(status: Status) -> str:
    """`310 accepted, 12 rejected (Repetitive 8, Refusal 4)`."""
    ledger = status.ledger
    if ledger is None or not ledger.accepted + ledger.rejected:
        return ""
    reasons = ", ".join(f"{reason.reason} {reason.count}" for reason in ledger.top_reasons[:3])
    return f"{ledger.accepted} accepted, {ledger.rejected} rejected" + (f" ({reasons})" if reasons else "")


def place(uri: str) -> str:
    """A `file://` URI as a path, relative where it lies below the current folder."""
    return near(Path(uris.parse(uri).path)) if uris.scheme_is(uri, ("file",)) else uri


def near(path: Path) -> str:
    """A path, relative where it lies below the current folder."""
    shown = os.path.relpath(path)
    return str(path) if shown.startswith("..") else shown

"""Progress of a stage: the reports of its workers added up, and when it last moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from kubedistill_api.progress import ProgressReport
from kubedistill_api.status import Ledger, Progress, RejectReason
from kubedistill_operator.core.times import rfc3339, since

STARTING = "starting"
UNREACHABLE = "The pods do not answer for their progress."
_SILENT = (STARTING, UNREACHABLE)


def added_up(reports: Sequence[ProgressReport], now: datetime) -> Progress | None:
    """One progress of all workers; None where nobody reported. Workers with another unit than most are left out."""
    if not reports:
        return None
    unit = Counter(report.progress.unit for report in reports).most_common(1)[0][0]
    shares = [report.progress for report in reports if report.progress.unit == unit]
    rate = sum(_number(share.rate_per_second) for share in shares)
    done, total = sum(share.done for share in shares), sum(share.total for share in shares)
    etas = [share.eta_seconds for share in shares if share.eta_seconds is not None]
    return Progress(
        done=done,
        total=total,
        unit=unit,
        eta_seconds=max(etas, default=None),
        rate_per_second=f"{rate:.3g}" if rate else "",
        updated_at=rfc3339(now),
        message=shares[0].message,
    )


def merged(before: Progress | None, reports: Sequence[ProgressReport], now: datetime, every: timedelta) -> Progress:
    """The progress to record. `updated_at` is when it last moved, so what hangs can be told from what is slow.

    Written at most once in `every`. Pods that do not answer are not idle at once: their silence counts from the first
    pass that met it, so an operator that comes back after hours stops nothing by mistake.
    """
    found = added_up(reports, now)
    if found is None:
        if before is None:
            return Progress(updated_at=rfc3339(now), message=STARTING)
        if before.message in _SILENT:
            return before
        return before.model_copy(update={"message": UNREACHABLE, "updated_at": rfc3339(now)})
    if before is None or before.message in _SILENT:
        return found
    moved = (found.done, found.total, found.unit, found.message) != (
        before.done,
        before.total,
        before.unit,
        before.message,
    )
    return found if moved and since(before.updated_at, now) >= every else before


def ledger_of(ledgers: Iterable[Ledger]) -> Ledger:
    """Ledgers added up, most frequent reasons first."""
    counts: Counter[str] = Counter()
    accepted = rejected = 0
    for ledger in ledgers:
        accepted, rejected = accepted + ledger.accepted, rejected + ledger.rejected
        counts.update({reason.reason: reason.count for reason in ledger.top_reasons})
    top = [RejectReason(reason=reason, count=count) for reason, count in counts.most_common(10)]
    return Ledger(accepted=accepted, rejected=rejected, top_reasons=top)


def in_words(progress: Progress) -> str:
    """For the printer column: `1200/4800 steps`."""
    if not progress.total:
        return f"{progress.done} {progress.unit}".strip() if progress.done else ""
    return f"{progress.done}/{progress.total} {progress.unit}".strip()


def _number(text: str) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0

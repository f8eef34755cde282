"""What a pass decides: a plan. Data only; `core.planner.plan` makes it, the pass carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kubedistill_api.status import Status
from kubedistill_operator.manifests.base import Manifest

__all__ = ["Lease", "Manifest", "Plan", "Ref"]


@dataclass(frozen=True)
class Ref:
    """One object, by its uid: a newer object of the same name is never deleted by mistake."""

    kind: str
    """Job, Deployment, Service, ConfigMap, PersistentVolumeClaim or DistillationJob."""
    name: str
    uid: str


@dataclass(frozen=True)
class Lease:
    """How long a Job may live from now on, and how many pods it may have at once: none while its teacher starts."""

    job: Ref
    clock_from: datetime
    """When the Job's own clock began, from which its deadline is counted."""
    now: datetime
    seconds: int
    """From now."""
    workers: int = 0
    resource_version: str = ""
    """Of the Job that was looked at: a lease that was decided by an older one is refused. Empty: whatever it is now."""

    @property
    def deadline_seconds(self) -> int:
        """As the Job has it, from the beginning of its clock."""
        return max(0, int((self.now - self.clock_from).total_seconds())) + self.seconds


@dataclass(frozen=True)
class Plan:
    """What one pass will do. An empty plan is the normal case."""

    status: Status
    apply: tuple[Manifest, ...] = ()
    """Children that were not seen; one that is there is never applied again."""
    leases: tuple[Lease, ...] = ()
    """Jobs that may go on waiting for their teacher, or begin since it has answered."""
    delete: tuple[Ref, ...] = ()
    """Children that the recorded status does not need. Only what an earlier pass wrote down is deleted, so that a crash
    in between never loses why."""
    check_in: timedelta | None = None
    """When to look again though nothing happened; None: only when something does."""

"""The one seam between decisions and the world. Kubernetes and the local runner implement it."""

from __future__ import annotations

from typing import Protocol

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Status
from kubedistill_operator.core.plans import Lease, Manifest, Ref
from kubedistill_operator.core.seen import Seen


class Cluster(Protocol):
    """Where a job's children live."""

    async def job(self, namespace: str, name: str) -> DistillationJob | None:
        """The job as it is now, or None when it is gone."""
        ...

    async def observe(self, job: DistillationJob) -> Seen:
        """Look at every child of the job, and pull the progress of those that run."""
        ...

    async def apply(self, job: DistillationJob, manifest: Manifest) -> None:
        """Make one child be as the manifest says; idempotent, owned fields only."""
        ...

    async def lease(self, job: DistillationJob, lease: Lease) -> None:
        """Give a Job its time and its pods, if it still is as it was seen. Nothing else is touched.

        Raises:
            ConflictError: it is not; the next pass decides anew.
        """
        ...

    async def delete(self, job: DistillationJob, ref: Ref) -> None:
        """Delete one child, if it still has this uid; its own children go with it. One that is gone already is fine.

        A Job stays visible, as `deleting`, until its pods are gone: the next attempt waits for that.
        """
        ...

    async def write_status(self, job: DistillationJob, status: Status) -> None:
        """Write the status once, unless the object changed since it was read.

        Raises:
            ConflictError: it did; the next pass decides anew.
        """
        ...


class ConflictError(Exception):
    """Somebody wrote the object since it was read."""

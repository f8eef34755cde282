"""What the watches have brought so far: copies of the objects, to be read without asking the API server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kubedistill_operator.cluster.kinds import Raw

WATCHED = ("Job", "Pod", "Deployment", "PersistentVolumeClaim")
"""Kinds of children that are watched, by the label of their job's uid. Others are written and never looked at."""


class Caches(Protocol):
    """Copies that a watch keeps fresh."""

    def job(self, namespace: str, name: str) -> Raw | None:
        """The DistillationJob, or None where there is none."""
        ...

    def jobs(self) -> Iterable[Raw]:
        """All DistillationJobs."""
        ...

    def children(self, kind: str, job_uid: str) -> Iterable[Raw]:
        """The children of one kind (of `WATCHED`) that carry the uid of this DistillationJob."""
        ...

    def correct(self, kind: str, uid: str, raw: Raw | None) -> None:
        """The object was read so, which a watch may have missed; None: it was not there."""
        ...

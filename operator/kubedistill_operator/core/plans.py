"""What a pass decides: a plan. Data only; `core.planner.plan` makes it, the pass carries it out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from kubedistill_api.status import Status

Manifest: TypeAlias = dict[str, Any]
"""A Kubernetes object with the fields we own, for server-side apply."""


@dataclass(frozen=True)
class Ref:
    """One object, by its uid: a newer object of the same name is never deleted by mistake."""

    kind: str
    """Job, Deployment, Service, ConfigMap, PersistentVolumeClaim or DistillationJob."""
    name: str
    uid: str


@dataclass(frozen=True)
class Plan:
    """What one pass will do. An empty plan is the normal case."""

    status: Status
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    check_in: timedelta | None = None
    """When to look again though nothing happened; None: only when something does."""

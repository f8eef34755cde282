"""Kubernetes Events for people: what a status write changed, told once, after the write. Pure: manifests out.

An Event's name is made from what it tells, so telling it again after a crash makes no second one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kubedistill_api.base import GROUP, KIND, VERSION
from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Condition, ConditionStatus, ConditionType, StageState, Status
from kubedistill_operator.core.conditions import Reason

CONTROLLER = f"{GROUP}/operator"
NOTE_LIMIT = 1024
"""Characters that the API server takes."""
WARNING_WHEN_TRUE = frozenset({ConditionType.STALLED.value})
WARNING_WHEN_FALSE = frozenset({ConditionType.ACCEPTED.value, ConditionType.SUCCEEDED.value})
HINDRANCES = frozenset({Reason.NAME_TAKEN, Reason.QUOTA_EXCEEDED, Reason.REFUSED})
"""Reasons to wait that somebody in the namespace can do something about."""
FAULTS = frozenset({Reason.TEACHER_SILENT, Reason.TEACHER_NOT_READY})
"""Of a condition that held and does no more: nobody wanted that."""
SILENT = frozenset({ConditionType.RECONCILING.value})
"""It only repeats what the others say."""


@dataclass(frozen=True)
class Note:
    """One thing to tell."""

    reason: str
    """A constant word."""
    text: str
    """A sentence."""
    warning: bool = False
    action: str = "Reconcile"
    """What the operator was doing: the stage, mostly."""


def notes(before: Status, after: Status) -> Iterator[Note]:
    """What changed between two statuses that a person would want to be told."""
    for stage in after.stages:
        old = before.stage(stage.name)
        old_state, old_attempt = (old.state, old.attempt) if old else (StageState.PENDING, 0)
        if stage.attempt > old_attempt:
            again = f", attempt {stage.attempt}" if stage.attempt > 1 else ""
            yield Note("StageStarted", f"{stage.name} started{again}", action=stage.name)
        if stage.state is old_state:
            continue
        if stage.state in (StageState.SUCCEEDED, StageState.REUSED):
            how = "found its output of an earlier run" if stage.state is StageState.REUSED else "succeeded"
            yield Note(f"Stage{stage.state}", f"{stage.name} {how}", action=stage.name)
    failure = after.last_failure
    if failure is not None and failure != before.last_failure:
        where = f" in pod {failure.pod}" if failure.pod else ""
        text = f"{failure.stage} failed{where} ({failure.class_}): {failure.message}"
        yield Note("StageFailed", text, warning=True, action=failure.stage)
    if after.reason in HINDRANCES and after.reason != before.reason and not after.finished:
        waits = after.condition(ConditionType.RECONCILING)
        yield Note(after.reason, waits.message if waits else after.reason, warning=True, action=after.current_stage)
    for condition in after.conditions:
        old_condition = next((c for c in before.conditions if c.type == condition.type), None)
        if _is_news(condition, old_condition):
            yield Note(condition.reason, condition.message or condition.reason, warning=_warns(condition))


def event(job: DistillationJob, note: Note, instance: str, now: datetime) -> dict[str, Any]:
    """The note as an Event of events.k8s.io/v1, beside the job."""
    told = "\n".join([job.metadata.uid, note.reason, note.text, job.status.model_dump_json()])
    name = f"{job.metadata.name}.{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": job.metadata.namespace},
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "type": "Warning" if note.warning else "Normal",
        "reason": note.reason[:128],
        "note": note.text[:NOTE_LIMIT],
        "action": note.action[:128],
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": job.metadata.name,
            "namespace": job.metadata.namespace,
            "uid": job.metadata.uid,
        },
    }


def _is_news(condition: Condition, old: Condition | None) -> bool:
    if condition.type in SILENT:
        return False
    if old is not None:
        return condition.status is not old.status
    # A first False says that something has not happened yet, except where it is a verdict.
    return condition.status is ConditionStatus.TRUE or condition.type == ConditionType.ACCEPTED


def _warns(condition: Condition) -> bool:
    if condition.status is ConditionStatus.TRUE:
        return condition.type in WARNING_WHEN_TRUE
    return condition.type in WARNING_WHEN_FALSE or condition.reason in FAULTS

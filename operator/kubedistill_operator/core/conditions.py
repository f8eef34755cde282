"""Conditions: constant reasons for machines, sentences for people, and times that change only with the status."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from kubedistill_api.status import Condition, ConditionStatus, ConditionType, Status
from kubedistill_operator.core.times import rfc3339

MESSAGE_LIMIT = 1024


class Reason(StrEnum):
    """Reasons that the operator gives. Those of a stage (DataFileEmpty, GateFailed …) come from the stage."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    RUNNING = "Running"
    STARTING = "Starting"
    WAITING = "Waiting"
    RETRYING = "Retrying"
    STOPPING = "Stopping"
    SUCCEEDED = "Succeeded"
    REUSED = "Reused"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    NAME_TAKEN = "NameTaken"
    QUOTA_EXCEEDED = "QuotaExceeded"
    REFUSED = "Refused"
    UNSCHEDULABLE = "Unschedulable"
    POD_PENDING = "PodPending"
    TEACHER_STARTING = "TeacherStarting"
    TEACHER_ANSWERED = "TeacherAnswered"
    TEACHER_RELEASED = "TeacherReleased"
    TEACHER_NOT_READY = "TeacherNotReady"
    TEACHER_SILENT = "TeacherSilent"
    OPERATOR_AWAY = "OperatorAway"
    TEACHER_CRASHED = "TeacherCrashed"
    NO_PROGRESS = "NoProgress"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    STAGE_DEADLINE_EXCEEDED = "StageDeadlineExceeded"
    OUT_OF_MEMORY = "OutOfMemory"
    DEVICE_OUT_OF_MEMORY = "DeviceOutOfMemory"
    PREEMPTED = "Preempted"
    KILLED = "Killed"
    STAGE_FAILED = "StageFailed"
    RESULT_MISSING = "ResultMissing"


def with_condition(
    status: Status, type_: ConditionType, held: bool | None, reason: str, message: str, now: datetime
) -> Status:
    """The status with this condition set; `held` None means Unknown."""
    value = ConditionStatus.UNKNOWN if held is None else ConditionStatus(str(held))
    before = status.condition(type_)
    unchanged = before is not None and before.status is value
    condition = Condition(
        type=type_,
        status=value,
        reason=reason[:64],
        message=shortened(message),
        last_transition_time=before.last_transition_time if before is not None and unchanged else rfc3339(now),
        observed_generation=max(status.observed_generation, 0),
    )
    others = [c for c in status.conditions if c.type != type_]
    order = {str(t): index for index, t in enumerate(ConditionType)}
    found = sorted([*others, condition], key=lambda c: order.get(c.type, len(order)))
    return status.model_copy(update={"conditions": found})


def shortened(message: str, limit: int = MESSAGE_LIMIT) -> str:
    """A message that fits."""
    return message if len(message) <= limit else message[: limit - 1] + "…"

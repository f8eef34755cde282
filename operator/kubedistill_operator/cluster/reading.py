"""What an object of Kubernetes says, in the words of `core.seen`. Pure: raw values in, frozen values out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from kubedistill_api.base import Stage
from kubedistill_api.identity import (
    ANNOTATION_STARTED,
    COMPONENT_LOOK,
    LABEL_ATTEMPT,
    LABEL_COMPONENT,
    LABEL_STAGE,
    LABEL_TEACHER,
    StageKey,
)
from kubedistill_api.progress import ProgressReport
from kubedistill_api.results import FailedResult, Success, read_result
from kubedistill_operator.cluster.kinds import Raw, controller_uid, labels
from kubedistill_operator.core.seen import JobState, SeenJob, SeenPod, SeenTeacher

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
DISRUPTED_REASONS = frozenset({"Evicted", "NodeLost", "NodeShutdown", "Preempting", "Terminated"})
"""A pod's own reasons that mean that the node, not the stage, ended it."""


def time_of(text: str | None) -> datetime | None:
    """A timestamp of Kubernetes (RFC 3339, UTC)."""
    return datetime.fromisoformat(text) if text else None


def read_job(
    raw: Raw, pods: Iterable[Raw], tails: Mapping[str, str], reports: Iterable[ProgressReport]
) -> SeenJob | None:
    """One attempt of one stage with its pods; None where the labels are not ours to understand."""
    metadata, status = raw["metadata"], raw.get("status", {})
    try:
        key = StageKey(Stage(labels(raw)[LABEL_STAGE]), labels(raw).get(LABEL_TEACHER, ""))
        attempt = int(labels(raw)[LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    ended = _condition(status, "Complete") or _condition(status, "Failed") or {}
    mine = sorted((pod for pod in pods if controller_uid(pod) == metadata["uid"]), key=_name)
    begun, held = time_of(status.get("startTime")), _is_held(raw)
    let_run = time_of((metadata.get("annotations") or {}).get(ANNOTATION_STARTED))
    return SeenJob(
        name=metadata["name"],
        uid=metadata["uid"],
        key=key,
        attempt=attempt,
        state=_job_state(raw),
        held=held,
        look=labels(raw).get(LABEL_COMPONENT) == COMPONENT_LOOK,
        reason=ended.get("reason", ""),
        message=ended.get("message", ""),
        created_at=time_of(metadata.get("creationTimestamp")),
        started_at=let_run or (None if held else begun),
        finished_at=time_of(status.get("completionTime") or ended.get("lastTransitionTime")),
        clock_from=begun,
        deadline_seconds=raw["spec"].get("activeDeadlineSeconds"),
        completions=raw["spec"].get("completions", 1),
        deleting="deletionTimestamp" in metadata,
        pods=tuple(read_pod(pod, tails.get(pod["metadata"]["uid"], "")) for pod in mine),
        progress=tuple(reports),
        resource_version=metadata.get("resourceVersion", ""),
    )


def read_teacher(raw: Raw, pods: Iterable[Raw], tails: Mapping[str, str]) -> SeenTeacher | None:
    """One teacher's Deployment with its pods, not yet asked; None where the labels are not ours to understand."""
    metadata = raw["metadata"]
    try:
        teacher, attempt = labels(raw)[LABEL_TEACHER], int(labels(raw)[LABEL_ATTEMPT])
    except (KeyError, ValueError):
        return None
    mine = sorted((pod for pod in pods if selects(raw, pod)), key=_name)
    return SeenTeacher(
        name=metadata["name"],
        uid=metadata["uid"],
        teacher=teacher,
        attempt=attempt,
        replicas_ready=raw.get("status", {}).get("readyReplicas", 0),
        url=teacher_url(raw),
        created_at=time_of(metadata.get("creationTimestamp")),
        deleting="deletionTimestamp" in metadata,
        pods=tuple(read_pod(pod, tails.get(pod["metadata"]["uid"], "")) for pod in mine),
        pods_refused=(_condition(raw.get("status", {}), "ReplicaFailure") or {}).get("message", ""),
    )


def selects(deployment: Raw, pod: Raw) -> bool:
    """Whether the Deployment's selector takes the pod."""
    wanted = deployment["spec"]["selector"].get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels(pod).items()


def teacher_url(deployment: Raw) -> str:
    """Where the teacher's Service, which has the Deployment's name and port, answers."""
    metadata = deployment["metadata"]
    ports = deployment["spec"]["template"]["spec"]["containers"][0].get("ports") or [{"containerPort": 8000}]
    return f"http://{metadata['name']}.{metadata['namespace']}.svc:{ports[0]['containerPort']}/v1"


def read_pod(raw: Raw, log_tail: str = "") -> SeenPod:
    """One pod, by its main container (the first)."""
    metadata, status = raw["metadata"], raw.get("status", {})
    container = _main_container(status)
    ended = container.get("state", {}).get("terminated") or {}
    reason, message = _waiting(status)
    return SeenPod(
        name=metadata["name"],
        node=raw.get("spec", {}).get("nodeName", ""),
        phase=status.get("phase", "Pending"),
        index=int(labels(raw).get(INDEX_LABEL) or 0),
        created_at=time_of(metadata.get("creationTimestamp")),
        finished_at=time_of(ended.get("finishedAt")),
        waiting_reason=reason,
        waiting_message=message,
        exit_code=ended.get("exitCode"),
        terminated_reason=ended.get("reason") or status.get("reason", ""),
        restarts=container.get("restartCount", 0),
        disrupted=is_disrupted(status),
        result=read_termination(ended.get("message", "")),
        log_tail=log_tail,
    )


def is_disrupted(status: Mapping[str, Any]) -> bool:
    """Whether the pod was preempted or evicted, or its node was lost."""
    condition = _condition(status, "DisruptionTarget")
    return condition is not None or status.get("reason") in DISRUPTED_REASONS


def read_termination(message: str) -> Success | FailedResult | None:
    """The result in a termination message, where it is one: a crash leaves none, or a line of its log."""
    try:
        return read_result(message) if message else None
    except ValidationError:
        return None


def wants_log(raw: Raw) -> bool:
    """Whether the pod's log tells why something failed: it failed itself, or its container keeps crashing."""
    status = raw.get("status", {})
    return status.get("phase") == "Failed" or bool(_main_container(status).get("lastState", {}).get("terminated"))


def waits_for_pods(raw: Raw, pods: Iterable[Raw]) -> bool:
    """Whether a Job should have more pods than it has: perhaps the API server refuses them."""
    wants = _job_state(raw) is JobState.ACTIVE and not _is_held(raw)
    there = sum(controller_uid(pod) == raw["metadata"]["uid"] for pod in pods)
    return wants and there < raw.get("spec", {}).get("parallelism", 1)


def lacks_ends(raw: Raw, pods: Iterable[Raw]) -> bool:
    """Whether a Job has ended and these pods do not say how: two watches, and the pods' may be behind the Jobs'."""
    mine = [pod for pod in pods if controller_uid(pod) == raw["metadata"]["uid"]]
    phases = [pod.get("status", {}).get("phase") for pod in mine]
    match _job_state(raw):
        case JobState.SUCCEEDED:
            return phases.count("Succeeded") < (raw["spec"].get("completions") or 1)
        case JobState.FAILED:
            # One that still runs may be the one to blame: the first that ended is often a victim.
            return "Failed" not in phases or any(phase in ("Pending", "Running") for phase in phases)
    return False


def last_note(events: Iterable[Raw]) -> str:
    """The sentence of the newest of these Events."""

    def told(event: Raw) -> str:
        series = event.get("series") or {}
        times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
        return max((time for time in times if time), default="")

    newest = max(events, key=told, default=None)
    return "" if newest is None else str(newest.get("note", ""))


def is_active(raw: Raw) -> bool:
    """Whether the pod can be asked for its progress."""
    status = raw.get("status", {})
    return status.get("phase") == "Running" and bool(status.get("podIP")) and "deletionTimestamp" not in raw["metadata"]


def _is_held(raw: Raw) -> bool:
    return bool(raw.get("spec", {}).get("parallelism") == 0)


def _job_state(raw: Raw) -> JobState:
    status = raw.get("status", {})
    if _condition(status, "Complete"):
        return JobState.SUCCEEDED
    if _condition(status, "Failed"):
        return JobState.FAILED
    return JobState.SUSPENDED if raw.get("spec", {}).get("suspend") else JobState.ACTIVE


def _condition(status: Mapping[str, Any], type_: str) -> dict[str, Any] | None:
    """The condition of this type, if it is True."""
    conditions: list[dict[str, Any]] = status.get("conditions") or []
    return next((c for c in conditions if c["type"] == type_ and c["status"] == "True"), None)


def _main_container(status: Mapping[str, Any]) -> dict[str, Any]:
    """The kubelet lists statuses by name, not in the pod's order: ours are the only or the first."""
    statuses: list[dict[str, Any]] = status.get("containerStatuses") or []
    return statuses[0] if statuses else {}


def _waiting(status: Mapping[str, Any]) -> tuple[str, str]:
    """Why the pod does not run, and in whose words."""
    conditions: list[dict[str, Any]] = status.get("conditions") or []
    scheduled = next((c for c in conditions if c["type"] == "PodScheduled"), {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason", ""), scheduled.get("message", "")
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    waiting = [state["state"]["waiting"] for state in statuses if "waiting" in state.get("state", {})]
    # An init container that cannot start says more than the main container that waits for it.
    waiting.sort(key=lambda state: state.get("reason") in ("PodInitializing", "ContainerCreating"))
    return (waiting[0].get("reason", ""), waiting[0].get("message", "")) if waiting else ("", "")


def _name(raw: Raw) -> str:
    name: str = raw["metadata"]["name"]
    return name

"""What became of an attempt: it goes on, it is done with a result, or it is broken for a reason with a remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from kubedistill_api.exits import PEER_LOST, Exit
from kubedistill_api.results import CLASS_OF_EXIT, FailedResult, GenerateResult, Success
from kubedistill_api.status import Failure, FailureClass
from kubedistill_operator.core.conditions import Reason, shortened
from kubedistill_operator.core.seen import JobState, SeenJob, SeenPod


class Remedy(Enum):
    """What can help after a failure."""

    NONE = "none: the same input fails the same way"
    RETRY = "the same again, a limited number of times"
    RESUME = "the same again, as often as it takes: nobody's fault"
    SMALLER_BATCH = "the same with half the micro batch"


@dataclass(frozen=True)
class Going:
    """The attempt goes on."""

    job: SeenJob


@dataclass(frozen=True)
class Done:
    """The attempt succeeded and said what it made."""

    job: SeenJob
    result: Success


@dataclass(frozen=True)
class Broken:
    """The attempt failed."""

    failure: Failure
    remedy: Remedy
    said: FailedResult | None = None
    """The stage's own words, where it had any."""
    job: SeenJob | None = None


Outcome: TypeAlias = Going | Done | Broken

_EXIT_IN_MESSAGE = re.compile(r"exit code (\d+)")


def outcome(job: SeenJob) -> Outcome:
    """What became of an attempt."""
    if job.state is JobState.SUCCEEDED:
        result = _result(job)
        return Done(job, result) if result is not None and _is_whole(job, result) else _unread(job)
    if job.state is JobState.FAILED:
        return _broken(job)
    return Going(job)


def _result(job: SeenJob) -> Success | None:
    """The result of a stage. Of several workers of Generate, the one that ended last saw the most rows."""
    found = [p.result for p in job.pods if p.result is not None and not isinstance(p.result, FailedResult)]
    return max((result for result in found if result.output_digest), key=_rows, default=None)


def _rows(result: Success) -> int:
    return result.ledger.accepted + result.ledger.rejected if isinstance(result, GenerateResult) else 0


def _is_whole(job: SeenJob, result: Success) -> bool:
    """Whether it tells of all: a worker that ended early does not, and a look need not."""
    return job.look or not isinstance(result, GenerateResult) or not result.missing_shards


def _unread(job: SeenJob) -> Broken:
    """It succeeded, but its pods were gone before anybody read what it said: it finds its output and says it again."""
    failure = Failure(
        stage=str(job.key),
        attempt=job.attempt,
        class_=FailureClass.INFRASTRUCTURE,
        reason=Reason.RESULT_MISSING,
        message="The stage succeeded, but its result could not be read; it is asked again and finds its output.",
    )
    return Broken(failure, Remedy.RETRY, job=job)


def _broken(job: SeenJob) -> Broken:
    pod = _culprit(job)
    if job.reason == "DeadlineExceeded" and job.held:
        text = "No operator was there while the teacher started, so its GPUs were freed; it is started again."
        return _broken_by(job, None, FailureClass.INFRASTRUCTURE, Reason.OPERATOR_AWAY, text, Remedy.RESUME)
    if job.reason == "DeadlineExceeded":
        text = f"{job.key} did not end within its deadline: raise spec.runPolicy.activeDeadlineSeconds."
        return _broken_by(job, pod, FailureClass.DEADLINE, Reason.STAGE_DEADLINE_EXCEEDED, text, Remedy.NONE)
    if pod is None:
        return _without_pod(job)
    if pod.terminated_reason == "OOMKilled":
        text = (
            f"{job.key} used more memory than its limit and was killed: raise resources.limits.memory of stage "
            f"{job.key.stage} in spec.stageTemplates."
        )
        return _broken_by(job, pod, FailureClass.HOST_OUT_OF_MEMORY, Reason.OUT_OF_MEMORY, text, Remedy.RETRY)
    said = pod.result if isinstance(pod.result, FailedResult) else None
    if said is not None and said.reason == PEER_LOST and len({each.index for each in job.pods}) < job.completions:
        text = f"A node of {job.key} is gone and its pod with it; all start anew from the last checkpoint."
        return _broken_by(job, None, FailureClass.PREEMPTED, Reason.PREEMPTED, text, Remedy.RESUME)
    if pod.disrupted or pod.exit_code == Exit.STOPPED_AT_CHECKPOINT:
        text = f"{job.key} was preempted on node {pod.node or '(unknown)'}; it goes on from what it had finished."
        return _broken_by(job, pod, FailureClass.PREEMPTED, Reason.PREEMPTED, text, Remedy.RESUME)
    if said is not None:
        return _broken_by(job, pod, said.class_, said.reason, said.message, _remedy_of(said.exit_code, said), said)
    return _by_exit(job, pod)


def _by_exit(job: SeenJob, pod: SeenPod) -> Broken:
    """The stage could not speak: its exit code and its log must do."""
    code = pod.exit_code if pod.exit_code is not None else int(Exit.APPLICATION)
    known = Exit(code) if code in set(Exit) else Exit.APPLICATION
    if code == Exit.KILLED:
        text = f"{job.key} was killed (exit code 137) without a word of the kubelet about memory."
        return _broken_by(job, pod, CLASS_OF_EXIT[known], Reason.KILLED, text, Remedy.RETRY)
    last = pod.log_tail.strip().splitlines()
    text = f"{job.key} ended with exit code {code}" + (f": {last[-1].strip()}" if last else ".")
    return _broken_by(job, pod, CLASS_OF_EXIT[known], Reason.STAGE_FAILED, text, _remedy_of(code, None))


def _without_pod(job: SeenJob) -> Broken:
    """No pod is left to ask; the Job's own message may name the exit code (PodFailurePolicy does)."""
    named = _EXIT_IN_MESSAGE.search(job.message)
    code = int(named.group(1)) if named else int(Exit.TRANSIENT)
    known = Exit(code) if code in set(Exit) else Exit.APPLICATION
    text = f"{job.key} failed and no pod is left to ask: {job.message or job.reason or 'no reason given'}."
    return _broken_by(job, None, CLASS_OF_EXIT[known], job.reason or Reason.STAGE_FAILED, text, _remedy_of(code, None))


def _remedy_of(code: int, said: FailedResult | None) -> Remedy:
    if said is not None and said.scores:
        return Remedy.NONE  # a gate refused the student; the same student would be refused again
    if code in set(Exit):
        known = Exit(code)
        if known.permanent:
            return Remedy.NONE
        if known is Exit.DEVICE_OUT_OF_MEMORY:
            return Remedy.SMALLER_BATCH
        if known is Exit.STOPPED_AT_CHECKPOINT:
            return Remedy.RESUME
    return Remedy.RETRY


def _broken_by(
    job: SeenJob,
    pod: SeenPod | None,
    class_: FailureClass,
    reason: str,
    message: str,
    remedy: Remedy,
    said: FailedResult | None = None,
) -> Broken:
    failure = Failure(
        stage=str(job.key)[:128],
        attempt=job.attempt,
        pod=pod.name if pod else "",
        node=pod.node if pod else "",
        class_=class_,
        reason=reason[:128],
        exit_code=pod.exit_code if pod else None,
        message=shortened(message, 2048),
        log_tail=pod.log_tail[-4096:] if pod else "",
    )
    return Broken(failure, remedy, said, job)


def _culprit(job: SeenJob) -> SeenPod | None:
    """The pod to blame: one that says why, then one that failed by itself, then one that was disrupted, and last one
    that only lost another."""
    failed = [p for p in job.pods if p.exit_code not in (None, 0) or p.phase == "Failed" or p.disrupted]
    return min(failed, key=_innocence, default=None)


def _innocence(pod: SeenPod) -> tuple[int, float]:
    latest = -pod.finished_at.timestamp() if pod.finished_at else 0.0
    if isinstance(pod.result, FailedResult) and pod.result.reason == PEER_LOST:
        return 6, latest
    if pod.terminated_reason == "OOMKilled":
        return 0, latest
    if isinstance(pod.result, FailedResult) and pod.exit_code != Exit.STOPPED_AT_CHECKPOINT:
        permanent = pod.exit_code in set(Exit) and Exit(pod.exit_code or 0).permanent
        return (1 if permanent else 2), latest
    if pod.disrupted:
        return 4, latest
    return (5 if pod.exit_code == Exit.STOPPED_AT_CHECKPOINT else 3), latest

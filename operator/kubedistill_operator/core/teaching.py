"""The teacher of a Generate attempt: made once its Job exists, waited for, and the Job started when it answers.

The order is the dead-man's switch (`core.leases`): the Deployment is owned by a Job that has a deadline and a TTL, so
the GPUs are freed even when no operator is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from kubedistill_api.status import Failure, FailureClass
from kubedistill_api.teachers import Serving
from kubedistill_operator.core.conditions import Reason
from kubedistill_operator.core.obstacles import obstacle, reason_of_refusal, refused_pods
from kubedistill_operator.core.outcomes import Broken, Remedy
from kubedistill_operator.core.pipeline import Step
from kubedistill_operator.core.plans import Manifest
from kubedistill_operator.core.seen import SeenJob, SeenPod, SeenTeacher
from kubedistill_operator.core.times import since
from kubedistill_operator.core.world import World
from kubedistill_operator.manifests.teacher import teacher_deployment, teacher_service

CRASHES = 3
"""A server that ended by itself so often will not start by patience."""
BENIGN = ("", "ContainerCreating", "PodInitializing", "Pending")


@dataclass(frozen=True)
class Answers:
    """The teacher has answered a completion."""


@dataclass(frozen=True)
class Starts:
    """The teacher is not there yet, for a reason and in words."""

    reason: str
    message: str
    apply: tuple[Manifest, ...] = ()
    again: timedelta = timedelta(seconds=5)
    """When to look again."""


def teacher_of(world: World, step: Step, attempt: SeenJob) -> Answers | Starts | Broken:
    """Where the attempt's teacher is."""
    name = step.key.teacher
    seen = world.seen.teacher(name, attempt.attempt)
    if seen is None:
        return _not_made(world, step, attempt)
    if seen.answered:
        return Answers()
    serving = world.job.spec.teacher(name).serving or Serving()
    waiting = next((pod for pod in seen.pods if pod.waiting_reason not in BENIGN), None)
    crashed = next((pod for pod in seen.pods if pod.restarts >= CRASHES), None)
    if crashed is not None:
        return _broken(step, attempt, crashed, Reason.TEACHER_CRASHED, _crash(name, crashed))
    age = since(seen.created_at, world.now)
    # A ready one that this process has not asked yet may answer: the operator is new. The question has its own limit.
    untold = seen.replicas_ready > 0 and not seen.asked
    if age > timedelta(seconds=serving.startup_timeout_seconds) and not untold:
        text = (
            f"Teacher {name} did not answer a completion within {serving.startup_timeout_seconds} s "
            f"(startupTimeoutSeconds): {_words(seen, waiting)}"
        )
        return _broken(step, attempt, waiting or _first(seen), Reason.TEACHER_NOT_READY, text)
    limit = world.job.spec.run_policy.pending_deadline_seconds
    if waiting is not None and limit is not None and age > timedelta(seconds=limit):
        text = f"Teacher {name} is still waiting after {limit} s (pendingDeadlineSeconds): {_words(seen, waiting)}"
        return _broken(step, attempt, waiting, waiting.waiting_reason, text, Remedy.NONE)
    if seen.pods_refused and not seen.pods:
        if limit is not None and age > timedelta(seconds=limit):
            text = (
                f"The pods of teacher {name} were refused for {limit} s (pendingDeadlineSeconds): {seen.pods_refused}"
            )
            return _broken(step, attempt, None, reason_of_refusal(seen.pods_refused), text, Remedy.NONE)
        return Starts(reason_of_refusal(seen.pods_refused), refused_pods(f"teacher {name}", seen.pods_refused))
    reason = waiting.waiting_reason if waiting else Reason.TEACHER_STARTING
    return Starts(reason, f"Teacher {name} is not ready: {_words(seen, waiting)}")


def complaint(world: World, step: Step, attempt: SeenJob) -> tuple[str, str] | None:
    """What keeps a teacher, whose Job runs, from answering: a reason and a sentence; empty where it answers.

    None where nobody knows: it is gone, or was not asked yet. A server may be healthy while its engine hangs, and one
    that is full may be late. Neither is stopped for that: only a generation that moves nothing is.
    """
    seen = world.seen.teacher(step.key.teacher, attempt.attempt)
    if seen is None or (seen.replicas_ready > 0 and not seen.asked):
        return None
    if seen.answered:
        return "", ""
    if seen.replicas_ready > 0:
        return Reason.TEACHER_SILENT, f"Teacher {step.key.teacher} is there, but {seen.message}."
    waiting = next((pod for pod in seen.pods if pod.waiting_reason not in BENIGN), None)
    return Reason.TEACHER_NOT_READY, f"Teacher {step.key.teacher} is not ready: {_words(seen, waiting)}."


def _not_made(world: World, step: Step, attempt: SeenJob) -> Starts | Broken:
    """Ask for the teacher, unless something stands in its way."""
    wanted = made(world, step.key.teacher, attempt)
    hindered = obstacle(world, wanted)
    if hindered is None:
        return Starts(Reason.TEACHER_STARTING, f"Teacher {step.key.teacher} starts.", wanted)
    if hindered.overdue:
        return _broken(step, attempt, None, hindered.reason, hindered.message, Remedy.NONE)
    return Starts(hindered.reason, hindered.message, again=hindered.again)


def made(world: World, name: str, attempt: SeenJob) -> tuple[Manifest, ...]:
    """The Service and the Deployment, owned by the attempt's Job."""
    teacher = world.job.spec.teacher(name)
    resolved = world.job.status.resolved
    models = resolved.models if resolved else []
    revision = next((model.revision for model in models if model.role == f"teacher:{name}"), "")
    return (
        teacher_service(world.job, teacher, attempt.attempt, attempt.uid),
        teacher_deployment(world.job, teacher, attempt.attempt, attempt.uid, revision, world.settings),
    )


def _words(teacher: SeenTeacher, waiting: SeenPod | None) -> str:
    if waiting is not None:
        return f"pod {waiting.name} waits ({waiting.waiting_reason}): {waiting.waiting_message or 'no reason given'}"
    return teacher.pods_refused or teacher.message or "its server is loading the model"


def _crash(name: str, pod: SeenPod) -> str:
    lines = pod.log_tail.strip().splitlines()
    last = f"; its last line: {lines[-1].strip()}" if lines else ""
    code = "" if pod.exit_code is None else f" with exit code {pod.exit_code}"
    why = (
        "its memory limit was too low (raise resources.limits.memory of stage Teacher in spec.stageTemplates)"
        if pod.terminated_reason == "OOMKilled"
        else "read its log, and check the model, extraArgs and the GPUs' memory"
    )
    return f"Teacher {name} ended {pod.restarts} times{code}: {why}{last}"


def _first(teacher: SeenTeacher) -> SeenPod | None:
    return teacher.pods[0] if teacher.pods else None


def _broken(
    step: Step, attempt: SeenJob, pod: SeenPod | None, reason: str, message: str, remedy: Remedy = Remedy.RETRY
) -> Broken:
    memory = pod is not None and pod.terminated_reason == "OOMKilled"
    failure = Failure(
        stage=f"Teacher:{step.key.teacher}",
        attempt=attempt.attempt,
        pod=pod.name if pod else "",
        node=pod.node if pod else "",
        class_=FailureClass.HOST_OUT_OF_MEMORY if memory else FailureClass.INFRASTRUCTURE,
        reason=reason[:128],
        exit_code=pod.exit_code if pod else None,
        message=message[:2048],
        log_tail=pod.log_tail[-4096:] if pod else "",
    )
    return Broken(failure, remedy, job=attempt)

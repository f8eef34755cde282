"""A living attempt: does it wait, does it move, must it be stopped?"""

from __future__ import annotations

from datetime import timedelta

from kubedistill_api.base import Stage
from kubedistill_api.status import (
    ConditionType,
    Failure,
    FailureClass,
    Ledger,
    Phase,
    Progress,
    StageState,
    StageStatus,
    Status,
)
from kubedistill_api.teachers import Serving
from kubedistill_operator.core import records
from kubedistill_operator.core.conditions import Reason, with_condition
from kubedistill_operator.core.leases import let_run, renewed
from kubedistill_operator.core.obstacles import obstacle, reason_of_refusal, refused_pods
from kubedistill_operator.core.outcomes import Broken, Remedy
from kubedistill_operator.core.pipeline import Step
from kubedistill_operator.core.plans import Plan
from kubedistill_operator.core.progress import ledger_of, merged
from kubedistill_operator.core.retries import after_failure
from kubedistill_operator.core.seen import JobState, SeenJob, SeenPod
from kubedistill_operator.core.teaching import BENIGN, Answers, Starts, complaint, made, teacher_of
from kubedistill_operator.core.times import since
from kubedistill_operator.core.world import World
from kubedistill_operator.manifests.stage_job import hold_seconds

PATIENCE = timedelta(seconds=5)
QUIET = timedelta(seconds=20)
"""So long a teacher that does not answer us may have finished no answer, before that is told. With the time until the
progress is pulled and written, and a completion's limit of 30 s, it makes a minute."""
LOOKING = "It looks whether the answers are there already, before their teacher is started."


def watch(world: World, status: Status, step: Step, attempt: SeenJob) -> Plan:
    """What a pass does about an attempt that has not ended."""
    taught = step.served_teacher and not attempt.look
    if attempt.held and taught:
        return _until_taught(world, status, step, attempt)
    progress = _progress(world, status, step, attempt)
    late = _pending_too_long(world, attempt) or _idle_too_long(world, progress, step, attempt)
    if late is not None:
        return after_failure(world, status, step, late)
    status = _progressed(world, status, step, attempt, progress)
    status = _heard(world, status, step, attempt, progress) if taught else status
    every = timedelta(seconds=world.settings.progress_seconds)
    lost = taught and world.seen.teacher(step.key.teacher, attempt.attempt) is None
    wanted = made(world, step.key.teacher, attempt) if lost else ()
    hindered = obstacle(world, wanted)
    if hindered is not None:
        status = records.going_on(status, step, world.now, hindered.reason, hindered.message)
        return Plan(status, check_in=min(hindered.again, every) if not hindered.overdue else every)
    return Plan(status, apply=wanted, check_in=every)


def _until_taught(world: World, status: Status, step: Step, attempt: SeenJob) -> Plan:
    """The Job waits for its teacher, and starts once that has answered."""
    match teacher_of(world, step, attempt):
        case Answers():
            status = _answers(world, status, step)
            status = records.going_on(status, step, world.now, Reason.STARTING, "The teacher answers; asking starts.")
            return Plan(status, leases=(let_run(world, attempt),), check_in=PATIENCE)
        case Starts(reason, message, apply, again):
            status = with_condition(status, ConditionType.TEACHER_READY, False, reason, message, world.now)
            status = records.going_on(status, step, world.now, reason, message, phase=Phase.STARTING_TEACHER)
            # A renewal is due once half of the time is over: a look at each quarter finds it in time.
            serving = world.job.spec.teacher(step.key.teacher).serving or Serving()
            soon = min(again, timedelta(seconds=hold_seconds(serving) / 4))
            return Plan(status, apply=apply, leases=renewed(world, step, attempt), check_in=soon)
        case Broken() as broken:
            text = broken.failure.message
            status = with_condition(status, ConditionType.TEACHER_READY, False, broken.failure.reason, text, world.now)
            return after_failure(world, status, step, broken)


def _answers(world: World, status: Status, step: Step) -> Status:
    text = f"Teacher {step.key.teacher} has answered a completion."
    return with_condition(status, ConditionType.TEACHER_READY, True, Reason.TEACHER_ANSWERED, text, world.now)


def _heard(world: World, status: Status, step: Step, attempt: SeenJob, progress: Progress | None) -> Status:
    """The status with what a teacher says while its Job runs.

    Where more requests wait than a server takes at once, ours waits as well: one that goes on finishing answers is no
    silent one.
    """
    answers = progress is not None and bool(progress.done) and since(progress.updated_at, world.now) < QUIET
    match complaint(world, step, attempt):
        case None:
            return status
        case "", _:
            return _answers(world, status, step)
        case Reason.TEACHER_SILENT, _ if answers:
            return _answers(world, status, step)
        case reason, text:
            serving = world.job.spec.teacher(step.key.teacher).serving or Serving()
            text += f" A generation that moves nothing for {serving.idle_timeout_seconds} s (idleTimeoutSeconds) is"
            text += " stopped, and begun again."
            status = with_condition(status, ConditionType.TEACHER_READY, False, reason, text, world.now)
            # Another reason to wait, as that of a queue, comes first.
            return status if status.reason else records.going_on(status, step, world.now, reason, text)


def _progress(world: World, status: Status, step: Step, attempt: SeenJob) -> Progress | None:
    """The progress to record; that of before where no pod runs."""
    stage = status.stage(step.name)
    before = stage.progress if stage else None
    if not _runs(attempt):
        return before
    # Of the nodes of a training the first one counts for all.
    reports = [report for report in attempt.progress if not report.worker or attempt.key.stage is not Stage.TRAIN]
    return merged(before, reports, world.now, timedelta(seconds=world.settings.progress_seconds))


def _runs(attempt: SeenJob) -> bool:
    return any(pod.phase in ("Running", "Succeeded") for pod in attempt.pods)


def _progressed(world: World, status: Status, step: Step, attempt: SeenJob, progress: Progress | None) -> Status:
    """The status with what the pods say."""
    stage = status.stage(step.name) or StageStatus(name=step.name)
    running = _runs(attempt)
    if progress is not stage.progress:
        status = _numbers(status, step, attempt)
        stage = status.stage(step.name) or stage
    state = StageState.RUNNING if running else StageState.WAITING
    status = records.with_stage(status, records.changed(stage, state=state, progress=progress))
    reason, text = _words(attempt, world.job.spec.scheduling.queue_name, running=running)
    phase = step.first_phase if attempt.look else None
    return records.going_on(status, step, world.now, reason, text, phase=phase)


def _words(attempt: SeenJob, queue: str, *, running: bool) -> tuple[str, str]:
    """What to say of it: a reason and a sentence."""
    waiting = next((pod for pod in attempt.pods if pod.waiting_reason not in BENIGN), None)
    together = attempt.key.stage is Stage.TRAIN  # its pods wait for each other
    if waiting is not None and (together or not running):
        return waiting.waiting_reason, _waits(waiting)
    if attempt.state is JobState.SUSPENDED:
        text = f"The Job waits for the queue {queue} to admit it." if queue else f"Job/{attempt.name} is suspended."
        return Reason.WAITING, text
    if attempt.pods_refused and (together or not attempt.pods):
        return reason_of_refusal(attempt.pods_refused), refused_pods(f"Job/{attempt.name}", attempt.pods_refused)
    if attempt.look:
        return (Reason.RUNNING if running else Reason.STARTING), LOOKING
    if not running:
        return Reason.STARTING, f"Attempt {attempt.attempt} starts."
    return Reason.RUNNING, f"Attempt {attempt.attempt} runs."


def _numbers(status: Status, step: Step, attempt: SeenJob) -> Status:
    """The training's numbers, and the ledger of the teacher that is asked.

    Pods that have ended say no more, so a sum that is smaller than the last one is not told.
    """
    training = next((report.training for report in attempt.progress if report.training is not None), None)
    if training is not None:
        size = training.micro_batch_size or (status.training.micro_batch_size if status.training else 0)
        status = status.model_copy(update={"training": training.model_copy(update={"micro_batch_size": size})})
    ledgers = [report.ledger for report in attempt.progress if report.ledger is not None]
    found, stage = ledger_of(ledgers), status.stage(step.name)
    before = (stage.ledger if stage else None) or Ledger()
    grown = found.accepted + found.rejected >= before.accepted + before.rejected
    return records.with_ledger(status, step.name, found) if ledgers and grown else status


def _pending_too_long(world: World, attempt: SeenJob) -> Broken | None:
    """A pod that nobody places, or that cannot start, for longer than the spec allows."""
    limit = world.job.spec.run_policy.pending_deadline_seconds
    if limit is None:
        return None
    for pod in attempt.pods:
        if pod.phase == "Pending" and since(pod.created_at, world.now) > timedelta(seconds=limit):
            text = f"{_waits(pod)} (longer than spec.runPolicy.pendingDeadlineSeconds, {limit} s)"
            reason = pod.waiting_reason or Reason.POD_PENDING
            return _stopped(attempt, pod, FailureClass.INFRASTRUCTURE, reason, text, Remedy.NONE)
    age = since(attempt.started_at or attempt.created_at, world.now)
    if attempt.pods_refused and not attempt.pods and age > timedelta(seconds=limit):
        text = f"{refused_pods(f'Job/{attempt.name}', attempt.pods_refused)} (for longer than "
        text += f"spec.runPolicy.pendingDeadlineSeconds, {limit} s)"
        reason = reason_of_refusal(attempt.pods_refused)
        return _stopped(attempt, None, FailureClass.INFRASTRUCTURE, reason, text, Remedy.NONE)
    return None


def _idle_too_long(world: World, progress: Progress | None, step: Step, attempt: SeenJob) -> Broken | None:
    """An attempt that moves nothing: it holds GPUs for no use."""
    taught = step.served_teacher and not attempt.look
    serving = world.job.spec.teacher(step.key.teacher).serving if taught else None
    suspended = attempt.state is not JobState.ACTIVE
    if serving is None and (suspended or not _runs(attempt)):
        return None  # a Job or a pod that waits for its place holds nothing; a teacher behind it does
    begun = attempt.started_at or attempt.created_at
    if begun is None:
        return None
    limit = serving.idle_timeout_seconds if serving else world.settings.stall_seconds
    seconds = max(limit, 2 * world.settings.progress_seconds)
    quiet = since(begun, world.now)  # The progress may be that of a Job that was lost.
    if min(quiet, since(progress.updated_at, world.now) if progress else quiet) <= timedelta(seconds=seconds):
        return None
    why = f" since the Job {attempt.name} is suspended" if suspended else ""
    text = f"{step.name} moved nothing for {seconds} s{why} and was stopped; what it had finished is kept."
    if taught and (heard := complaint(world, step, attempt)):
        text = f"{text} {heard[1]}".strip()
    pod = next((pod for pod in attempt.pods if pod.phase == "Running"), None)
    return _stopped(attempt, pod, FailureClass.APPLICATION, Reason.NO_PROGRESS, text, Remedy.RETRY)


def _stopped(
    attempt: SeenJob, pod: SeenPod | None, class_: FailureClass, reason: str, message: str, remedy: Remedy
) -> Broken:
    failure = Failure(
        stage=str(attempt.key),
        attempt=attempt.attempt,
        pod=pod.name if pod else "",
        node=pod.node if pod else "",
        class_=class_,
        reason=reason[:128],
        message=message[:2048],
        log_tail=pod.log_tail[-4096:] if pod else "",
    )
    return Broken(failure, remedy, job=attempt)


def _waits(pod: SeenPod) -> str:
    why = pod.waiting_message or "no reason given"
    return f"Pod {pod.name} waits ({pod.waiting_reason or 'Pending'}): {why}"

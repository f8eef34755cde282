"""The one decision: what the next pass does. Pure and total: any job and anything seen give a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from kubedistill_api.base import KIND
from kubedistill_api.job import DistillationJob
from kubedistill_api.results import GenerateResult, PrepareResult
from kubedistill_api.rules import Problem
from kubedistill_api.run import GenerateRun, Run, TrainRun, looks_only
from kubedistill_api.status import ConditionType, Failure, FailureClass, StageStatus, Status
from kubedistill_operator.core import records
from kubedistill_operator.core.checks import problems, unreadable_uris
from kubedistill_operator.core.conditions import Reason, shortened, with_condition
from kubedistill_operator.core.leftovers import LIVE, leftovers
from kubedistill_operator.core.obstacles import Obstacle, obstacle
from kubedistill_operator.core.outcomes import Broken, Done, Going, Remedy, outcome
from kubedistill_operator.core.pipeline import Step, pipeline
from kubedistill_operator.core.plans import Manifest, Plan, Ref
from kubedistill_operator.core.retries import after_failure
from kubedistill_operator.core.runs import Lineage, look_for, run_for
from kubedistill_operator.core.seen import Seen, SeenJob
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.core.times import moment, since
from kubedistill_operator.core.usage import with_tokens, with_usage
from kubedistill_operator.core.watching import LOOKING, watch
from kubedistill_operator.core.world import World
from kubedistill_operator.manifests.meeting import meeting_service
from kubedistill_operator.manifests.run_file import run_file
from kubedistill_operator.manifests.stage_job import stage_job
from kubedistill_operator.manifests.workspace import workspace_claim

PATIENCE = timedelta(seconds=5)


def plan(job: DistillationJob, seen: Seen, now: datetime, settings: Settings) -> Plan:
    """Decide the next pass from what is asked, what is recorded and what is seen."""
    if job.metadata.deletion_timestamp is not None:
        return Plan(job.status)
    world = World(job, seen, now, settings)
    if job.status.finished and job.status.start_time is not None:
        return _after_the_end(world)
    # A job that was accepted goes on under a newer operator's stricter rules; what cannot be read is refused even so.
    started = job.status.start_time is not None
    wrong = list(unreadable_uris(job, settings)) if started else problems(job, settings)
    if wrong:
        return Plan(refuse(job.status, job.metadata.generation, wrong, now))
    decided = _decide(world, records.begun(job, now, settings))
    return replace(
        decided,
        status=records.fitting(decided.status),
        delete=(*decided.delete, *leftovers(job.status, seen)),
    )


def refuse(status: Status, generation: int, problems: Sequence[Problem], now: datetime) -> Status:
    """The status of a job that cannot be read or breaks a rule: all problems, and nothing is started."""
    return records.refused(status, generation, problems, now)


def _decide(world: World, status: Status) -> Plan:
    left = _seconds_left(world, status)
    if world.job.spec.suspend:
        return _suspend(world, status)
    if left is not None and left <= 0:
        return _past_deadline(world, status)
    decided = _walk(world, records.resumed(status, world.now))
    if left is None or decided.status.finished:
        return decided
    ahead = timedelta(seconds=left)
    return replace(decided, check_in=min(ahead, decided.check_in) if decided.check_in else ahead)


def _walk(world: World, status: Status) -> Plan:
    """The first step that is not done decides; the steps after it wait."""
    for step in pipeline(world.job.spec):
        stage = _stage(status, step)
        if stage.state not in records.DONE:
            return _at(world, status, step, stage)
    return Plan(records.succeeded(status, world.now), check_in=PATIENCE)


def _at(world: World, status: Status, step: Step, stage: StageStatus) -> Plan:
    """One step: wait for its retry, start an attempt, or look at the one that was started."""
    due = moment(stage.retry_time)
    if due is not None and due > world.now:
        return Plan(status, check_in=due - world.now)
    fresh = stage.attempt == 0 or stage.retry_time is not None
    attempt = stage.attempt + 1 if fresh else stage.attempt
    if fresh and (before := _earlier_attempt(world, step, attempt)) is not None:
        text = f"Attempt {before.attempt} is still ending; the next one starts when its pods are gone."
        waits = records.going_on(status, step, world.now, Reason.STOPPING, text, phase=step.first_phase)
        return Plan(waits, check_in=PATIENCE)
    run = run_for(world.job, status, step.key, attempt, world.settings)
    seen = world.seen.job(step.key, attempt)
    if seen is None and step.served_teacher and stage.attempt and isinstance(run, GenerateRun):
        return _look(world, status, step, run)
    if seen is None:
        return _launch(world, status, step, run)
    return _judge(world, records.launched(status, run, step, world.now), step, seen)


def _look(world: World, status: Status, step: Step, run: GenerateRun) -> Plan:
    """An attempt that has to start a teacher, and is not the first: the answers may be there by now.

    The Job before it may have ended well while nobody watched, and be gone with its result. Before the first attempt
    Prepare has looked.
    """
    look = look_for(run)
    seen = world.seen.look(step.key, run.attempt)
    if seen is None:
        return _launch(world, status, step, look)
    match outcome(seen):
        case Done(result=GenerateResult() as found) if found.missing_shards:
            return _launch(world, status, step, run)
        case _:
            return _judge(world, records.launched(status, look, step, world.now), step, seen)


def _judge(world: World, status: Status, step: Step, attempt: SeenJob) -> Plan:
    """An attempt that is there."""
    match outcome(attempt):
        case Done(result=result):
            status = with_usage(world.job, status, step, attempt, world.seen, world.now)
            status = with_tokens(records.done(world.job, status, step, result, world.now, world.settings), result)
            if step.served_teacher:
                text = "The answers are there; its GPUs are free."
                status = with_condition(
                    status, ConditionType.TEACHER_READY, False, Reason.TEACHER_RELEASED, text, world.now
                )
            if isinstance(result, PrepareResult):
                status = _with_ready_answers(world, status, result)
            return _walk(world, status)
        case Broken() as broken:
            return after_failure(world, status, step, broken)
        case Going() if attempt.deleting:
            return after_failure(world, status, step, _deleted_by_hand(attempt))
        case Going():
            return watch(world, status, step, attempt)


def _launch(world: World, status: Status, step: Step, run: Run) -> Plan:
    """Start an attempt: the claim and the run file first, the Job that mounts them last."""
    job = stage_job(world.job, run, world.settings)
    claim = workspace_claim(world.job, world.settings) if world.seen.claim_bound is None else None
    service = [meeting_service(world.job)] if isinstance(run, TrainRun) and run.leader else []
    manifests: tuple[Manifest, ...] = (*([claim] if claim else []), *service, run_file(world.job, run), job)
    hindered = obstacle(world, manifests)
    if hindered is not None:
        return _hindered(world, status, step, run.attempt, hindered)
    status = records.launched(status, run, step, world.now)
    text = LOOKING if looks_only(run) else f"Attempt {run.attempt} starts."
    status = records.going_on(status, step, world.now, Reason.STARTING, text, phase=step.first_phase)
    return Plan(status, apply=manifests, check_in=PATIENCE)


def _hindered(world: World, status: Status, step: Step, attempt: int, by: Obstacle) -> Plan:
    """An attempt that cannot be made: told, and not recorded as started."""
    if not by.overdue:
        waits = records.going_on(status, step, world.now, by.reason, by.message, phase=step.first_phase)
        return Plan(waits, check_in=by.again)
    failure = Failure(
        stage=step.name,
        attempt=attempt,
        class_=FailureClass.INFRASTRUCTURE,
        reason=by.reason,
        message=shortened(by.message, 2048),
    )
    return Plan(records.failed(status, failure, world.now, step=step), check_in=PATIENCE)


def _with_ready_answers(world: World, status: Status, prepared: PrepareResult) -> Status:
    """Steps whose answers Prepare found in the workspace are done before any teacher is started."""
    for result in prepared.answers:
        step = next((s for s in pipeline(world.job.spec) if s.key.teacher == result.teacher), None)
        if step is not None and Lineage(world.job, status).input_digest(step.key) == result.input_digest:
            status = records.done(
                world.job, status, step, result.model_copy(update={"reused": True}), world.now, world.settings
            )
    return status


def _suspend(world: World, status: Status) -> Plan:
    """Note what has ended meanwhile, then rest. The next pass stops what still runs."""
    if status.suspended_time is None and world.job.status.start_time is not None:
        settled = _settled(world, status)
        if settled.finished:
            return Plan(settled)
        status = settled
    waits = any(job.state in LIVE for job in world.seen.jobs)
    return Plan(records.suspended(status, world.now), check_in=PATIENCE if waits else None)


def _settled(world: World, status: Status) -> Status:
    """The status with every success that is there already; it would be lost with its Job otherwise."""
    for step in pipeline(world.job.spec):
        stage = _stage(status, step)
        if stage.state in records.DONE:
            continue
        seen = world.seen.job(step.key, stage.attempt)
        found = outcome(seen) if seen is not None else None
        if not isinstance(found, Done):
            return status
        status = with_usage(world.job, status, step, found.job, world.seen, world.now)
        status = records.done(world.job, status, step, found.result, world.now, world.settings)
    return records.succeeded(status, world.now)


def _seconds_left(world: World, status: Status) -> float | None:
    """Until the job's own deadline, suspensions left out; None where it has none."""
    limit = world.job.spec.run_policy.active_deadline_seconds
    if limit is None or status.start_time is None:
        return None
    rested = status.suspended_seconds + since(status.suspended_time, world.now).total_seconds()
    return limit - (since(status.start_time, world.now).total_seconds() - rested)


def _past_deadline(world: World, status: Status) -> Plan:
    settled = _settled(world, status)
    if settled.finished:
        return Plan(settled)
    step = next(s for s in pipeline(world.job.spec) if _stage(settled, s).state not in records.DONE)
    limit = world.job.spec.run_policy.active_deadline_seconds
    failure = Failure(
        stage=step.name,
        attempt=_stage(settled, step).attempt,
        class_=FailureClass.DEADLINE,
        reason=Reason.DEADLINE_EXCEEDED,
        message=f"The job did not end within spec.runPolicy.activeDeadlineSeconds ({limit} s); it was at {step.name}.",
    )
    return Plan(records.failed(settled, failure, world.now, step=step), check_in=PATIENCE)


def _after_the_end(world: World) -> Plan:
    """A finished job: what still lives is removed, and in the end the job itself, if it says so."""
    status = world.job.status.model_copy(update={"observed_generation": world.job.metadata.generation})
    left = leftovers(world.job.status, world.seen)
    ttl = world.job.spec.run_policy.ttl_seconds_after_finished
    if ttl is None or status.completion_time is None:
        return Plan(status, delete=left, check_in=PATIENCE if left else None)
    rest = timedelta(seconds=ttl) - since(status.completion_time, world.now)
    if rest > timedelta(0):
        return Plan(status, delete=left, check_in=min(rest, PATIENCE) if left else rest)
    return Plan(status, delete=(*left, Ref(KIND, world.job.metadata.name, world.job.metadata.uid)))


def _stage(status: Status, step: Step) -> StageStatus:
    return status.stage(step.name) or StageStatus(name=step.name)


def _earlier_attempt(world: World, step: Step, attempt: int) -> SeenJob | None:
    """A Job of this step whose pods may still write."""
    return next(
        (
            job
            for job in world.seen.jobs
            if job.key == step.key and job.attempt != attempt and (job.state in LIVE or job.deleting or _has_pods(job))
        ),
        None,
    )


def _has_pods(job: SeenJob) -> bool:
    """Whether a pod of a Job that has ended still runs: before Kubernetes 1.31 Failed is told at the first failure."""
    return any(pod.phase in ("Pending", "Running") for pod in job.pods)


def _deleted_by_hand(attempt: SeenJob) -> Broken:
    failure = Failure(
        stage=str(attempt.key),
        attempt=attempt.attempt,
        class_=FailureClass.INFRASTRUCTURE,
        reason="JobDeleted",
        message=f"Somebody deleted the Job {attempt.name}; it is made anew and goes on from what it had finished.",
    )
    return Broken(failure, Remedy.RESUME, job=attempt)

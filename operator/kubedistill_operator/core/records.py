"""What a pass writes into the status: one function for each thing that can happen to a job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from kubedistill_api import digests
from kubedistill_api.base import Stage
from kubedistill_api.identity import StageKey, stage_folder
from kubedistill_api.job import DistillationJob
from kubedistill_api.results import (
    EvaluateResult,
    GenerateResult,
    PrepareResult,
    PublishResult,
    Success,
    TrainResult,
)
from kubedistill_api.rules import Problem
from kubedistill_api.run import Run, name_of_job
from kubedistill_api.status import (
    ConditionType,
    Failure,
    Ledger,
    Phase,
    Resolved,
    Result,
    Score,
    StageState,
    StageStatus,
    Status,
    TrainingStatus,
)
from kubedistill_operator.core.conditions import Reason, shortened, with_condition
from kubedistill_operator.core.pipeline import CONDITION, PHASE, Step, pipeline
from kubedistill_operator.core.progress import in_words, ledger_of
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.core.times import rfc3339, since
from kubedistill_operator.manifests.stage_job import images
from kubedistill_operator.manifests.workspace import workspace_uri

DONE = (StageState.SUCCEEDED, StageState.REUSED, StageState.SKIPPED)
SIZE_LIMIT = 32 * 1024


def refused(status: Status, generation: int, problems: Sequence[Problem], now: datetime) -> Status:
    """Nothing was started, and all that is wrong is told. An edit of the spec is looked at anew."""
    text = "; ".join(map(str, problems))
    status = status.model_copy(
        update={"observed_generation": generation, "phase": Phase.FAILED, "reason": Reason.INVALID_SPEC}
    )
    for type_, held in (
        (ConditionType.ACCEPTED, False),
        (ConditionType.SUCCEEDED, False),
        (ConditionType.RECONCILING, False),
        (ConditionType.STALLED, True),
    ):
        status = with_condition(status, type_, held, Reason.INVALID_SPEC, text, now)
    return status


def begun(job: DistillationJob, now: datetime, settings: Settings) -> Status:
    """The status of an accepted job; of one that was accepted before, only what its spec says is told anew."""
    teachers = ", ".join(teacher.name for teacher in job.spec.teachers)
    status = job.status.model_copy(update={"observed_generation": job.metadata.generation, "teachers": teachers})
    if status.start_time is not None:
        return status
    status = status.model_copy(
        update={
            "phase": Phase.PENDING,
            "reason": "",
            "start_time": rfc3339(now),
            "execution_attempt": 1,
            "stages": [StageStatus(name=step.name) for step in pipeline(job.spec)],
            "resolved": Resolved(
                spec_digest=digests.spec_digest(job.spec),
                images=images(job.spec, settings),
            ),
        }
    )
    status = with_condition(status, ConditionType.ACCEPTED, True, Reason.ACCEPTED, "The spec is sound.", now)
    return with_condition(status, ConditionType.STALLED, False, Reason.ACCEPTED, "", now)


def with_stage(status: Status, stage: StageStatus) -> Status:
    """The status with this step replaced, or added at the end."""
    known = [stage if s.name == stage.name else s for s in status.stages]
    return status.model_copy(update={"stages": known if status.stage(stage.name) else [*known, stage]})


def changed(stage: StageStatus, **update: Any) -> StageStatus:
    """A step with some fields replaced."""
    return stage.model_copy(update=update)


def going_on(
    status: Status, step: Step, now: datetime, reason: str, message: str, *, phase: Phase | None = None
) -> Status:
    """The job is under way at this step; the reason says whether it runs or waits, and for what."""
    stage = status.stage(step.name)
    waiting = reason not in (Reason.RUNNING, Reason.STARTING)
    status = status.model_copy(
        update={
            "phase": phase or PHASE[step.key.stage],
            "current_stage": step.name,
            "progress": in_words(stage.progress)[:128] if stage and stage.progress else "",
            "reason": reason if waiting else "",
        }
    )
    status = with_condition(status, CONDITION[step.key.stage], False, reason, message, now)
    status = with_condition(status, ConditionType.RECONCILING, True, reason, message, now)
    return with_condition(status, ConditionType.SUCCEEDED, None, reason, message, now)


def launched(status: Status, run: Run, step: Step, now: datetime) -> Status:
    """An attempt of a step was started, or the look before it."""
    stage = status.stage(step.name) or StageStatus(name=step.name)
    again = stage.attempt == run.attempt
    return with_stage(
        status,
        changed(
            stage,
            state=stage.state if again and stage.state is StageState.RUNNING else StageState.WAITING,
            attempt=run.attempt,
            start_time=stage.start_time or rfc3339(now),
            completion_time=None,
            retry_time=None,
            job=name_of_job(run),
            input_digest=stage.input_digest if again else run.input_digest,
            progress=stage.progress if again else None,
        ),
    )


def done(
    job: DistillationJob, status: Status, step: Step, result: Success, now: datetime, settings: Settings
) -> Status:
    """A step is done: what it made, what it said, and its condition."""
    stage = status.stage(step.name) or StageStatus(name=step.name)
    folder = stage_folder(job.metadata.namespace, job.metadata.name, step.key, result.input_digest)
    progress = stage.progress
    status = with_stage(
        status,
        changed(
            stage,
            state=StageState.REUSED if result.reused else StageState.SUCCEEDED,
            completion_time=rfc3339(now),
            start_time=stage.start_time or rfc3339(now),
            retry_time=None,
            input_digest=result.input_digest,
            output_digest=result.output_digest,
            output_uri=f"{workspace_uri(job, settings)}/{folder}"[:1024],
            progress=progress
            and progress.model_copy(
                update={"done": progress.total or progress.done, "eta_seconds": 0, "rate_per_second": "", "message": ""}
            ),
        ),
    )
    status = _what_it_said(status, result)
    if not _all_done(status, step.key.stage):
        return status
    reason = Reason.REUSED if result.reused else Reason.SUCCEEDED
    text = result.message or f"{step.key.stage} is done."
    return with_condition(status, CONDITION[step.key.stage], True, reason, text, now)


def _all_done(status: Status, stage: Stage) -> bool:
    """Whether every step of a stage is done: Generate has one for each teacher."""
    return all(s.state in DONE for s in status.stages if StageKey.parse(s.name).stage is stage)


def _what_it_said(status: Status, result: Success) -> Status:
    """The parts of a result that have a place of their own in the status."""
    match result:
        case PrepareResult():
            resolved = (status.resolved or Resolved()).model_copy(update={"models": result.models[:8]})
            return status.model_copy(update={"estimate": result.estimate, "resolved": resolved})
        case GenerateResult():
            return with_ledger(status, str(StageKey(Stage.GENERATE, result.teacher)), result.ledger)
        case TrainResult():
            training = status.training or TrainingStatus()
            return status.model_copy(update={"training": training.model_copy(update=_training(result))})
        case EvaluateResult():
            return scored(status, result.scores)
        case PublishResult():
            published = Result(
                model_uri=result.model_uri,
                digest=result.digest,
                size_bytes=result.size_bytes,
                formats=result.formats[:4],
                dataset_uri=result.dataset_uri,
                report_uri=result.report_uri,
            )
            return status.model_copy(update={"result": published})


def _training(result: TrainResult) -> dict[str, Any]:
    return {
        "step": result.steps,
        "total_steps": result.steps,
        "loss": f"{result.loss:.4g}",
        "validation_loss": "" if result.validation_loss is None else f"{result.validation_loss:.4g}",
        "tokens_per_second": f"{result.tokens_per_second:.4g}",
        "micro_batch_size": result.micro_batch_size,
        "last_checkpoint": result.last_checkpoint,
    }


def with_ledger(status: Status, step: str, ledger: Ledger) -> Status:
    """What became of one teacher's answers so far, in place of what was said before, and the sum over all teachers."""
    stage = status.stage(step) or StageStatus(name=step)
    status = with_stage(status, changed(stage, ledger=ledger))
    return status.model_copy(update={"ledger": ledger_of(s.ledger for s in status.stages if s.ledger is not None)})


def scored(status: Status, scores: Sequence[Score]) -> Status:
    """The comparison, and its first line for the printer column."""
    if not scores:
        return status
    first = next((score for score in scores if score.gate), scores[0])
    shown = (
        f"{first.metric} {first.baseline} → {first.student}" if first.baseline else f"{first.metric} {first.student}"
    )
    return status.model_copy(update={"evaluation": list(scores)[:16], "score": shortened(shown, 128)})


def retrying(
    status: Status, step: Step, failure: Failure, delay: timedelta, now: datetime, *, restarts: int, preemptions: int
) -> Status:
    """A failure after which the step is tried again, and how it counts."""
    stage = status.stage(step.name) or StageStatus(name=step.name)
    status = with_stage(
        status,
        changed(
            stage,
            state=StageState.WAITING,
            restarts=stage.restarts + restarts,
            preemptions=stage.preemptions + preemptions,
            retry_time=rfc3339(now + delay),
        ),
    )
    status = status.model_copy(update={"last_failure": failure.model_copy(update={"time": rfc3339(now)})})
    text = f"Attempt {failure.attempt} failed and is tried again: {failure.message}"
    return going_on(status, step, now, Reason.RETRYING, text, phase=step.first_phase)


def failed(status: Status, failure: Failure, now: datetime, *, step: Step | None = None) -> Status:
    """The job has failed for good."""
    update: dict[str, Any] = {
        "phase": Phase.FAILED,
        "reason": failure.reason,
        "completion_time": rfc3339(now),
        "last_failure": failure.model_copy(update={"time": rfc3339(now)}),
    }
    if step is not None:
        stage = status.stage(step.name) or StageStatus(name=step.name)
        status = with_stage(
            status, changed(stage, state=StageState.FAILED, completion_time=rfc3339(now), retry_time=None)
        )
        update["current_stage"] = step.name
    status = status.model_copy(update=update)
    if step is not None:
        status = with_condition(
            status, CONDITION[step.key.stage], False, failure.reason, failure.message or failure.reason, now
        )
    for type_, held in (
        (ConditionType.SUCCEEDED, False),
        (ConditionType.RECONCILING, False),
        (ConditionType.STALLED, True),
    ):
        status = with_condition(status, type_, held, failure.reason, failure.message or failure.reason, now)
    return status


def succeeded(status: Status, now: datetime) -> Status:
    """Every step is done."""
    text = f"The model is at {status.result.model_uri}." if status.result else "Every stage is done."
    status = status.model_copy(
        update={
            "phase": Phase.SUCCEEDED,
            "reason": Reason.SUCCEEDED,
            "completion_time": rfc3339(now),
            "progress": "",
        }
    )
    for type_, held in (
        (ConditionType.SUCCEEDED, True),
        (ConditionType.RECONCILING, False),
        (ConditionType.STALLED, False),
    ):
        status = with_condition(status, type_, held, Reason.SUCCEEDED, text, now)
    return status


def suspended(status: Status, now: datetime) -> Status:
    """The job rests: what runs is stopped at a checkpoint, and a resumption is a new attempt."""
    if status.suspended_time is None:
        stages = [
            changed(s, state=StageState.WAITING, retry_time=rfc3339(now))
            if s.attempt and s.state in (StageState.RUNNING, StageState.WAITING)
            else s
            for s in status.stages
        ]
        status = status.model_copy(update={"stages": stages, "suspended_time": rfc3339(now)})
    status = status.model_copy(update={"phase": Phase.SUSPENDED, "reason": Reason.SUSPENDED})
    text = "Suspended: no pod runs and no GPU is held; write suspend: false to go on."
    for type_, held in (
        (ConditionType.SUSPENDED, True),
        (ConditionType.SUCCEEDED, None),
        (ConditionType.RECONCILING, False),
    ):
        status = with_condition(status, type_, held, Reason.SUSPENDED, text, now)
    return status


def resumed(status: Status, now: datetime) -> Status:
    """A suspended job goes on; unchanged where it was not suspended."""
    if status.suspended_time is None:
        return status
    rested = status.suspended_seconds + int(since(status.suspended_time, now).total_seconds())
    status = status.model_copy(
        update={
            "suspended_time": None,
            "suspended_seconds": rested,
            "execution_attempt": status.execution_attempt + 1,
            "reason": "",
        }
    )
    return with_condition(status, ConditionType.SUSPENDED, False, Reason.RESUMED, "It goes on.", now)


def fitting(status: Status) -> Status:
    """The status below 32 KiB: logs are cut first, then sentences."""
    for tail, text in ((4096, 2048), (1024, 512), (256, 256), (0, 128)):
        if len(status.model_dump_json(by_alias=True, exclude_none=True).encode()) <= SIZE_LIMIT:
            return status
        failure = status.last_failure
        status = status.model_copy(
            update={
                "last_failure": failure
                and failure.model_copy(
                    update={
                        "log_tail": failure.log_tail[len(failure.log_tail) - min(tail, len(failure.log_tail)) :],
                        "message": shortened(failure.message, text),
                    }
                ),
                "conditions": [c.model_copy(update={"message": shortened(c.message, text)}) for c in status.conditions],
            }
        )
    return status

"""After a failure: again, again with less, or the end."""

from __future__ import annotations

from datetime import timedelta

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.status import Failure, StageStatus, Status, TrainingStatus
from kubedistill_api.training import OnOutOfMemory
from kubedistill_operator.core import records
from kubedistill_operator.core.outcomes import Broken, Remedy
from kubedistill_operator.core.pipeline import Step
from kubedistill_operator.core.plans import Plan
from kubedistill_operator.core.runs import micro_batch_size
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.core.usage import with_usage
from kubedistill_operator.core.world import World

HALVINGS = 3
SOON = timedelta(seconds=1)


def after_failure(world: World, status: Status, step: Step, broken: Broken) -> Plan:
    """Record a failure and decide what follows. What still runs is deleted by the next pass."""
    stage = status.stage(step.name) or StageStatus(name=step.name)
    if broken.job is not None:
        status = with_usage(world.job, status, step, broken.job, world.seen, world.now)
    if broken.said is not None:
        status = records.scored(status, broken.said.scores)
        if broken.said.ledger is not None and step.key.stage is Stage.GENERATE:
            status = records.with_ledger(status, step.name, broken.said.ledger)
        elif broken.said.ledger is not None:  # Prepare looked at answers that were there
            status = status.model_copy(update={"ledger": broken.said.ledger})
    match broken.remedy:
        case Remedy.NONE:
            return Plan(records.failed(status, broken.failure, world.now, step=step), check_in=SOON)
        case Remedy.RESUME:
            return _again(world, status, step, broken.failure, stage, preemptions=1)
        case Remedy.SMALLER_BATCH:
            return _with_smaller_batch(world, status, step, broken.failure, stage)
        case Remedy.RETRY:
            weight = _weight(broken)
            most = world.job.spec.run_policy.max_restarts
            if stage.restarts + weight > most:
                return _exhausted(world, status, step, broken.failure, stage.restarts + weight)
            return _again(world, status, step, broken.failure, stage, restarts=weight)


def backoff(settings: Settings, tries: int) -> timedelta:
    """Doubling from the base up to the limit; `tries` attempts went wrong before this one."""
    seconds = settings.retry_base_seconds * 2 ** min(tries, 30)
    return timedelta(seconds=min(seconds, settings.retry_limit_seconds))


def smaller_batch(world: World, status: Status) -> int | None:
    """The next micro batch that divides the global batch; None after three halvings, or where one sequence is left."""
    training = world.job.spec.training
    asked = training.hyperparameters.micro_batch_size
    now = micro_batch_size(world.job, status)
    least = max(1, asked // 2**HALVINGS)
    sizes = range(now // 2, least - 1, -1)
    whole = training.hyperparameters.global_batch_size
    return next((size for size in sizes if whole % (size * training.world_size) == 0), None)


def _again(
    world: World,
    status: Status,
    step: Step,
    failure: Failure,
    stage: StageStatus,
    *,
    restarts: int = 0,
    preemptions: int = 0,
) -> Plan:
    delay = backoff(world.settings, stage.restarts + stage.preemptions)
    status = records.retrying(status, step, failure, delay, world.now, restarts=restarts, preemptions=preemptions)
    return Plan(status, check_in=SOON)


def _with_smaller_batch(world: World, status: Status, step: Step, failure: Failure, stage: StageStatus) -> Plan:
    policy = world.job.spec.training.on_out_of_memory
    size = smaller_batch(world, status) if step.key.stage is Stage.TRAIN else None
    if policy is OnOutOfMemory.FAIL or size is None:
        return Plan(records.failed(status, failure, world.now, step=step), check_in=SOON)
    before = micro_batch_size(world.job, status)
    training = (status.training or TrainingStatus()).model_copy(update={"micro_batch_size": size})
    status = status.model_copy(update={"training": training})
    text = f"The device's memory was full at microBatchSize {before}; it goes on with {size} and the same global batch."
    told = failure.model_copy(update={"message": text})
    return _again(world, status, step, told, stage)


def _exhausted(world: World, status: Status, step: Step, failure: Failure, times: int) -> Plan:
    text = f"{failure.message} It failed {times} times; spec.runPolicy.maxRestarts allows no more."
    told = failure.model_copy(update={"message": text[-2048:]})
    return Plan(records.failed(status, told, world.now, step=step), check_in=SOON)


def _weight(broken: Broken) -> int:
    """How many restarts a broken attempt counts for: Generate's Job starts its pods again by itself."""
    if broken.job is None or broken.job.key.stage is not Stage.GENERATE:
        return 1
    tries = [
        pod
        for pod in broken.job.pods
        if pod.exit_code not in (None, int(Exit.OK), int(Exit.STOPPED_AT_CHECKPOINT)) and not pod.disrupted
    ]
    return max(1, len(tries))

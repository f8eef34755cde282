"""What a job used: seconds and GPU-seconds of every attempt, counted once, when the attempt ends."""

from __future__ import annotations

from datetime import datetime

from kubedistill_api.base import Stage
from kubedistill_api.job import DistillationJob
from kubedistill_api.results import GenerateResult, Success
from kubedistill_api.status import StageUsage, Status, Usage
from kubedistill_operator.core.pipeline import Step
from kubedistill_operator.core.seen import Seen, SeenJob
from kubedistill_operator.core.times import since
from kubedistill_operator.manifests.stage_job import gpus


def with_usage(job: DistillationJob, status: Status, step: Step, attempt: SeenJob, seen: Seen, now: datetime) -> Status:
    """The status with an ended attempt's time added to what was used."""
    end = attempt.finished_at or now
    seconds = int(since(attempt.started_at or attempt.created_at, end).total_seconds())
    nodes = job.spec.training.nodes if step.key.stage is Stage.TRAIN else 1  # also those whose pods are gone by now
    devices = gpus(job.spec, step.key.stage, step.key.teacher) * max(nodes, len({p.index for p in attempt.pods}))
    gpu_seconds = seconds * devices
    teacher = seen.teacher(step.key.teacher, attempt.attempt)
    serving = job.spec.teacher(step.key.teacher).serving if step.served_teacher else None
    if teacher is not None and serving is not None:
        held = int(since(teacher.created_at, end).total_seconds())
        gpu_seconds += held * serving.replicas * serving.nodes * serving.gpus_per_node
    usage = status.usage or Usage()
    before = next((u for u in usage.by_stage if u.name == step.name), StageUsage(name=step.name))
    entry = StageUsage(name=step.name, seconds=before.seconds + seconds, gpu_seconds=before.gpu_seconds + gpu_seconds)
    return status.model_copy(
        update={
            "usage": usage.model_copy(
                update={
                    "gpu_seconds": usage.gpu_seconds + gpu_seconds,
                    "by_stage": [*(u for u in usage.by_stage if u.name != step.name), entry],
                }
            )
        }
    )


def with_tokens(status: Status, result: Success) -> Status:
    """The status with the tokens of a finished generation added; reused answers cost none."""
    if not isinstance(result, GenerateResult) or result.reused:
        return status
    usage = status.usage or Usage()
    total = usage.tokens_generated + result.tokens_generated
    return status.model_copy(update={"usage": usage.model_copy(update={"tokens_generated": total})})

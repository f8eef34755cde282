"""What a job would make, without making it. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from kubedistill_api.base import Stage
from kubedistill_api.job import DistillationJob
from kubedistill_api.run import TrainRun
from kubedistill_api.status import StageState
from kubedistill_operator.core import records
from kubedistill_operator.core.pipeline import pipeline
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.runs import run_for
from kubedistill_operator.core.seen import Seen
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.manifests.meeting import meeting_service
from kubedistill_operator.manifests.run_file import run_file
from kubedistill_operator.manifests.stage_job import stage_job
from kubedistill_operator.manifests.teacher import teacher_deployment, teacher_service

UNKNOWN = "sha256:known-once-the-stage-before-has-run"


def first_pass(job: DistillationJob, now: datetime, settings: Settings) -> list[dict[str, Any]]:
    """What the operator applies when it sees the job for the first time."""
    return list(plan(job, Seen(), now, settings).apply)


def all_stages(job: DistillationJob, now: datetime, settings: Settings) -> list[dict[str, Any]]:
    """The first attempt of every stage. Digests of outputs, and what is named by them, are placeholders."""
    status = records.begun(job, now, settings)
    made: list[dict[str, Any]] = [m for m in first_pass(job, now, settings) if m["kind"] == "PersistentVolumeClaim"]
    for step in pipeline(job.spec):
        run = run_for(job, status, step.key, 1, settings)
        service = [meeting_service(job)] if isinstance(run, TrainRun) and run.leader else []
        made += [*service, run_file(job, run), stage_job(job, run, settings)]
        if step.key.stage is Stage.GENERATE and step.served_teacher:
            teacher = job.spec.teacher(step.key.teacher)
            owner = "the-uid-of-the-generate-job"
            made += [
                teacher_service(job, teacher, 1, owner),
                teacher_deployment(job, teacher, 1, owner, "", settings),
            ]
        stage = records.changed(
            status.stage(step.name) or next(s for s in status.stages if s.name == step.name),
            state=StageState.SUCCEEDED,
            input_digest=run.input_digest,
            output_digest=UNKNOWN,
        )
        status = records.with_stage(status, stage)
    return made

"""Run files: what each stage is told, from the spec and from what the stages before it recorded."""

from __future__ import annotations

from dataclasses import dataclass

from kubedistill_api import digests
from kubedistill_api.base import Stage
from kubedistill_api.identity import StageKey, stage_folder
from kubedistill_api.job import DistillationJob, DistillationJobSpec
from kubedistill_api.run import (
    JOIN_SECONDS,
    Endpoint,
    EvaluateRun,
    GenerateRun,
    JobIdentity,
    PrepareRun,
    PublishRun,
    Run,
    TrainRun,
)
from kubedistill_api.status import StageStatus, Status
from kubedistill_operator.core.settings import Settings
from kubedistill_operator.manifests.meeting import leader
from kubedistill_operator.manifests.teacher import SERVED_NAME, endpoint_url
from kubedistill_operator.manifests.workspace import workspace_uri


@dataclass(frozen=True)
class Lineage:
    """What the steps so far made: their folders and digests, read from the status."""

    job: DistillationJob
    status: Status

    def step(self, stage: Stage, teacher: str = "") -> StageStatus:
        """The recorded step, or an empty one."""
        name = str(StageKey(stage, teacher))
        return self.status.stage(name) or StageStatus(name=name)

    def output(self, stage: Stage, teacher: str = "") -> str:
        """The digest of a step's output."""
        return self.step(stage, teacher).output_digest

    def folder(self, stage: Stage, teacher: str = "") -> str:
        """The folder of a step, by the input digest that it was started with."""
        return self._folder(StageKey(stage, teacher), self.step(stage, teacher).input_digest)

    def answers(self) -> list[str]:
        """The folders of all teachers' answers."""
        return [self.folder(Stage.GENERATE, teacher.name) for teacher in self.job.spec.teachers]

    def answer_digests(self) -> list[str]:
        """The digests of all teachers' answers."""
        return [self.output(Stage.GENERATE, teacher.name) for teacher in self.job.spec.teachers]

    def input_digest(self, key: StageKey) -> str:
        """What shapes a step's output, as it would be started now."""
        spec = self.job.spec
        prepared = self.output(Stage.PREPARE)
        models = self.status.resolved.models if self.status.resolved else []
        match key.stage:
            case Stage.PREPARE:
                return digests.prepare_digest(spec)
            case Stage.GENERATE:
                return digests.generate_digest(spec, key.teacher, prepared, models, self.job.metadata.uid)
            case Stage.TRAIN:
                return digests.train_digest(spec, prepared, models, self.answer_digests())
            case Stage.EVALUATE:
                return digests.evaluate_digest(spec, prepared, self.answer_digests(), self.output(Stage.TRAIN))
            case Stage.PUBLISH:
                return digests.publish_digest(spec, self.output(Stage.TRAIN), self.output(Stage.EVALUATE))

    def _folder(self, key: StageKey, input_digest: str) -> str:
        return stage_folder(self.job.metadata.namespace, self.job.metadata.name, key, input_digest)


def micro_batch_size(job: DistillationJob, status: Status) -> int:
    """The spec's, or what is left of it after the device's memory was full."""
    asked = job.spec.training.hyperparameters.micro_batch_size
    now = status.training.micro_batch_size if status.training else 0
    return now or asked


def run_for(job: DistillationJob, status: Status, key: StageKey, attempt: int, settings: Settings) -> Run:
    """The run file of one attempt of a step, whose needs are done."""
    lineage = Lineage(job, status)
    spec = job.spec
    input_digest = lineage.input_digest(key)
    common = {
        "job": JobIdentity(
            namespace=job.metadata.namespace,
            name=job.metadata.name,
            uid=job.metadata.uid,
            spec_digest=digests.spec_digest(spec),
        ),
        "attempt": attempt,
        "workspace": workspace_uri(job, settings),
        "folder": stage_folder(job.metadata.namespace, job.metadata.name, key, input_digest),
        "input_digest": input_digest,
    }
    match key.stage:
        case Stage.PREPARE:
            return PrepareRun.model_validate({**common, "spec": spec})
        case Stage.GENERATE:
            return GenerateRun.model_validate({**common, **_generate_parts(job, lineage, key, attempt, settings)})
        case Stage.TRAIN:
            parts = {"micro_batch_size": micro_batch_size(job, status), "answers": lineage.answers()}
            return TrainRun.model_validate({**common, **_shared(job, lineage), **parts, **_meeting(job, attempt)})
        case Stage.EVALUATE:
            more = {"data": spec.data, "evaluation": spec.evaluation, "trained": lineage.folder(Stage.TRAIN)}
            return EvaluateRun.model_validate({**common, **_shared(job, lineage), **more, "answers": lineage.answers()})
        case Stage.PUBLISH:
            return PublishRun.model_validate(
                {
                    **common,
                    "spec": spec,
                    "output": spec.output,
                    "models": list(status.resolved.models) if status.resolved else [],
                    "prepared": lineage.folder(Stage.PREPARE),
                    "answers": lineage.answers(),
                    "trained": lineage.folder(Stage.TRAIN),
                    "evaluated": lineage.folder(Stage.EVALUATE),
                }
            )


def _meeting(job: DistillationJob, attempt: int) -> dict[str, object]:
    """Where several nodes meet, and how long they wait there: at most as long as a pod may be pending."""
    if job.spec.training.nodes == 1:
        return {}
    limit = job.spec.run_policy.pending_deadline_seconds
    shorter = {"join_seconds": limit} if limit is not None and limit < JOIN_SECONDS else {}
    return {"leader": leader(job, attempt), **shorter}


def workers(spec: DistillationJobSpec, teacher: str, settings: Settings) -> int:
    """Pods of one teacher's Generate step."""
    wanted = min(spec.generation.parallelism, spec.generation.shards, settings.max_workers)
    return spec.teacher(teacher).workers(wanted, spec.generation.max_tokens)


def look_for(run: GenerateRun) -> GenerateRun:
    """The run file of the look that goes before an attempt."""
    return run.model_copy(update={"look_only": True, "workers": 1})


def _shared(job: DistillationJob, lineage: Lineage) -> dict[str, object]:
    spec = job.spec
    return {
        "task": spec.task,
        "student": spec.student,
        "teachers": spec.teachers,
        "generation": spec.generation,
        "training": spec.training,
        "prepared": lineage.folder(Stage.PREPARE),
    }


def _generate_parts(
    job: DistillationJob, lineage: Lineage, key: StageKey, attempt: int, settings: Settings
) -> dict[str, object]:
    spec = job.spec
    teacher = spec.teacher(key.teacher)
    start, end = digests.share(spec, key.teacher)
    endpoint = None
    if teacher.external is not None:
        endpoint = Endpoint(url=teacher.external.url, model=teacher.external.model)
    if teacher.serving is not None:
        endpoint = Endpoint(url=endpoint_url(job, teacher.name, attempt), model=SERVED_NAME)
    return {
        "task": spec.task,
        "teacher": teacher,
        "endpoint": endpoint,
        "share_from": start,
        "share_to": end,
        "generation": spec.generation,
        "labels": spec.data.labels,
        "max_sequence_length": spec.training.hyperparameters.max_sequence_length,
        "workers": workers(spec, teacher.name, settings),
        "prepared": lineage.folder(Stage.PREPARE),
    }

"""The run file: all that a stage is told, one model per stage. The operator writes it, the trainer image reads it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from kubedistill_api.base import Model, Stage, Task
from kubedistill_api.data import Data
from kubedistill_api.evaluation import Evaluation
from kubedistill_api.generation import Generation
from kubedistill_api.identity import StageKey, job_name
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.output import Output
from kubedistill_api.status import ResolvedModel
from kubedistill_api.student import Student
from kubedistill_api.teachers import Teacher
from kubedistill_api.training import Training

SCHEMA_VERSION = 1
JOIN_SECONDS = 1800
"""How long nodes of a training wait for each other: images of many gigabytes are pulled first, and GPUs of those that
are there idle meanwhile."""


class JobIdentity(Model):
    """Whose stage this is."""

    namespace: str
    """Of the DistillationJob."""
    name: str
    """Of the DistillationJob."""
    uid: str
    """Of the DistillationJob."""
    spec_digest: str
    """Of the whole spec."""


class RunBase(Model):
    """What every stage is told."""

    schema_version: Literal[1] = SCHEMA_VERSION  # type: ignore[assignment]
    """A stage refuses a run file of another version."""
    job: JobIdentity
    """Whose stage this is."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """The number of this attempt."""
    workspace: str
    """The workspace's URI as the stage sees it: `file:///workspace`, `s3://…`, `pvc://…`."""
    folder: str
    """Where this stage writes, relative to the workspace."""
    input_digest: str
    """Digest of everything that shapes the output; the manifest repeats it."""


class Endpoint(Model):
    """Where a served or external teacher answers."""

    url: str
    """The base URL, ending in `/v1`."""
    model: str
    """The model's name there."""


class PrepareRun(RunBase):
    """Check everything before anything expensive starts."""

    stage: Literal[Stage.PREPARE] = Stage.PREPARE
    spec: DistillationJobSpec
    """The whole spec."""


class GenerateRun(RunBase):
    """Make one teacher's share of the answers."""

    stage: Literal[Stage.GENERATE] = Stage.GENERATE
    task: Task
    """Decides how answers are filtered."""
    teacher: Teacher
    """Who is asked."""
    endpoint: Endpoint | None = None
    """Absent: the engine runs in this process."""
    share_from: Annotated[float, Field(ge=0, le=1)] = 0.0
    """This teacher answers the prompts whose hash, as a fraction of 1, is at least this …"""
    share_to: Annotated[float, Field(ge=0, le=1)] = 1.0
    """… and below this."""
    generation: Generation
    """How answers are made and kept."""
    labels: list[str] = []
    """Classification: the answers that count."""
    max_sequence_length: int = 4096
    """Of the student: longer rows could never train."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Pods of this stage; worker i makes shards i, i + workers, …"""
    prepared: str
    """Prepare's folder."""
    look_only: bool = False
    """Ask nobody: say whether all answers are there, or how many shards are missing."""


class TrainRun(RunBase):
    """Train the student on the accepted answers."""

    stage: Literal[Stage.TRAIN] = Stage.TRAIN
    task: Task
    student: Student
    """Where it starts."""
    teachers: list[Teacher]
    """For `student.prunedFrom`, and for the tokenizer."""
    generation: Generation
    """Which signal was stored."""
    training: Training
    """How it is trained."""
    micro_batch_size: Annotated[int, Field(ge=1)]
    """The spec's, or a half of it after the device's memory was full."""
    leader: str | None = None
    """`host:port` at which the first of several nodes meets the others; absent: one node."""
    join_seconds: Annotated[int, Field(ge=1)] | None = None
    """How long the nodes wait for each other; absent: JOIN_SECONDS."""
    prepared: str
    """Prepare's folder."""
    answers: list[str]
    """Generate's folders."""


class EvaluateRun(RunBase):
    """Compare the student before and after with its teachers."""

    stage: Literal[Stage.EVALUATE] = Stage.EVALUATE
    task: Task
    student: Student
    teachers: list[Teacher]
    data: Data
    generation: Generation
    training: Training
    evaluation: Evaluation
    prepared: str
    """Prepare's folder."""
    answers: list[str]
    """Generate's folders."""
    trained: str
    """Train's folder."""


class PublishRun(RunBase):
    """Upload the model, read it back, and only then say where it is."""

    stage: Literal[Stage.PUBLISH] = Stage.PUBLISH
    spec: DistillationJobSpec
    """For the model card."""
    output: Output
    """Where it goes."""
    models: list[ResolvedModel] = []
    """For the lineage in the model card."""
    prepared: str
    answers: list[str]
    trained: str
    evaluated: str
    """The folders of the stages before."""


Run: TypeAlias = Annotated[PrepareRun | GenerateRun | TrainRun | EvaluateRun | PublishRun, Field(discriminator="stage")]
_RUN: TypeAdapter[Run] = TypeAdapter(Run)


def read_run(text: str | bytes) -> Run:
    """A run file's text as its model.

    Raises:
        pydantic.ValidationError: the text is no run file of this version.
    """
    return _RUN.validate_json(text)


def stage_key(run: Run) -> StageKey:
    """Which step of the pipeline a run file is for."""
    return StageKey(run.stage, run.teacher.name if isinstance(run, GenerateRun) else "")


def looks_only(run: Run) -> bool:
    """Whether a run makes nothing: it looks whether a teacher's answers are there."""
    return isinstance(run, GenerateRun) and run.look_only


def name_of_job(run: Run) -> str:
    """The name of the Job that carries a run out, and of the ConfigMap with its run file."""
    return job_name(run.job.name, stage_key(run), run.attempt, look_only=looks_only(run))

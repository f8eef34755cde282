"""The status of a DistillationJob. The contract is the conditions; the phase is for people."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kubedistill_api.base import Count, Decimal, Digest, Text, Timestamp, Tolerant, Uri, Word


class StatusModel(Tolerant):
    """A part of the status. A newer operator may have written fields that this one does not know."""


class Phase(StrEnum):
    """One word for people, and for a printer column."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    STARTING_TEACHER = "StartingTeacher"
    GENERATING = "Generating"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PUBLISHING = "Publishing"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What can be waited for."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    TEACHER_READY = "TeacherReady"
    GENERATED = "Generated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class ConditionStatus(StrEnum):
    """As in Kubernetes."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(StatusModel):
    """As `metav1.Condition`."""

    type: Annotated[str, Field(max_length=64)]
    """What it is about."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=64)]
    """A constant word for machines."""
    message: Annotated[str, Field(max_length=2048)]
    """A sentence to act on."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation of the spec it speaks of."""


class StageState(StrEnum):
    """Where a stage is."""

    PENDING = "Pending"
    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SKIPPED = "Skipped"
    REUSED = "Reused"


class Progress(StatusModel):
    """How far a stage is."""

    done: Count = 0
    """Units done."""
    total: Count = 0
    """Units in all; 0: not yet known."""
    unit: Word = ""
    """What is counted: rows, steps, bytes."""
    eta_seconds: Count | None = None
    """Seconds that are left at this rate."""
    rate_per_second: Decimal = ""
    """Units each second."""
    updated_at: Timestamp = ""
    """When a stage last said so."""
    message: Text = ""
    """What it is doing, in a few words."""


class RejectReason(StatusModel):
    """How many answers were rejected for one reason."""

    reason: Word
    """Which."""
    count: Count
    """How many."""


class Ledger(StatusModel):
    """What became of every prompt's answer."""

    accepted: Count = 0
    """Answers that may train."""
    rejected: Count = 0
    """Answers that may not."""
    top_reasons: Annotated[list[RejectReason], Field(max_length=10)] = []
    """Why, most frequent first."""


class StageStatus(StatusModel):
    """One step of the pipeline."""

    name: Word
    """Prepare, Generate:<teacher>, Train, Evaluate or Publish."""
    state: StageState = StageState.PENDING
    """Where it is."""
    attempt: Count = 0
    """The number of the attempt that runs or ran last; 0: none yet."""
    restarts: Count = 0
    """Attempts after failures that count against `runPolicy.maxRestarts`."""
    preemptions: Count = 0
    """Attempts after evictions and preemptions, which do not count."""
    start_time: Timestamp | None = None
    """Of the first attempt."""
    completion_time: Timestamp | None = None
    """When it ended."""
    retry_time: Timestamp | None = None
    """When the next attempt may start."""
    job: Word = ""
    """The Job of the last attempt."""
    input_digest: Digest = ""
    """Digest of everything that shapes the output."""
    output_digest: Digest = ""
    """Digest of the output, as the stage reported it."""
    progress: Progress | None = None
    """How far it is."""
    output_uri: Uri | None = Field(default=None, alias="outputURI")
    """Where its output lies."""
    ledger: Ledger | None = None
    """Generate: what became of this teacher's answers."""


class Checkpoint(StatusModel):
    """A complete checkpoint."""

    step: Count
    """Optimizer steps done."""
    uri: Text = ""
    """Where it lies."""
    time: Timestamp = ""
    """When it was complete."""


class TrainingStatus(StatusModel):
    """The training's numbers."""

    step: Count = 0
    """Optimizer steps done."""
    total_steps: Count = 0
    """Optimizer steps in all."""
    loss: Decimal = ""
    """Mean loss of the last step, nats a target token."""
    validation_loss: Decimal = ""
    """Mean loss on the held-out answers at the last validation."""
    tokens_per_second: Decimal = ""
    """Tokens of prompt and answer, over all devices."""
    micro_batch_size: Count = 0
    """Sequences for each device and pass, as it is now."""
    last_checkpoint: Checkpoint | None = None
    """The newest complete one."""


class GateOutcome(StrEnum):
    """How a gate ended."""

    PASSED = "Passed"
    FAILED = "Failed"
    WARNED = "Warned"
    NONE = ""


class Score(StatusModel):
    """One metric, side by side."""

    metric: Word
    """Which."""
    student: Decimal = ""
    """The trained student."""
    baseline: Decimal = ""
    """The untrained student."""
    teacher: Decimal = ""
    """The teacher's recorded answers."""
    retained: Decimal = ""
    """Student / teacher (teacher / student where lower is better)."""
    gate: GateOutcome = GateOutcome.NONE
    """How its gate ended."""


class Result(StatusModel):
    """The model, once its upload was read back and its digest matched."""

    model_uri: Uri = Field(alias="modelURI")
    """Where it is."""
    digest: Digest
    """Of the manifest of its files."""
    size_bytes: Count
    """Of all its files."""
    formats: Annotated[list[Word], Field(max_length=4)] = []
    """Forms that were written."""
    dataset_uri: Text = Field(default="", alias="datasetURI")
    """The teacher's accepted answers."""
    report_uri: Text = Field(default="", alias="reportURI")
    """The report for people."""


class FailureClass(StrEnum):
    """What kind of failure it was; it decides whether trying again can help."""

    PREEMPTED = "Preempted"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DEVICE_OUT_OF_MEMORY = "DeviceOutOfMemory"
    BAD_CONFIGURATION = "BadConfiguration"
    BAD_DATA = "BadData"
    NOT_FOUND = "NotFound"
    DEADLINE = "Deadline"
    INFRASTRUCTURE = "Infrastructure"
    APPLICATION = "Application"


class Failure(StatusModel):
    """The last failure, with what a person needs to understand it."""

    stage: Word
    """Which stage, or `Teacher:<name>`."""
    attempt: Count = 0
    """Which attempt."""
    pod: Annotated[str, Field(max_length=253)] = ""
    """The pod that failed."""
    node: Annotated[str, Field(max_length=253)] = ""
    """Where it ran."""
    class_: FailureClass = Field(alias="class")
    """What kind."""
    reason: Word = ""
    """A constant word for machines."""
    exit_code: int | None = None
    """Of the container."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """A sentence to act on."""
    log_tail: Annotated[str, Field(max_length=4096)] = ""
    """The last lines of the log."""
    time: Timestamp = ""
    """When."""


class Estimate(StatusModel):
    """What Prepare expects, before any GPU is asked for."""

    rows: Count = 0
    """Training prompts."""
    validation_rows: Count = 0
    """Held-out prompts."""
    tokens_to_generate: Count = 0
    """Upper bound: rows x samples x maxTokens."""
    teacher_memory_bytes: Count = 0
    """Of each device: weights and a cache for one full context."""
    student_memory_bytes: Count = 0
    """Of each device: weights, gradients, optimizer, activations."""
    gpu_hours: Decimal = ""
    """Teacher and student together; 0 on CPU."""


class StageUsage(StatusModel):
    """What one stage used."""

    name: Word
    """Which."""
    seconds: Count = 0
    """Wall-clock time of its attempts."""
    gpu_seconds: Count = 0
    """GPUs x seconds."""


class Usage(StatusModel):
    """What was used."""

    gpu_seconds: Count = 0
    """GPUs x seconds, teacher included."""
    tokens_generated: Count = 0
    """By the teachers."""
    by_stage: Annotated[list[StageUsage], Field(max_length=16)] = []
    """One entry a step."""


class ResolvedModel(StatusModel):
    """A model, as Prepare found it."""

    role: Word = ""
    """teacher:<name> or student."""
    uri: Text
    """As asked."""
    revision: Word = ""
    """The commit, or the digest of the files where there are no commits."""
    parameters: Count = 0
    """Of the model."""
    size_bytes: Count = 0
    """Of its weights."""


class Resolved(StatusModel):
    """What names were resolved to."""

    spec_digest: Digest = ""
    """Of the spec that runs."""
    images: Annotated[dict[Word, Text], Field(max_length=4)] = {}
    """trainer and vllm; trainer-vllm where a teacher's engine is VLLM."""
    models: Annotated[list[ResolvedModel], Field(max_length=8)] = []
    """Teachers and student."""


class Status(StatusModel):
    """What came of the job."""

    observed_generation: int = -1
    """The generation of the spec this speaks of; -1: not yet seen."""
    phase: Phase = Phase.PENDING
    """For people; the contract is the conditions."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []
    """What can be waited for."""
    start_time: Timestamp | None = None
    """When the job was accepted; from then on most of the spec is fixed."""
    completion_time: Timestamp | None = None
    """When it succeeded or failed."""
    suspended_time: Timestamp | None = None
    """When it was last suspended; absent while it runs."""
    suspended_seconds: Count = 0
    """Time spent suspended, which deadlines do not count."""
    execution_attempt: Count = 0
    """Counts starts and resumptions."""
    teachers: Word = ""
    """Their names, for people (a printer column: those show one value of a list, the first)."""
    current_stage: Word = ""
    """The step that runs or failed (a printer column)."""
    progress: Word = ""
    """Of the current step, for people: `1200/4800 steps` (a printer column)."""
    score: Word = ""
    """Of the first gate or metric, for people (a printer column)."""
    reason: Word = ""
    """Of Succeeded, or of what is waited for (a printer column)."""
    stages: Annotated[
        list[StageStatus],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = []
    """The steps of the pipeline."""
    training: TrainingStatus | None = None
    """The training's numbers."""
    evaluation: Annotated[list[Score], Field(max_length=16)] = []
    """The comparison."""
    result: Result | None = None
    """The model; set once."""
    last_failure: Failure | None = None
    """The last failure, also one that was retried."""
    estimate: Estimate | None = None
    """What Prepare expects."""
    ledger: Ledger | None = None
    """What became of every answer, of all teachers together."""
    usage: Usage | None = None
    """What was used."""
    resolved: Resolved | None = None
    """What names were resolved to."""

    def condition(self, type_: ConditionType) -> Condition | None:
        """The condition of this type, if it was ever set."""
        return next((c for c in self.conditions if c.type == type_), None)

    def is_true(self, type_: ConditionType) -> bool:
        """Whether the condition is there and True."""
        condition = self.condition(type_)
        return condition is not None and condition.status is ConditionStatus.TRUE

    def stage(self, name: str) -> StageStatus | None:
        """The step of this name, if it was ever looked at."""
        return next((stage for stage in self.stages if stage.name == name), None)

    @property
    def finished(self) -> bool:
        """Whether the job has ended, one way or the other."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)

"""What a stage says at its end: at most 4 KiB in the termination message, the same in `<folder>/result.json`."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from kubedistill_api.base import Stage, Tolerant
from kubedistill_api.exits import Exit
from kubedistill_api.status import Checkpoint, Estimate, FailureClass, Ledger, ResolvedModel, Score

TERMINATION_MESSAGE_LIMIT = 4096
"""Bytes that the kubelet keeps."""


class ResultBase(Tolerant):
    """What every successful stage says."""

    schema_version: Literal[1] = 1
    outcome: Literal["Succeeded"] = "Succeeded"
    input_digest: str
    """As in the run file."""
    output_digest: str
    """Digest of what was made: the next stage's inputs name it."""
    folder: str
    """Where it lies, relative to the workspace."""
    reused: bool = False
    """Everything was there already."""
    seconds: float = 0.0
    """Wall-clock time of this attempt."""
    message: str = ""
    """A sentence for people."""


class GenerateResult(ResultBase):
    """One teacher's answers are there."""

    stage: Literal[Stage.GENERATE] = Stage.GENERATE
    teacher: str
    ledger: Ledger
    tokens_generated: int = 0
    missing_shards: int = 0
    """Shards that nobody has made yet: found by a look, or left to other workers."""


class PrepareResult(ResultBase):
    """The data are sound and everything that can be known beforehand fits."""

    stage: Literal[Stage.PREPARE] = Stage.PREPARE
    estimate: Estimate
    models: list[ResolvedModel] = []
    dropped_rows: int = 0
    """Broken rows that `maxInvalidShare` bore."""
    warnings: list[str] = []
    """At most a few sentences; all of them are in the report."""
    answers: list[GenerateResult] = []
    """Teachers whose answers are in the workspace already (`kubedistill_api.digests.generate_digest`): they are not
    asked, and no GPU is started for them."""
    report: str = ""
    """Path of the report, relative to the workspace."""


class TrainResult(ResultBase):
    """The student is trained; its weights lie in the folder, under `model`."""

    stage: Literal[Stage.TRAIN] = Stage.TRAIN
    steps: int
    loss: float
    """Mean of the last step, nats a target token."""
    validation_loss: float | None = None
    """Of the weights that were kept."""
    tokens_per_second: float = 0.0
    micro_batch_size: int
    last_checkpoint: Checkpoint | None = None
    parameters: int = 0
    """Of the student."""
    layers_kept: list[int] = []
    """Of the teacher, for a pruned student."""


class EvaluateResult(ResultBase):
    """The comparison was made and no gate stood in the way."""

    stage: Literal[Stage.EVALUATE] = Stage.EVALUATE
    scores: list[Score]
    report: str = ""
    """Path of the HTML report, relative to the workspace."""


class PublishResult(ResultBase):
    """The model is where it was asked for, read back and equal."""

    stage: Literal[Stage.PUBLISH] = Stage.PUBLISH
    model_uri: str = Field(alias="modelURI")
    digest: str
    size_bytes: int
    formats: list[str] = []
    report_uri: str = Field(default="", alias="reportURI")
    dataset_uri: str = Field(default="", alias="datasetURI")


class FailedResult(Tolerant):
    """A stage that could not do its work, in a constant word and a sentence."""

    schema_version: Literal[1] = 1
    outcome: Literal["Failed"] = "Failed"
    stage: Stage
    exit_code: int
    """One of `kubedistill_api.exits.Exit`."""
    class_: FailureClass = Field(alias="class")
    reason: str
    """A constant word, such as DataFileEmpty or ModelNotFound."""
    message: str
    """A sentence that says what to write or do instead."""
    scores: list[Score] = []
    """Evaluate: the comparison that a gate refused."""
    ledger: Ledger | None = None
    """Generate: what became of the answers so far."""


Success: TypeAlias = Annotated[
    PrepareResult | GenerateResult | TrainResult | EvaluateResult | PublishResult,
    Field(discriminator="stage"),
]
StageResult: TypeAlias = Annotated[Success | FailedResult, Field(discriminator=None)]
_SUCCESS: TypeAdapter[Success] = TypeAdapter(Success)
_RESULT: TypeAdapter[Success | FailedResult] = TypeAdapter(Success | FailedResult)

CLASS_OF_EXIT = {
    Exit.APPLICATION: FailureClass.APPLICATION,
    Exit.BAD_CONFIGURATION: FailureClass.BAD_CONFIGURATION,
    Exit.BAD_DATA: FailureClass.BAD_DATA,
    Exit.NOT_FOUND: FailureClass.NOT_FOUND,
    Exit.DEVICE_OUT_OF_MEMORY: FailureClass.DEVICE_OUT_OF_MEMORY,
    Exit.TRANSIENT: FailureClass.INFRASTRUCTURE,
    Exit.KILLED: FailureClass.APPLICATION,
    Exit.STOPPED_AT_CHECKPOINT: FailureClass.PREEMPTED,
}


def read_result(text: str | bytes) -> Success | FailedResult:
    """A termination message or `result.json` as its model.

    Raises:
        pydantic.ValidationError: the text is no result.
    """
    return _RESULT.validate_json(text)


def termination_message(result: Success | FailedResult) -> str:
    """A result as JSON that fits the termination message: long texts are cut, numbers never are."""
    text = result.model_dump_json(by_alias=True, exclude_defaults=False)
    while len(text.encode()) > TERMINATION_MESSAGE_LIMIT:
        result = _shortened(result)
        text = result.model_dump_json(by_alias=True)
    return text


def _shortened(result: Success | FailedResult) -> Success | FailedResult:
    if isinstance(result, PrepareResult) and result.warnings:
        return result.model_copy(update={"warnings": result.warnings[:-1]})
    return result.model_copy(update={"message": result.message[: len(result.message) * 3 // 4] + "…"})

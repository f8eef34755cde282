"""What shapes a stage's output, as a digest: equal digests mean that the output can be used again.

Each stage's digest names the output digests of the stages before it, so a change anywhere reaches exactly what depends
on it: another learning rate trains again and reuses the answers. Prepare and the operator both compute Generate's
digest here; that is how Prepare knows that the answers are there already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kubedistill_api.base import Stage
from kubedistill_api.generation import Reuse
from kubedistill_api.identity import digest
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.status import ResolvedModel
from kubedistill_api.teachers import Teacher

VERSION = 2
"""Raised when the meaning of the files in a folder changes, so that a new release never reads an old one's."""

_VOLATILE = {"suspend", "run_policy", "scheduling", "stage_templates", "credentials"}
"""Where, how long and with whose keys a job runs; nothing of it shapes a byte."""


def spec_digest(spec: DistillationJobSpec) -> str:
    """Of everything that shapes the job's outcome."""
    return digest(spec.model_dump(mode="json", by_alias=True, exclude=_VOLATILE))


def prepare_digest(spec: DistillationJobSpec) -> str:
    """Prepare checks the whole spec. It is cheap, and the stages after it name its output, not its input."""
    return _of(Stage.PREPARE, spec=spec_digest(spec))


def generate_digest(
    spec: DistillationJobSpec, teacher: str, prepared: str, models: Iterable[ResolvedModel], uid: str
) -> str:
    """One teacher's answers to the prompts of `prepared` (Prepare's output digest), at the revision among `models`.

    A branch that moved on is another teacher. The student's revision is left out: another student learns from the same
    answers.
    Placement, parallelism and the yield that is asked for are left out. Shards stay in: they name the files of a
    half-done folder, and what of a reasoned answer is learnt: it is what the rows hold and later turns are asked with.
    `reuse: Never` puts the job's uid in.
    """
    generation = spec.generation.model_dump(mode="json", by_alias=True, exclude={"parallelism", "reuse", "min_yield"})
    return _of(
        Stage.GENERATE,
        task=spec.task,
        teacher=_shape_of(spec.teacher(teacher)),
        revisions=_revisions(model for model in models if model.role == f"teacher:{teacher}"),
        share=share(spec, teacher),
        generation=generation,
        labels=spec.data.labels,
        max_sequence_length=spec.training.hyperparameters.max_sequence_length,
        prepared=prepared,
        salt=uid if spec.generation.reuse is Reuse.NEVER else "",
    )


def train_digest(spec: DistillationJobSpec, prepared: str, models: Iterable[ResolvedModel], answers: list[str]) -> str:
    """The student trained on `answers` (Generate's output digests, in the order of the teachers), from `models`.

    The revisions keep a checkpoint of adapters from being laid over the weights of another commit.
    The micro batch is left out: it is halved when the device's memory is full, and the training goes on.
    """
    training = spec.training.model_dump(
        mode="json",
        by_alias=True,
        exclude={"checkpoints": True, "on_out_of_memory": True, "hyperparameters": {"micro_batch_size"}},
    )
    return _of(
        Stage.TRAIN,
        task=spec.task,
        student=spec.student.model_dump(mode="json", by_alias=True),
        teachers={teacher.name: _model_of(teacher) for teacher in spec.teachers},
        revisions=_revisions(models),
        signal=[spec.generation.signal, spec.generation.sampled_tail, spec.generation.reasoning_target],
        training=training,
        prepared=prepared,
        answers=answers,
    )


def evaluate_digest(spec: DistillationJobSpec, prepared: str, answers: list[str], trained: str) -> str:
    """The comparison of the student `trained` (Train's output digest)."""
    return _of(
        Stage.EVALUATE,
        task=spec.task,
        evaluation=spec.evaluation.model_dump(mode="json", by_alias=True),
        generation=spec.generation.model_dump(mode="json", by_alias=True, include={"max_tokens", "temperature"}),
        labels=spec.data.labels,
        prepared=prepared,
        answers=answers,
        trained=trained,
    )


def publish_digest(spec: DistillationJobSpec, trained: str, evaluated: str) -> str:
    """The published model: the model card tells the whole spec."""
    return _of(Stage.PUBLISH, spec=spec_digest(spec), trained=trained, evaluated=evaluated)


def share(spec: DistillationJobSpec, teacher: str) -> tuple[float, float]:
    """The part [from, to) of the unit interval of prompt hashes that this teacher answers, by the weights."""
    total = sum(t.weight for t in spec.teachers)
    start = 0.0
    for index, one in enumerate(spec.teachers):
        end = 1.0 if index == len(spec.teachers) - 1 else min(1.0, start + one.weight / total)
        if one.name == teacher:
            return start, end
        start = end
    raise KeyError(teacher)


def _shape_of(teacher: Teacher) -> Mapping[str, Any]:
    """What of a teacher shapes its answers: the model and how it is quantised or bounded, not where it runs."""
    how: dict[str, Any] = {}
    if teacher.serving is not None:
        how = {"serving": {"extra": teacher.serving.extra_args, "length": teacher.serving.max_model_len}}
    if teacher.batch is not None:
        how = {"batch": {"engine": teacher.batch.engine, "precision": teacher.batch.precision}}
    if teacher.external is not None:
        how = {"external": {"url": teacher.external.url, "model": teacher.external.model}}
    return {"name": teacher.name, "model": _model_of(teacher), **how}


def _model_of(teacher: Teacher) -> dict[str, Any] | None:
    return teacher.model.model_dump(mode="json", by_alias=True) if teacher.model else None


def _revisions(models: Iterable[ResolvedModel]) -> dict[str, str]:
    return {model.role: model.revision for model in models}


def _of(stage: Stage, **parts: Any) -> str:
    return digest({"stage": stage, "version": VERSION, **parts})

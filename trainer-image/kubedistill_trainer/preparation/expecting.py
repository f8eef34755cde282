"""What the job will take, from the rows and the models."""

from __future__ import annotations

from collections.abc import Sequence

from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.status import Estimate
from kubedistill_trainer.core import estimates
from kubedistill_trainer.core.estimates import ModelShape, TrainingPlan
from kubedistill_trainer.preparation.looking import Look


def estimate(
    spec: DistillationJobSpec, student: Look, teachers: dict[str, Look], train_tokens: Sequence[int], held_out: int
) -> Estimate:
    """Rows, tokens, memory and GPU-hours. `train_tokens` has each training prompt's length."""
    rows = len(train_tokens)
    tokens = estimates.tokens_to_generate(
        rows + held_out, spec.generation.samples_per_prompt, spec.generation.max_tokens
    )
    shape, plan, training = student_shape(spec, student), plan_of(spec), spec.training
    seen = (sum(train_tokens) + rows * spec.generation.max_tokens) * training.hyperparameters.epochs
    beside = shapes_beside(spec, teachers)
    hours = 0.0
    if training.gpus_per_node:
        hours += estimates.training_gpu_hours(shape, seen, gradient_checkpointing=training.gradient_checkpointing)
        hours += sum(estimates.reading_gpu_hours(teacher, seen) for teacher in beside)
    hours += sum(_teaching_hours(spec, name, look, tokens) for name, look in teachers.items())
    return Estimate(
        rows=rows,
        validation_rows=held_out,
        tokens_to_generate=tokens,
        teacher_memory_bytes=max((_teacher_bytes(spec, name, look) for name, look in teachers.items()), default=0),
        student_memory_bytes=estimates.student_bytes(shape, plan)
        + sum(estimates.beside_bytes(teacher, training.precision) for teacher in beside),
        gpu_hours=f"{hours:.3g}",
    )


def student_shape(spec: DistillationJobSpec, student: Look) -> ModelShape:
    """Of the student as it is trained: of a pruned one, with the layers that it keeps."""
    pruned = spec.student.pruned_from
    return student.shape if pruned is None else student.shape.pruned(pruned.layers)


def shapes_beside(spec: DistillationJobSpec, teachers: dict[str, Look]) -> list[ModelShape]:
    """Of the teachers whose weights stand beside the student while it is trained."""
    return [look.shape for look in teachers.values()] if spec.training.objective.looks_inside else []


def plan_of(spec: DistillationJobSpec) -> TrainingPlan:
    """What the memory of a training process depends on, from the spec."""
    training = spec.training
    return TrainingPlan(
        world_size=training.world_size,
        zero_stage=training.deepspeed.zero_stage,
        precision=training.precision,
        micro_batch=training.hyperparameters.micro_batch_size,
        sequence_length=training.hyperparameters.max_sequence_length,
        gradient_checkpointing=training.gradient_checkpointing,
        offload_optimizer=training.deepspeed.offload_optimizer,
        offload_parameters=training.deepspeed.offload_parameters,
        adapter_rank=spec.student.adapter.rank if spec.student.adapter else None,
        four_bits=spec.student.in_four_bits,
    )


def _gpus(spec: DistillationJobSpec, name: str) -> int:
    teacher = spec.teacher(name)
    if teacher.serving is not None:
        return teacher.serving.gpus_per_node * teacher.serving.nodes
    return teacher.batch.gpus if teacher.batch is not None else 0


def _teaching_hours(spec: DistillationJobSpec, name: str, look: Look, tokens: int) -> float:
    share = spec.teacher(name).weight / sum(teacher.weight for teacher in spec.teachers)
    return estimates.generation_gpu_hours(look.shape, round(tokens * share)) if _gpus(spec, name) else 0.0


def _teacher_bytes(spec: DistillationJobSpec, name: str, look: Look) -> int:
    serving = spec.teacher(name).serving
    context = (serving.max_model_len if serving else None) or look.positions or 4096
    per_parameter = look.size_bytes / max(1, look.shape.parameters)
    return estimates.teacher_bytes(look.shape, context, max(1, _gpus(spec, name)), per_parameter)

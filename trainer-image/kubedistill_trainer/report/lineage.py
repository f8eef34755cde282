"""Where a student comes from, as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kubedistill_api.data import Data
from kubedistill_api.generation import Generation, Signal
from kubedistill_api.results import GenerateResult, PrepareResult, TrainResult
from kubedistill_api.status import Ledger, RejectReason, ResolvedModel
from kubedistill_api.student import Student
from kubedistill_api.teachers import ModelRef, Teacher
from kubedistill_api.training import BETA, ObjectiveType, Training
from kubedistill_trainer.report.content import amount


@dataclass(frozen=True)
class Origin:
    """What the stages before were told and what they said."""

    spec_digest: str
    teachers: Sequence[Teacher]
    student: Student
    data: Data
    generation: Generation
    training: Training
    prepare: PrepareResult
    generates: Sequence[GenerateResult]
    train: TrainResult

    def resolved(self, role: str) -> ResolvedModel | None:
        """A model as Prepare found it; None if Prepare said nothing of it."""
        return next((model for model in self.prepare.models if model.role == role), None)

    @property
    def ledger(self) -> Ledger:
        """All teachers' answers together."""
        counts: dict[str, int] = {}
        for result in self.generates:
            for reason in result.ledger.top_reasons:
                counts[reason.reason] = counts.get(reason.reason, 0) + reason.count
        most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:10]
        return Ledger(
            accepted=sum(result.ledger.accepted for result in self.generates),
            rejected=sum(result.ledger.rejected for result in self.generates),
            top_reasons=[RejectReason(reason=reason, count=count) for reason, count in most],
        )


def lineage(origin: Origin) -> list[tuple[str, str]]:
    """Label and value of each line; lines that would be empty are left out."""
    lines = [
        *(("Teacher", teacher_line(teacher, origin)) for teacher in origin.teachers),
        ("Student", student_line(origin)),
        ("Prompts", _join((ref.uri for ref in (origin.data.train, origin.data.validation) if ref), " and ")),
        ("Digest of the prompts", origin.prepare.output_digest),
        ("Teacher's answers", answers_line(origin)),
        ("Digest of the answers", _join(result.output_digest for result in origin.generates)),
        ("Training", training_line(origin)),
        ("Digest of the weights", origin.train.output_digest),
        ("Digest of the spec", origin.spec_digest),
    ]
    return [(label, value) for label, value in lines if value]


def teacher_line(teacher: Teacher, origin: Origin) -> str:
    """A teacher: its weights at their revision, or the server that answered."""
    parts = [model_line(teacher.model, origin.resolved(f"teacher:{teacher.name}")) if teacher.model else ""]
    if teacher.external is not None:
        terms = "its terms were accepted for this use" if teacher.external.terms_accepted else ""
        parts = [f"{teacher.external.model} at {teacher.external.url}", terms]
    if len(origin.teachers) > 1:
        accepted = sum(result.ledger.accepted for result in origin.generates if result.teacher == teacher.name)
        parts.append(f"{accepted:,} of the answers")
    return f"{teacher.name}: {_join(parts)}"


def student_line(origin: Origin) -> str:
    """What the student was made from, and how large it is."""
    pruned, adapter = origin.student.pruned_from, origin.student.adapter
    parameters = f"{amount(origin.train.parameters)} parameters" if origin.train.parameters else ""
    trained = f"{adapter.type} of rank {adapter.rank}" if adapter else ""
    if pruned is not None:
        kept = ", ".join(map(str, origin.train.layers_kept))
        return _join(
            [f"{pruned.layers} layers of {pruned.teacher}" + (f" ({kept})" if kept else ""), parameters, trained]
        )
    assert origin.student.model is not None  # a rule of the API: one of the two is there
    return _join([model_line(origin.student.model, origin.resolved("student")), parameters, trained])


def model_line(ref: ModelRef, found: ResolvedModel | None) -> str:
    """A model's URI and the revision that was read."""
    revision = (found.revision if found else "") or ref.revision
    return _join([ref.uri, f"revision {revision}" if revision else ""])


def answers_line(origin: Origin) -> str:
    """How the answers were made."""
    how = origin.generation
    signal = f"with the {how.top_k} likeliest tokens at each position" if how.signal is Signal.TOP_K else "as text"
    return _join(
        [
            f"{origin.ledger.accepted:,} accepted, {signal}",
            f"temperature {how.temperature:g}, top-p {how.top_p:g}, at most {how.max_tokens} tokens, seed {how.seed}",
        ]
    )


def training_line(origin: Origin) -> str:
    """Objective and the settings that shape the weights."""
    objective, hyper = origin.training.objective, origin.training.hyperparameters
    hidden, relations = objective.hidden_states, objective.attention
    beta = f", beta {objective.teacher_share:g}" if objective.type in BETA else ""
    soft = f" (weight {objective.soft_weight:g}{beta})" if objective.type is not ObjectiveType.CROSS_ENTROPY else ""
    return _join(
        [
            f"{objective.type}{soft}",
            f"hidden states {hidden.layers} (weight {hidden.weight:g})" if hidden else "",
            f"attention (weight {relations.weight:g})" if relations else "",
            f"{origin.train.steps:,} steps of {hyper.global_batch_size}",
            f"learning rate {hyper.learning_rate:g}",
            f"{origin.training.precision}",
            f"seed {hyper.seed}",
        ]
    )


def _join(parts: Iterable[str | None], by: str = ", ") -> str:
    return by.join(part for part in parts if part)

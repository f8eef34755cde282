"""The model card: what is published beside the weights, so that nobody has to ask where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from kubedistill_api.base import Task
from kubedistill_api.student import Student
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.report.content import Scorecard
from kubedistill_trainer.report.lineage import Origin, lineage
from kubedistill_trainer.report.page import template

_HUB = "hf://"


@dataclass(frozen=True)
class ModelCard:
    """What the card says."""

    name: str
    """Of the job."""
    task: Task
    uri: str
    """Where the model is published."""
    formats: Sequence[str]
    gguf: str
    """The name of the GGUF file, if that is among the formats."""
    card: Scorecard
    origin: Origin


def as_readme(model: ModelCard) -> str:
    """The card as `README.md`, with the front matter that model hubs read."""
    return template("card.md.j2").render(
        model=model,
        card=model.card,
        front_matter=yaml.safe_dump(front_matter(model.origin.student, model.origin.teachers), sort_keys=False),
        lineage=lineage(model.origin),
        obligations=obligations(model.origin.student, model.origin.teachers),
    )


def front_matter(student: Student, teachers: Sequence[Teacher]) -> dict[str, object]:
    """What model hubs index. The licence is never guessed: it is whatever the origins' licences say."""
    bases = [uri.removeprefix(_HUB) for uri in [ancestor(student, teachers)] if uri.startswith(_HUB)]
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "as-the-models-it-comes-from",
        **({"base_model": bases} if bases else {}),
        "tags": ["distillation", "kubedistill"],
    }


def ancestor(student: Student, teachers: Sequence[Teacher]) -> str:
    """The URI of the weights that the student began with."""
    if student.model is not None:
        return student.model.uri
    name = student.pruned_from.teacher if student.pruned_from else ""
    return next((teacher.model.uri for teacher in teachers if teacher.name == name and teacher.model), "")


def obligations(student: Student, teachers: Sequence[Teacher]) -> list[str]:
    """Whose terms bind whoever uses the model."""
    weights = ancestor(student, teachers)
    lines = [f"Its weights began as those of {weights}, whose licence applies to them."]
    for teacher in teachers:
        if teacher.external is not None:
            server = f"{teacher.external.model} at {teacher.external.url}"
            lines.append(
                f"Its training answers were made by {server}. Whoever ran the job declared that the provider's terms "
                f"allow this use (termsAccepted: {str(teacher.external.terms_accepted).lower()})."
            )
        elif teacher.model is not None and teacher.model.uri != weights:
            lines.append(f"Its training answers were made by {teacher.model.uri}, whose licence may speak of outputs.")
    return lines

"""Equal digests mean that what was made can be used again; another commit of a model is another model."""

from __future__ import annotations

from kubedistill_api.digests import generate_digest, train_digest
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.status import ResolvedModel

SPEC = DistillationJobSpec.model_validate(
    {
        "teachers": [{"name": name, "model": {"uri": f"hf://acme/{name}"}} for name in ("big", "wise")],
        "student": {"model": {"uri": "hf://acme/small"}},
        "data": {"train": {"uri": "s3://data/prompts.jsonl"}},
        "generation": {"signal": "Text"},
        "output": {"uri": "s3://models/support"},
    }
)


def models(**revisions: str) -> list[ResolvedModel]:
    """What Prepare found of the three models, all at commit 1 but these."""
    roles = {"teacher:big": "big", "teacher:wise": "wise", "student": "small"}
    return [
        ResolvedModel(role=role, uri=f"hf://acme/{name}", revision=revisions.get(name, "1"))
        for role, name in roles.items()
    ]


def answers(teacher: str, found: list[ResolvedModel]) -> str:
    return generate_digest(SPEC, teacher, "sha256:prepared", found, "uid")


def training(found: list[ResolvedModel]) -> str:
    return train_digest(SPEC, "sha256:prepared", found, ["sha256:a", "sha256:b"])


def test_answers_belong_to_the_commit_of_the_teacher_that_gave_them() -> None:
    moved = models(big="2")
    assert answers("big", moved) != answers("big", models())
    assert answers("wise", moved) == answers("wise", models())


def test_another_student_learns_from_the_same_answers() -> None:
    assert answers("big", models(small="2")) == answers("big", models())


def test_a_training_belongs_to_the_commits_that_it_read() -> None:
    seen = [training(models()), training(models(small="2")), training(models(big="2"))]
    assert len(set(seen)) == 3

"""How the prompts are shared among the teachers, and how long their limits make them take."""

from __future__ import annotations

from collections.abc import Sequence

from kubedistill_api.digests import share
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.generation.plan import share_of
from kubedistill_trainer.store.rows import PromptRow


def check(spec: DistillationJobSpec, train: Sequence[PromptRow], valid: Sequence[PromptRow]) -> list[str]:
    """Check that every teacher has something to do, before the first of them is started; notes come back.

    Raises:
        BadData: no training prompt falls into the share of one of them.
    """
    notes = []
    for teacher in spec.teachers:
        mine, held_out = (share_of(rows, *share(spec, teacher.name)) for rows in (train, valid))
        if not mine:
            raise BadData(
                "NoPrompts",
                f"No training prompt falls into the share of teacher {teacher.name} (weight {teacher.weight:g} of "
                f"{sum(each.weight for each in spec.teachers):g}, {len(train)} prompts in all): raise its weight, "
                "leave it out, or give data.train more rows.",
            )
        if len(spec.teachers) > 1:
            compared = f"{len(held_out)} that are held out" if held_out else "none that is held out: it is not compared"
            notes.append(f"Teacher {teacher.name} answers {len(mine)} training prompts and {compared}.")
        notes += _pace(teacher, [*mine, *held_out], spec.generation.samples_per_prompt)
    return notes


def _pace(teacher: Teacher, rows: Sequence[PromptRow], samples: int) -> list[str]:
    limit = teacher.external.requests_per_minute if teacher.external else None
    if limit is None:
        return []
    answers = samples * sum(1 + sum(_is_answer(message) for message in row.chat) for row in rows)
    minutes = answers / limit
    takes = f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.0f} minutes"
    return [f"Teacher {teacher.name} takes {limit} requests a minute: {answers} answers last at least {takes}."]


def _is_answer(message: dict[str, object]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")

"""How the prompts are shared among the teachers, and how long their limits make them take."""

from __future__ import annotations

from collections.abc import Sequence

from kubedistill_api.digests import share
from kubedistill_api.generation import Generation
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
        notes += _pace(teacher, [*mine, *held_out], spec.generation)
    return notes


def _pace(teacher: Teacher, rows: Sequence[PromptRow], generation: Generation) -> list[str]:
    if teacher.external is None:
        return []
    turns = sum(1 + sum(_is_answer(message) for message in row.chat) for row in rows)
    answers, longest = generation.samples_per_prompt * turns, generation.max_tokens
    notes = []
    if limit := teacher.external.requests_per_minute:
        takes = _takes(answers / limit)
        notes.append(
            f"Teacher {teacher.name} takes {limit} requests a minute: {answers} answers last at least {takes}."
        )
    if limit := teacher.external.tokens_per_minute:
        takes = _takes(answers * longest / limit)
        notes.append(
            f"Teacher {teacher.name} takes {limit} tokens a minute: {answers} answers last {takes} if each has "
            f"{longest} tokens, and as much longer as their prompts are."
        )
    return notes


def _takes(minutes: float) -> str:
    return f"{minutes / 60:.1f} hours" if minutes >= 120 else f"{minutes:.0f} minutes"


def _is_answer(message: dict[str, object]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")

"""The teacher's answers to held-out prompts: what every model is put to, and what its answers stand beside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubedistill_api.run import EvaluateRun
from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.comparison import Measured, Yardstick, match
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.evaluation import answering
from kubedistill_trainer.evaluation.meter import Exam
from kubedistill_trainer.models import load_tokenizer
from kubedistill_trainer.report.content import Sample, Turn
from kubedistill_trainer.report.lineage import Origin
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.history import origin_of
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.rows import fetch_tokenizer
from kubedistill_trainer.store.shards import AnswerRow, read_answers


@dataclass(frozen=True)
class HeldOut:
    """The teacher's answers to held-out prompts, and what is known of how they came to be."""

    rows: Sequence[AnswerRow]
    """All accepted answers."""
    asked: Sequence[AnswerRow]
    """One answer to each of at most `evaluation.maxRows` prompts: those that students answer too."""
    by: Yardstick
    """For the prompts that are asked, in their order."""
    exam: Exam
    origin: Origin


def gather(run: EvaluateRun, context: StageContext) -> HeldOut:
    """What the stages before left."""
    rows = list(read_answers(context.workspace, run.answers, "valid"))
    if not rows:
        raise BadData(
            "NoHeldOutAnswers",
            "No held-out prompt has an accepted answer, so nothing can be compared: raise data.validationFraction, "
            "or give data.validation more rows.",
        )
    asked = chosen(rows, run.evaluation.max_rows)
    return HeldOut(
        rows=rows,
        asked=asked,
        by=Yardstick(
            run.task,
            run.data.labels,
            expected=[row.label for row in asked],
            teacher=[row.text for row in asked],
            guidance=Guidance.of(run.task, run.generation, run.data.labels),
            names=[row.teacher for row in asked],
        ),
        exam=Exam(
            examples={
                teacher.name: examples_of(mine, context.scratch / "held-out" / teacher.name)
                for teacher in run.teachers
                if (mine := [row for row in rows if row.teacher == teacher.name])
            },
            questions=[question(row, run.generation.max_tokens) for row in asked],
            tokenizer=load_tokenizer(fetch_tokenizer(context.workspace, run.prepared, context.scratch)),
            packing=run.training.hyperparameters.packing,
        ),
        origin=origin_of(run, context),
    )


def examples_of(rows: Sequence[AnswerRow], folder: Path) -> list[Example]:
    """Answers as the losses take them, with the teacher's logprobs if all have them."""
    stored = Examples.write(folder, rows, signals=all(row.signal is not None for row in rows))
    return [stored[index] for index in range(len(stored))]


def chosen(rows: Sequence[AnswerRow], limit: int) -> list[AnswerRow]:
    """The first answer to each prompt, of at most `limit` prompts. Ids are digests: their order is as good as chance,
    and the same in every run.
    """
    first: dict[str, AnswerRow] = {}
    for row in sorted(rows, key=lambda row: (row.row_id, row.sample, row.teacher)):
        first.setdefault(row.row_id, row)
    return list(first.values())[:limit]


def question(row: AnswerRow, max_tokens: int) -> answering.Question:
    """What a student is given of a row: everything before the teacher's last answer."""
    start, stop = last_answer(row)
    return answering.Question(
        tuple(int(token) for token in row.input_ids[:start]), answering.limit_for(stop - start, max_tokens)
    )


def last_answer(row: AnswerRow) -> tuple[int, int]:
    """Where the teacher's last answer begins in the row's tokens, and where it is over."""
    stop = len(row.target_mask)
    while not row.target_mask[stop - 1]:
        stop -= 1
    start = stop
    while start and row.target_mask[start - 1]:
        start -= 1
    return start, stop


def side_by_side(held_out: HeldOut, before: Measured, after: Measured) -> list[Sample]:
    """Every prompt that was asked, with all its answers."""
    earlier: Sequence[str | None] = before.answers or [None] * len(held_out.asked)
    answers = zip(held_out.asked, earlier, after.answers or [], strict=True)
    return [
        Sample(
            row_id=row.row_id,
            prompt=prompt_of(row),
            before=old,
            after=new,
            teacher=row.text,
            label=row.label,
            match=match(index, old, new, held_out.by),
            teacher_name=row.teacher,
        )
        for index, (row, old, new) in enumerate(answers)
    ]


def prompt_of(row: AnswerRow) -> list[Turn]:
    """The messages of a row before its last answer."""
    messages = json.loads(row.messages)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return [Turn(message["role"], str(message.get("content") or "")) for message in messages]

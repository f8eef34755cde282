"""Which rows train and which are held out, and what became of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kubedistill_api.base import Task
from kubedistill_api.data import Data, OnInvalidRow
from kubedistill_trainer.core.rows import Row, RowError, is_held_out, parse_row, unknown_columns
from kubedistill_trainer.errors import BadConfiguration, BadData
from kubedistill_trainer.preparation.files import RawRow
from kubedistill_trainer.preparation.labels import check_row

SHOWN = 3
"""Broken rows that a message names."""


@dataclass
class Choice:
    """The rows that stay."""

    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Why rows were left out, and how many."""
    broken: list[str] = field(default_factory=list)
    """Place and cause of every broken row."""


def choose(data: Data, task: Task, train: Sequence[RawRow], valid: Sequence[RawRow] | None) -> Choice:
    """Parse, split, and take out twins: of equal rows one stays, and no prompt stands on both sides.

    Raises:
        BadConfiguration: `data.columns` names no field of ours.
        BadData: more rows are broken than the spec bears, or too few are left.
    """
    if wrong := unknown_columns(data.columns):
        raise BadConfiguration("UnknownColumn", "; ".join(wrong))
    choice = Choice()
    rows = list(_parsed(data, task, train, choice))
    held_out = list(_parsed(data, task, valid or (), choice))
    _bear(data, choice, len(train) + len(valid or ()))
    if valid is None:
        held_out = [row for row in rows if is_held_out(row, data.validation_fraction)]
        rows = [row for row in rows if not is_held_out(row, data.validation_fraction)]
    choice.valid = _distinct(held_out, choice)
    prompts = {row.prompt_key for row in choice.valid}
    apart = [row for row in rows if row.prompt_key not in prompts]
    choice.dropped["its prompt is held out"] += len(rows) - len(apart)
    choice.train = _distinct(apart, choice)[: data.max_rows]
    return choice


def fit(choice: Choice, tokens: Callable[[Row], int], limit: int) -> None:
    """Leave out rows whose prompt is longer than `limit` tokens.

    Raises:
        BadData: none is left on one of the sides.
    """
    for side in (choice.train, choice.valid):
        short = [row for row in side if tokens(row) <= limit]
        choice.dropped[f"its prompt is longer than {limit} tokens"] += len(side) - len(short)
        side[:] = short
    for name, side in (("train", choice.train), ("are held out", choice.valid)):
        if not side:
            why = "; ".join(f"{count} because {reason}" for reason, count in choice.dropped.items() if count)
            hint = "" if name == "train" else ": write data.validation, or raise data.validationFraction"
            raise BadData("NoRowsLeft", f"No rows {name}{hint}. Left out: {why or 'none'}.")


def _parsed(data: Data, task: Task, raw_rows: Iterable[RawRow], choice: Choice) -> Iterable[Row]:
    for raw in raw_rows:
        if raw.error:
            choice.broken.append(f"{raw.place}, {raw.error}")
            continue
        try:
            row = parse_row(raw.value, data.columns, data.system_prompt)
            check_row(row, task, data.labels)
        except RowError as error:
            choice.broken.append(f"{raw.place}: {error}")
        else:
            yield row


def _bear(data: Data, choice: Choice, total: int) -> None:
    broken = len(choice.broken)
    share = 0.0 if data.on_invalid_row is OnInvalidRow.FAIL else data.max_invalid_share
    if broken > share * total:
        bears = "data.onInvalidRow: Fail bears none" if not share else f"data.maxInvalidShare bears {share:.0%}"
        shown = "; ".join(choice.broken[:SHOWN])
        raise BadData("InvalidRows", f"{broken} of {total} rows cannot be used ({bears}). First: {shown}.")
    if broken == total:
        raise BadData("InvalidRows", f"No row can be used. First: {choice.broken[0] if broken else 'none is there'}.")
    choice.dropped["it is broken"] += broken


def _distinct(rows: Sequence[Row], choice: Choice) -> list[Row]:
    distinct = list({row.row_id: row for row in rows}.values())
    choice.dropped["an equal row is there"] += len(rows) - len(distinct)
    return distinct

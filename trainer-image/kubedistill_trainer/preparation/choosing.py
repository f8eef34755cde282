"""Which rows train and which are held out, and what became of the others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from kubedistill_api.base import Task
from kubedistill_api.data import Data, OnInvalidRow
from kubedistill_trainer.core.rows import LabelError, Row, RowError, is_held_out, parse_row, unknown_columns
from kubedistill_trainer.errors import BadConfiguration, BadData
from kubedistill_trainer.preparation.forms import RawRow
from kubedistill_trainer.preparation.labels import check_row
from kubedistill_trainer.preparation.left_out import LeftOut, Reason

SHOWN = 3
"""Broken rows that a message names."""
AT_ONCE = 512
"""Prompts that are measured together, at most."""
CHARACTERS_AT_ONCE = 4_000_000
"""Of those: a tokenizer holds a hundred bytes for each of them, and long documents are not rare."""


@dataclass
class Choice:
    """The rows that stay. They are the only copy of the data in memory."""

    train: list[Row] = field(default_factory=list)
    valid: list[Row] = field(default_factory=list)
    beyond: int = 0
    """Rows that `data.maxRows` left out."""


def choose(
    data: Data, task: Task, train: Iterable[RawRow], valid: Iterable[RawRow] | None, left_out: LeftOut
) -> Choice:
    """Parse, split, and take out twins: of equal rows one stays, and no prompt stands on both sides.

    Both are read once, held-out rows first, so that it is known of a training row at once whether it may stay.

    Raises:
        BadConfiguration: `data.columns` names no field of ours.
        BadData: more rows are broken than the spec bears, or none can be used.
    """
    if wrong := unknown_columns(data.columns):
        raise BadConfiguration("UnknownColumn", "; ".join(wrong))
    choice, total = Choice(), _Total()
    apart = _Apart(left_out)
    for row in _parsed(data, task, total.counting(valid or ()), left_out):
        if apart.is_new(row):
            choice.valid.append(row)
    held_out = {_short(row.prompt_key) for row in choice.valid}
    apart = _Apart(left_out)
    for row in _parsed(data, task, total.counting(train), left_out):
        if valid is not None and _short(row.prompt_key) in held_out:
            left_out.add_row(Reason.HELD_OUT, row)
        elif apart.is_new(row):
            if valid is None and is_held_out(row, data.validation_fraction):
                choice.valid.append(row)
            elif data.max_rows is None or len(choice.train) < data.max_rows:
                choice.train.append(row)
            else:
                choice.beyond += 1
    _bear(data, left_out, total.rows)
    return choice


def fit(choice: Choice, measured: Callable[[Sequence[Row]], Sequence[int | str]], limit: int, out: LeftOut) -> None:
    """Leave out rows whose prompt is longer than `limit` tokens, or that the chat template refuses.

    `measured` gives the tokens of each prompt, or why it has none.

    Raises:
        BadData: none is left on one of the sides.
    """
    for side in (choice.train, choice.valid):
        side[:] = [row for row, tokens in _each(side, measured) if _fits(row, tokens, limit, out)]
    for name, side in (("train", choice.train), ("are held out", choice.valid)):
        if not side:
            why = "; ".join(out.sentences()) or "none"
            first = f" First: {out.refusal}." if out.refusal else ""
            hint = "" if name == "train" else ": write data.validation, or raise data.validationFraction"
            raise BadData(
                "NoRowsLeft", f"No rows {name}{hint}. Left out: {why}.{first} A prompt may have {limit} tokens."
            )


def _each(
    rows: Sequence[Row], measured: Callable[[Sequence[Row]], Sequence[int | str]]
) -> Iterator[tuple[Row, int | str]]:
    some: list[Row] = []
    characters = 0
    for row in rows:
        size = sum(len(message.content) for message in row.messages)
        if some and (len(some) == AT_ONCE or characters + size > CHARACTERS_AT_ONCE):
            yield from zip(some, measured(some), strict=True)
            some, characters = [], 0
        some.append(row)
        characters += size
    if some:
        yield from zip(some, measured(some), strict=True)


def _fits(row: Row, tokens: int | str, limit: int, out: LeftOut) -> bool:
    if isinstance(tokens, str):
        out.add_row(Reason.TEMPLATE, row, tokens)
    elif tokens > limit:
        out.add_row(Reason.TOO_LONG, row, f"its prompt has {tokens} tokens, and {limit} fit")
    else:
        return True
    return False


class _Total:
    """How many rows were read."""

    rows = 0

    def counting(self, raw_rows: Iterable[RawRow]) -> Iterator[RawRow]:
        for raw in raw_rows:
            self.rows += 1
            yield raw


class _Apart:
    """Tells twins."""

    def __init__(self, left_out: LeftOut) -> None:
        self._left_out = left_out
        self._places: dict[str, str] = {}

    def is_new(self, row: Row) -> bool:
        if (first := self._places.get(row.row_id)) is not None:
            self._left_out.add_row(Reason.DUPLICATE, row, f"an equal row is {first}")
            return False
        self._places[row.row_id] = row.place
        return True


def _parsed(data: Data, task: Task, raw_rows: Iterable[RawRow], left_out: LeftOut) -> Iterator[Row]:
    for raw in raw_rows:
        if raw.error:
            left_out.add(Reason.BROKEN, raw.place, raw.error, raw.value)
            continue
        try:
            row = parse_row(raw.value, data.columns, data.system_prompt, raw.place)
            check_row(row, task, data.labels)
        except LabelError as error:
            left_out.add(Reason.WRONG_LABEL, raw.place, str(error), raw.value)
        except RowError as error:
            left_out.add(Reason.BROKEN, raw.place, str(error), raw.value)
        else:
            yield row


def _bear(data: Data, left_out: LeftOut, total: int) -> None:
    broken = left_out.unusable
    share = 0.0 if data.on_invalid_row is OnInvalidRow.FAIL else data.max_invalid_share
    if broken > share * total + 1e-6:  # 0.29 * 100 is 28.999999999999996
        bears = "data.onInvalidRow: Fail bears none" if not share else f"data.maxInvalidShare bears {share:.0%}"
        shown = "; ".join(left_out.shown[:SHOWN])
        raise BadData("InvalidRows", f"{broken} of {total} rows cannot be used ({bears}). First: {shown}.")
    if broken == total:
        raise BadData("InvalidRows", f"No row can be used. First: {(left_out.shown or ['none is there'])[0]}.")


def _short(key: str) -> bytes:
    """So much of a key's digest that no two prompts share it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16]

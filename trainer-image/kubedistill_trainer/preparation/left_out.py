"""Rows that do not take part: each is a line of a file with its one reason, as soon as it is found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from kubedistill_trainer.core.rows import Row

FILE = "rejected.jsonl"
SHOWN = 50
"""Broken rows that the report names."""


class Reason(StrEnum):
    """Why a row is left out."""

    BROKEN = "Broken"
    WRONG_LABEL = "WrongLabel"
    DUPLICATE = "Duplicate"
    HELD_OUT = "HeldOut"
    TOO_LONG = "TooLong"
    TEMPLATE = "TemplateRefused"

    @property
    def words(self) -> str:
        """After "left out because"."""
        return _WORDS[self]


_WORDS = {
    Reason.BROKEN: "it is broken",
    Reason.WRONG_LABEL: "no answer could agree with its label",
    Reason.DUPLICATE: "an equal row is there",
    Reason.HELD_OUT: "its prompt is held out",
    Reason.TOO_LONG: "its prompt is longer than fits",
    Reason.TEMPLATE: "the student's chat template refuses it",
}
UNUSABLE = (Reason.BROKEN, Reason.WRONG_LABEL)
"""What `data.maxInvalidShare` counts."""


class LeftOut:
    """Counts, the first of the unusable rows, and a file with all: memory does not grow with them."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.counts: Counter[Reason] = Counter()
        self.shown: list[str] = []
        """Place and cause of the first unusable rows."""
        self.refusal = ""
        """What the chat template said first."""

    @property
    def unusable(self) -> int:
        """Rows that count against `data.maxInvalidShare`."""
        return sum(self.counts[reason] for reason in UNUSABLE)

    def add(self, reason: Reason, place: str, why: str, row: object) -> None:
        """A row as it was found: of one that could not be read, its text."""
        self.counts[reason] += 1
        if reason in UNUSABLE and len(self.shown) < SHOWN:
            self.shown.append(f"{place}{',' if why.startswith('column ') else ':'} {why}")
        if reason is Reason.TEMPLATE:
            self.refusal = self.refusal or f"{place}: {why}"
        line = {"place": place, "reason": reason, "why": why, "row": row}
        self._file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")

    def add_row(self, reason: Reason, row: Row, why: str = "") -> None:
        """A row that could be read."""
        self.add(reason, row.place, why or reason.words, row.as_dict())

    def flush(self) -> None:
        """Bring all lines to the file."""
        self._file.flush()

    def sentences(self) -> list[str]:
        """How many rows were left out for each reason."""
        return [f"{count} because {reason.words}" for reason, count in self.counts.items()]


@contextmanager
def left_out(scratch: Path) -> Iterator[tuple[LeftOut, Path]]:
    """An empty book and its file, which is gone afterwards."""
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / FILE
    try:
        # A text may hold half a character, which is why its row was left out; it is written as JSON writes it.
        with path.open("w", encoding="utf-8", errors="backslashreplace", buffering=1 << 16) as file:
            yield LeftOut(file), path
    finally:
        path.unlink(missing_ok=True)

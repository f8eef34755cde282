"""The figures of the points that are done: a file of lines, one a point, to which lines are only ever added."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations.points import Point

NAME = "points.jsonl"


@dataclass(frozen=True)
class Line:
    """One point that is done."""

    point: Point
    figures: dict[str, float]
    """As `measures.Figures`."""
    answers: str
    """Digest of the answers it learned from and is held against: points of other answers are no neighbours."""
    cost: dict[str, float]
    """Steps, tokens, targets, seconds and CPU seconds of the training."""
    machine: dict[str, Any]
    """Processor, threads and versions."""

    def as_json(self) -> str:
        return json.dumps({**self.__dict__, "point": self.point.as_json()}, ensure_ascii=False)


class Results:
    """A folder's lines."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def lines(self) -> list[Line]:
        """What is there. The rest of a line that was cut off by a kill is no line.

        Raises ValueError for a whole line that is none of these.
        """
        return list(_lines(self.path.read_bytes())) if self.path.exists() else []

    def missing(self, points: Iterable[Point], answers: str) -> list[Point]:
        """The points that are not done.

        Raises ValueError if the file is about other answers.
        """
        lines = self.lines()
        if others := {line.answers for line in lines} - {answers}:
            raise ValueError(
                f"{self.path} is about other answers ({', '.join(sorted(others))}, here {answers}), with which no "
                "figure can be compared: write another --results"
            )
        done = {line.point for line in lines}
        return [point for point in points if point not in done]

    def add(self, line: Line) -> None:
        """One line more; after the rest of one that was cut off, on a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.exists() else b""
        kept = whole[: whole.rfind(b"\n") + 1]
        with self.path.open("r+b" if whole else "wb") as file:
            file.truncate(len(kept))
            file.seek(len(kept))
            file.write(line.as_json().encode() + b"\n")


def _lines(data: bytes) -> Iterator[Line]:
    for text in data[: data.rfind(b"\n") + 1].splitlines():
        fields = json.loads(text)
        yield Line(**{**fields, "point": Point.from_json(fields["point"])})

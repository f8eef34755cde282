"""The forms of the user's files, row by row: JSON lines, a JSON array, Parquet. Told by content, never by suffix.

Memory: one line of JSON lines, one batch of Parquet's rows, but the whole text of an array.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kubedistill_trainer.core.rows import FIELDS
from kubedistill_trainer.errors import BadData

EXCERPT = 60
"""Characters of a broken line that a message shows."""
BATCH = 4096
"""Rows of Parquet that are values at a time."""
_BOM = b"\xef\xbb\xbf"
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in a file: a value, or what is wrong with it."""

    place: str
    """For people: file, and line or row."""
    value: object = None
    """Of a broken row, its text."""
    error: str = ""
    """Empty where the value could be read."""


def rows(path: str, stream: io.BufferedReader, columns: Mapping[str, str], notes: list[str]) -> Iterator[RawRow]:
    """The rows of one file. `columns` are the user's names of our fields; what was put right goes into `notes`.

    Raises:
        BadData: the file is in none of the forms, or broken as a whole.
        OSError, EOFError, zlib.error: a compressed file is broken.
    """
    head = stream.peek(16)
    if head.startswith(b"PAR1"):
        return _parquet(path, stream, columns)
    for mark, kind in _OTHERS.items():
        if head.startswith(mark):
            raise BadData("DataFormUnknown", f"{path} is {kind}: {_WRITE}.")
    if head.startswith(_BOM):
        stream.read(len(_BOM))
        notes.append(f"{path} begins with a byte order mark; it was skipped.")
    return _text(path, stream, notes)


_WRITE = "write JSON lines (gzip and zstd are unpacked), a JSON array or Parquet"


def _text(path: str, stream: io.BufferedReader, notes: list[str]) -> Iterator[RawRow]:
    """JSON lines or an array, whichever the first character that is not blank tells."""
    blank = 0
    while line := stream.readline():
        if line.strip():
            break
        blank += 1
    if line.lstrip().startswith(b"["):
        yield from _array(path, line + stream.read(), blank + 1)
    else:
        yield from _lines(path, line, stream, blank, notes)


def _parquet(path: str, stream: io.BufferedReader, columns: Mapping[str, str]) -> Iterator[RawRow]:
    # What was packed once more can only be read from its beginning to its end; Parquet's index is at the end.
    source: Any = stream if isinstance(stream.raw, io.FileIO) else pa.BufferReader(stream.read())
    number = 0
    try:
        file = pq.ParquetFile(source)
        for batch in file.iter_batches(batch_size=BATCH, columns=_needed(file.schema_arrow.names, columns)):
            for row in batch.to_pylist():
                number += 1
                yield RawRow(f"{path}, row {number}", {key: value for key, value in row.items() if value is not None})
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None or isinstance(error, MemoryError):
            raise  # of the disk or of this process, not of the file
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise BadData("DataFileUnreadable", f"{path} is a broken Parquet file: {text}.") from error


def _needed(names: Sequence[str], columns: Mapping[str, str]) -> list[str] | None:
    """The columns that our fields are read from; None, which is all: the prompts are called otherwise."""
    needed = {field: columns.get(field, field) for field in FIELDS}
    asks = needed["prompt"] in names or needed["messages"] in names
    return [name for name in names if name in needed.values()] if asks else None


def _array(path: str, data: bytes, first_line: int) -> Iterator[RawRow]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        column = error.start - data.rfind(b"\n", 0, error.start)
        where = f"line {line}, column {column}: this is not UTF-8, near {_near(data, error)!r}"
        raise BadData("DataFileUnreadable", f"{path} is a JSON array that cannot be read: {where}.") from error
    reader = _Reader()
    at, number = text.index("[") + 1, 0
    try:
        while (at := _past_blanks(text, at)) < len(text) and text[at] != "]":
            if number:
                at = _past_blanks(text, _past(text, at, ","))
            number += 1
            value, end = reader.read(text, at)
            place = f"{path}, row {number}"
            yield RawRow(place, value, f"the key {reader.twice!r} stands twice" if reader.twice else "")
            at = end
        if (rest := _past_blanks(text, _past(text, at, "]"))) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except (json.JSONDecodeError, _UnreadableError) as error:
        where = _json_error(error, first_line) if isinstance(error, json.JSONDecodeError) else f"row {number}: {error}"
        raise BadData("DataFileUnreadable", f"{path} is a JSON array that cannot be read: {where}.") from error


def _past_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _past(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
    return at + len(mark)


def _lines(path: str, line: bytes, stream: io.BufferedReader, blank: int, notes: list[str]) -> Iterator[RawRow]:
    if line and not re.search(rb"^[ \t]*\{", line + stream.peek(1), re.MULTILINE):
        raise BadData(
            "DataFormUnknown",
            f"{path} is neither JSON lines nor a JSON array nor Parquet; line {blank + 1} begins with "
            f"{line[:EXCERPT].decode(errors='replace').strip()!r}: {_WRITE}; of CSV make one JSON object a row.",
        )
    reader, number, windows, gap = _Reader(), blank, False, 0
    while line:
        number += 1
        windows = windows or line.endswith(b"\r\n")
        content = line.rstrip(b"\r\n")
        if content.strip():
            blank, gap = blank + gap, 0
            yield _line(f"{path}, line {number}", content, reader)
        else:
            gap += 1
        line = stream.readline()
    blank += gap
    if windows:
        notes.append(f"{path} has Windows line ends; they were read as line ends.")
    if blank:
        notes.append(f"{path} has {blank} blank lines; they were skipped.")


def _line(place: str, line: bytes, reader: _Reader) -> RawRow:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        where = f"column {column}: this is not UTF-8, near {_near(line, error)!r}"
        return RawRow(place, line.decode(errors="replace"), where)
    try:
        value, end = reader.read(text, _past_blanks(text, 0))
        if (rest := _past_blanks(text, end)) < len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except json.JSONDecodeError as error:
        return RawRow(place, text, _json_error(error))
    except _UnreadableError as error:
        return RawRow(place, text, f"column 1: {error}")
    if reader.twice:
        column = text.rfind(json.dumps(reader.twice, ensure_ascii=False)) + 1
        return RawRow(place, text, f"column {column}: the key {reader.twice!r} stands twice")
    return RawRow(place, value)


def _near(data: bytes, error: UnicodeDecodeError) -> str:
    return data[max(0, error.start - 20) : error.start + 20].decode(errors="replace")


def _json_error(error: json.JSONDecodeError, first_line: int = 0) -> str:
    start = max(0, error.pos - EXCERPT // 2)
    line = f"line {error.lineno + first_line - 1}, " if first_line else ""
    return f"{line}column {error.colno}: this is not JSON ({error.msg}), near {error.doc[start : start + EXCERPT]!r}"


class _UnreadableError(ValueError):
    """JSON that no reader of this image can hold."""


class _Reader:
    """Reads one JSON value after another, and says of each whether a key stands twice in one of its objects."""

    twice: str

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def read(self, text: str, at: int) -> tuple[object, int]:
        """The value that begins at a place, and where it ends.

        Raises:
            json.JSONDecodeError: none begins there.
            _UnreadableError: it is nested too deeply, or holds a number of thousands of digits.
        """
        self.twice = ""
        try:
            return self._decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except (RecursionError, ValueError) as error:
            kind = "objects nested too deeply" if isinstance(error, RecursionError) else "a number that is too long"
            raise _UnreadableError(f"this holds {kind}") from error

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs) and not self.twice:
            names = [name for name, _ in pairs]
            self.twice = next(name for name in names if names.count(name) > 1)
        return row

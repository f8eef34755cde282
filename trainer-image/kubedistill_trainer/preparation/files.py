"""The user's files, row by row, with the place of each: told by content, never by suffix or column order."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from kubedistill_trainer.errors import BadData, NotFound, Transient
from kubedistill_trainer.store.workspace import FileInfo, Workspace

EXCERPT = 60
"""Characters of a broken line that a message shows."""
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in a file: a value, or what is wrong with it."""

    place: str
    """For people: file, and line or row."""
    value: object = None
    error: str = ""
    """Empty where there is a value."""


@dataclass
class Reading:
    """Everything that was read of one data URI."""

    rows: list[RawRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was put right on the way."""
    fingerprint: list[list[Any]] = field(default_factory=list)
    """Path, size and version of each file: equal exactly if nothing was changed."""


def read(uri: str) -> Reading:
    """Every row of a file or a folder of files.

    Raises:
        NotFound: there is nothing, or access is refused.
        BadData: a file is empty, or in none of the forms that are read.
        Transient: the store is away.
    """
    reading = Reading(fingerprint=fingerprint(uri))
    for path, data in _contents(uri, reading):
        if not data.strip():
            raise BadData("DataFileEmpty", f"{path} is empty: write one JSON object a line, or name another file.")
        reading.rows += _rows(path, data, reading.notes)
    return reading


def fingerprint(uri: str) -> list[list[Any]]:
    """Path, size and version of each file behind a URI. Of an https URL nothing is known before it is read."""
    if uri.startswith("https://"):
        return []
    return [[file.path, file.size, file.version] for file in _files(uri)[1]]


def _files(uri: str) -> tuple[Workspace, Sequence[FileInfo]]:
    folder, _, name = uri.rstrip("/").rpartition("/")
    store = Workspace.open(folder)
    files = [file for file in store.files(name) if not file.path.rpartition("/")[2].startswith((".", "_"))]
    if not files:
        raise NotFound("DataFileNotFound", f"There is no data at {uri}: check data.train.uri and data.validation.uri.")
    return store, files


def _contents(uri: str, reading: Reading) -> Iterator[tuple[str, bytes]]:
    if uri.startswith("https://"):
        yield uri, _download(uri)
        return
    store, _ = _files(uri)
    for path, _size, _version in reading.fingerprint:
        yield store.uri(path), store.read_bytes(path)


def _download(url: str) -> bytes:
    try:
        reply = httpx.get(url, follow_redirects=True, timeout=120.0)
    except httpx.TransportError as error:
        raise Transient("DataUnavailable", f"{url} cannot be reached now: {error}.") from error
    if reply.status_code >= 500:
        raise Transient("DataUnavailable", f"{url} answers HTTP {reply.status_code}.")
    if reply.is_error:
        raise NotFound("DataFileNotFound", f"{url} answers HTTP {reply.status_code}: check data.train.uri.")
    return reply.content


def _rows(path: str, data: bytes, notes: list[str]) -> Iterator[RawRow]:
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise BadData("DataFileUnreadable", f"{path} is a broken gzip file: {error}.") from error
    if data.startswith(b"PAR1"):
        return _parquet(path, data)
    if data.startswith(_BOM):
        data = data.removeprefix(_BOM)
        notes.append(f"{path} begins with a byte order mark; it was skipped.")
    if data.lstrip().startswith(b"["):
        return _array(path, data)
    return _lines(path, data, notes)


def _parquet(path: str, data: bytes) -> Iterator[RawRow]:
    try:
        table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise BadData("DataFileUnreadable", f"{path} is a broken Parquet file: {error}.") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield RawRow(f"{path}, row {number}", {key: value for key, value in row.items() if value is not None})


def _array(path: str, data: bytes) -> Iterator[RawRow]:
    try:
        rows = json.loads(data)
    except ValueError as error:
        raise BadData("DataFileUnreadable", f"{path} is a JSON array that cannot be read: {error}.") from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(f"{path}, row {number}", row)


def _lines(path: str, data: bytes, notes: list[str]) -> Iterator[RawRow]:
    lines = data.split(b"\n")
    if any(line.endswith(b"\r") for line in lines):
        notes.append(f"{path} has Windows line ends; they were read as line ends.")
    blank = sum(not line.strip() for line in lines[:-1])
    if blank:
        notes.append(f"{path} has {blank} blank lines; they were skipped.")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _line(f"{path}, line {number}", line.rstrip(b"\r"))


def _line(place: str, line: bytes) -> RawRow:
    try:
        return RawRow(place, json.loads(line.decode(), object_pairs_hook=_without_twins))
    except UnicodeDecodeError as error:
        shown = line[max(0, error.start - 20) : error.start + 20].decode(errors="replace")
        return RawRow(place, error=f"column {error.start + 1}: this is not UTF-8, near {shown!r}")
    except json.JSONDecodeError as error:
        start = max(0, error.pos - EXCERPT // 2)
        excerpt = error.doc[start : start + EXCERPT]
        return RawRow(place, error=f"column {error.colno}: this is not JSON ({error.msg}), near {excerpt!r}")
    except _TwinError as error:
        return RawRow(
            place,
            error=f"column {line.decode().rfind(json.dumps(str(error))) + 1}: the key {str(error)!r} stands twice",
        )


class _TwinError(ValueError):
    """A key stands twice in one object."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise _TwinError(next(name for name in names if names.count(name) > 1))
    return row

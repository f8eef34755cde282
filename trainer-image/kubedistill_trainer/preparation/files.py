"""The user's files: found, opened, unpacked. What a row of them looks like is told in `forms`."""

from __future__ import annotations

import gzip
import io
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx
import pyarrow as pa

from kubedistill_api.data import DataRef
from kubedistill_trainer.errors import BadData, NotFound, StageError, Transient
from kubedistill_trainer.preparation import forms
from kubedistill_trainer.preparation.forms import RawRow
from kubedistill_trainer.store.workspace import FileInfo, Workspace

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_AGAIN_LATER = (408, 425, 429)
"""Answers of a web server that may be others soon, beside those from 500 on."""


@dataclass
class Reading:
    """What lies at one data URI. The rows are read while they are taken, once, and never held here."""

    uri: str
    scratch: Path
    """A local folder for what has to be copied before it can be read."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """`data.columns`."""
    fingerprint: list[list[Any]] = field(default_factory=list)
    """Path, size and version of each file: equal exactly if nothing was changed."""
    notes: list[str] = field(default_factory=list)
    """What was put right on the way; complete when all rows were taken."""

    def rows(self) -> Iterator[RawRow]:
        """Every row of the file, or of the folder's files in the order of their paths.

        Raises:
            NotFound: a file went away, or access is refused.
            BadData: nothing is there but emptiness, or a file is in none of the forms that are read.
            Transient: the store is away.
        """
        found, empty = 0, []
        for path, opening in self._files():
            before = found
            with opening as file, _unpacked(path, file) as stream:
                for row in forms.rows(path, stream, self.columns, self.notes):
                    found += 1
                    yield row
            empty += [path] if found == before else []
        if not found:
            raise BadData("DataFileEmpty", f"{self.uri} is empty: write one JSON object a line, or name another file.")
        self.notes += [f"{path} is empty; it was passed over." for path in empty]

    def _files(self) -> Iterator[tuple[str, Any]]:
        if self.uri.startswith("https://"):
            yield _shown(self.uri), _download(self.uri, self.scratch)
            return
        store, _, hidden = _files(self.uri)
        if hidden:
            self.notes.append(f"{len(hidden)} files that begin with . or _ were passed over, such as {hidden[0].path}.")
        for path, _size, _version in self.fingerprint:
            yield store.uri(path), _opened(store, path, self.scratch)


def read(data: DataRef, columns: Mapping[str, str], scratch: Path) -> Reading:
    """A file, or a folder of files, ready to be read.

    Raises:
        NotFound: there is nothing, or access is refused.
        Transient: the store is away.
    """
    return Reading(data.uri, scratch, columns, fingerprint(data.uri))


def fingerprint(uri: str) -> list[list[Any]]:
    """Path, size and version of each file behind a URI. Of an https URL nothing is known before it is read."""
    if uri.startswith("https://"):
        return []
    return [[file.path, file.size, file.version] for file in _files(uri)[1]]


def _files(uri: str) -> tuple[Workspace, list[FileInfo], list[FileInfo]]:
    """The store, the files that are read, and those that are passed over."""
    store, name = Workspace.around(uri)
    files: list[FileInfo] = []
    hidden: list[FileInfo] = []
    for file in store.files(name):
        (hidden if _hidden(file.path.removeprefix(name)) else files).append(file)
    if not files:
        raise NotFound("DataFileNotFound", f"There is no data at {uri}: check data.train.uri and data.validation.uri.")
    return store, files, hidden


def _shown(url: str) -> str:
    """Without the query, which may be a signature."""
    return url.partition("?")[0]


def _hidden(path: str) -> bool:
    """Whether a path within the user's folder is what tools leave there: `_SUCCESS`, `.cache/huggingface/...`."""
    return any(part.startswith((".", "_")) for part in path.split("/"))


@contextmanager
def _opened(store: Workspace, path: str, scratch: Path) -> Iterator[BinaryIO]:
    """A file that can be read from any place in it: of a bucket, a copy that is gone afterwards."""
    with ExitStack() as stack:
        local = store.local_path(path)
        if local is None:
            local = Path(stack.enter_context(_folder(scratch))) / "data"
            store.fetch(path, local)
        try:
            yield stack.enter_context(local.open("rb"))
        except (PermissionError, FileNotFoundError) as error:
            raise NotFound("AccessDenied", f"{store.uri(path)} cannot be read: {error.strerror}.") from error
        except OSError as error:
            raise Transient("StoreUnavailable", f"{store.uri(path)} cannot be read now: {error}.") from error


@contextmanager
def _download(url: str, scratch: Path) -> Iterator[BinaryIO]:
    with _folder(scratch) as folder, (Path(folder) / "data").open("w+b") as file:
        try:
            with httpx.stream("GET", url, follow_redirects=True, timeout=120.0) as reply:
                _check(_shown(url), reply)
                for piece in reply.iter_bytes():
                    file.write(piece)
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Transient("DataUnavailable", f"{_shown(url)} cannot be reached now: {error}.") from error
        except httpx.HTTPError as error:
            raise NotFound("DataFileNotFound", f"{_shown(url)} cannot be read: {error}.") from error
        file.seek(0)
        yield file


def _check(url: str, reply: httpx.Response) -> None:
    if reply.status_code >= 500 or reply.status_code in _AGAIN_LATER:
        raise Transient("DataUnavailable", f"{url} answers HTTP {reply.status_code}.")
    if not reply.is_success:
        raise NotFound(
            "DataFileNotFound",
            f"{url} answers HTTP {reply.status_code}: check data.train.uri and data.validation.uri.",
        )


def _folder(scratch: Path) -> tempfile.TemporaryDirectory[str]:
    scratch.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=scratch)


@contextmanager
def _unpacked(path: str, file: BinaryIO) -> Iterator[io.BufferedReader]:
    """What a file holds: of gzip and zstd, what was packed, piece by piece. Broken packings raise BadData."""
    head = file.read(4)
    file.seek(0)
    if head.startswith(_GZIP):
        packing, stream = "gzip", io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file)))
    elif head == _ZSTD:
        packing, stream = "zstd", io.BufferedReader(pa.CompressedInputStream(file, "zstd"))
    else:
        yield cast(io.BufferedReader, file)
        return
    try:
        yield stream
    except StageError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise  # of the disk, not of what was packed
        raise BadData("DataFileUnreadable", f"{path} is a broken {packing} file: {error}.") from error

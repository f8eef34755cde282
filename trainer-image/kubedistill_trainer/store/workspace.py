"""Where stages leave their files: a folder, a claim or a bucket behind one small class.

Paths are relative, with forward slashes, and never begin with one. A file appears whole or not at all.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

from kubedistill_api import uris
from kubedistill_api.environment import CLAIM_ROOT, CLAIM_ROOT_DEFAULT
from kubedistill_trainer.errors import BadConfiguration, NotFound, StageError, Transient


@dataclass(frozen=True)
class FileInfo:
    """A file as a listing shows it."""

    path: str
    """Relative to the workspace."""
    size: int
    """Bytes."""
    version: str
    """Changes whenever the content does: an ETag, or the time of the last change in nanoseconds."""


class Workspace(ABC):
    """A place for files.

    Every method raises NotFound (no such file or bucket, access refused) or Transient (the store is away or full).
    """

    root: str
    """The URI, without a slash at its end."""

    @staticmethod
    def open(uri: str, scratch: Path | None = None) -> Workspace:
        """The place that a `file://`, `pvc://` or `s3://` URI names. Nothing is made or asked yet.

        Raises:
            BadConfiguration: the URI has another scheme, or none.
        """
        try:
            location = uris.parse(uri)
        except ValueError as error:
            raise BadConfiguration("InvalidURI", f"{error}.") from error
        match location.scheme:
            case "file":
                return FolderWorkspace(uri, Path(location.path))
            case "pvc":
                claims = Path(os.environ.get(CLAIM_ROOT, CLAIM_ROOT_DEFAULT))
                return FolderWorkspace(uri, claims / location.authority / location.path)
            case "s3":
                return BucketWorkspace(uri, f"{location.authority}/{location.path}".rstrip("/"))
        raise BadConfiguration("UnknownScheme", f"{uri} cannot be opened: write s3://, pvc:// or file://.")

    @staticmethod
    def around(uri: str) -> tuple[Workspace, str]:
        """The folder that holds what a URI names, and its path there. Raises as `open`."""
        try:
            folder, rel = uris.split(uri)
        except ValueError as error:
            raise BadConfiguration("InvalidURI", f"{error}.") from error
        return Workspace.open(folder), rel

    def uri(self, rel: str) -> str:
        """The full URI of a path."""
        return uris.below(self.root, rel)

    def local_path(self, rel: str) -> Path | None:
        """A direct path, where the place is a file system; None for a bucket."""
        return None

    def free_bytes(self) -> int | None:
        """What there is still room for, where that can be known; None for a bucket."""
        return None

    @abstractmethod
    def read_bytes(self, rel: str) -> bytes:
        """A file's content."""

    @abstractmethod
    def write_bytes(self, rel: str, data: bytes) -> None:
        """Make or replace a file; readers see the old content or the new, never a part."""

    @abstractmethod
    def create(self, rel: str, data: bytes) -> bool:
        """Make a file that must not be there. False: somebody was first, and their content stays."""

    @abstractmethod
    def exists(self, rel: str) -> bool:
        """Whether a file, or a folder with something in it, is there."""

    @abstractmethod
    def files(self, rel: str) -> list[FileInfo]:
        """All files below a folder, sorted by path; the file itself if `rel` is one; [] if there is nothing."""

    @abstractmethod
    def remove(self, rel: str) -> None:
        """Remove a file or a whole folder; nothing happens if it is not there."""

    @abstractmethod
    def fetch(self, rel: str, local: Path) -> None:
        """Copy a file, or a folder with all that is in it, to a local path."""

    @abstractmethod
    def put(self, local: Path, rel: str) -> None:
        """Copy a local file, or a folder with all that is in it, here. Files appear one by one, each whole."""

    def sweep(self, rel: str, *, below: bool = False, untouched_seconds: float = 0) -> None:
        """Remove what killed writers left half-written right in a folder, or anywhere below it.

        Only for whoever alone writes there now; or with a time, since a draft that nobody has written to for a day is
        nobody's. A bucket has no drafts.
        """
        return

    def list(self, rel: str) -> list[str]:
        """Paths of all files below a folder, sorted."""
        return [file.path for file in self.files(rel)]


class FolderWorkspace(Workspace):
    """A folder: of this machine, or of a mounted claim."""

    def __init__(self, uri: str, path: Path) -> None:
        self.root = uri.rstrip("/")
        self.path = path

    def local_path(self, rel: str) -> Path | None:
        return self.path / rel

    def free_bytes(self) -> int | None:
        there = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        return shutil.disk_usage(there).free

    def read_bytes(self, rel: str) -> bytes:
        with _translated(self.uri(rel)):
            return (self.path / rel).read_bytes()

    def write_bytes(self, rel: str, data: bytes) -> None:
        with _translated(self.uri(rel)), self._draft(rel) as draft:
            draft.write_bytes(data)
            self._commit(draft, rel)

    def create(self, rel: str, data: bytes) -> bool:
        with _translated(self.uri(rel)), self._draft(rel) as draft:
            draft.write_bytes(data)
            try:
                self._commit(draft, rel, os.link)
            except FileExistsError:
                return False
            return True

    def exists(self, rel: str) -> bool:
        with _translated(self.uri(rel)):
            return any(_whole_files(self.path / rel))

    def files(self, rel: str) -> list[FileInfo]:
        with _translated(self.uri(rel)):
            found = [self._info(path) for path in _whole_files(self.path / rel)]
        return sorted((file for file in found if file is not None), key=lambda file: file.path)

    def remove(self, rel: str) -> None:
        path = self.path / rel
        with _translated(self.uri(rel)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def fetch(self, rel: str, local: Path) -> None:
        source = self.path / rel
        with _translated(self.uri(rel)):
            local.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, local, dirs_exist_ok=True, ignore=shutil.ignore_patterns(f"{_DRAFT}*"))
            else:
                shutil.copyfile(source, local)

    def put(self, local: Path, rel: str) -> None:
        for source, target in _pairs(local, rel):
            with _translated(self.uri(target)), self._draft(target) as draft:
                shutil.copyfile(source, draft)
                self._commit(draft, target)

    def sweep(self, rel: str, *, below: bool = False, untouched_seconds: float = 0) -> None:
        pattern = f"{_DRAFT}*"
        with _translated(self.uri(rel)):
            for draft in (self.path / rel).rglob(pattern) if below else (self.path / rel).glob(pattern):
                with suppress(FileNotFoundError):
                    if time.time() - draft.stat().st_mtime >= untouched_seconds:
                        draft.unlink()

    def _info(self, path: Path) -> FileInfo | None:
        """None: somebody removed it since it was found."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        return FileInfo(path.relative_to(self.path).as_posix(), stat.st_size, str(stat.st_mtime_ns))

    def _commit(self, draft: Path, rel: str, move: Callable[[Path, Path], None] = os.replace) -> None:
        """Give a draft its name; its content is on the disk before that. A power cut leaves all of it or nothing."""
        _sync(draft)
        move(draft, self.path / rel)
        _sync((self.path / rel).parent)

    @contextmanager
    def _draft(self, rel: str) -> Iterator[Path]:
        """A name beside the target that listings do not show; gone afterwards, whatever happens."""
        target = self.path / rel
        new = [folder for folder in target.parents if not folder.exists()]
        target.parent.mkdir(parents=True, exist_ok=True)
        for folder in new:
            _sync(folder.parent)
        draft = target.with_name(f"{_DRAFT}{uuid.uuid4().hex}")
        try:
            yield draft
        finally:
            draft.unlink(missing_ok=True)


class BucketWorkspace(Workspace):
    """A prefix of an S3 bucket. Endpoint, keys and region come from the usual AWS variables."""

    def __init__(self, uri: str, prefix: str) -> None:
        self.root = uri.rstrip("/")
        self.prefix = prefix
        self.fs: Any = s3fs.S3FileSystem(
            endpoint_url=os.environ.get("AWS_ENDPOINT_URL") or None,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"retries": {"max_attempts": 5, "mode": "standard"}},
        )

    def read_bytes(self, rel: str) -> bytes:
        with _translated(self.uri(rel)):
            return bytes(self.fs.cat_file(self._key(rel)))

    def write_bytes(self, rel: str, data: bytes) -> None:
        with _translated(self.uri(rel)):
            self.fs.pipe_file(self._key(rel), data)

    def create(self, rel: str, data: bytes) -> bool:
        with _translated(self.uri(rel)):
            try:
                self.fs.pipe_file(self._key(rel), data, mode="create")
            except OSError as error:
                # s3fs makes FileExistsError only of answers that name the condition, as Amazon's do.
                if isinstance(error, FileExistsError) or _code(error) in _SOMEBODY_WAS_FIRST:
                    return False
                raise
            return True

    def exists(self, rel: str) -> bool:
        with _translated(self.uri(rel)):
            if self.fs.exists(self._key(rel)):
                return True
            self.fs.call_s3("list_objects_v2", Bucket=self._bucket, MaxKeys=1)  # raises if there is no such bucket
            return False

    def files(self, rel: str) -> list[FileInfo]:
        with _translated(self.uri(rel)):
            found = self.fs.find(self._key(rel), detail=True)
        return [
            FileInfo(key[len(self.prefix) :].lstrip("/"), int(item["size"]), str(item.get("ETag", "")).strip('"'))
            for key, item in sorted(found.items())
            if item["type"] == "file"
        ]

    def remove(self, rel: str) -> None:
        keys = [self._key(path).removeprefix(f"{self._bucket}/") for path in self.list(rel)]
        with _translated(self.uri(rel)):
            for start in range(0, len(keys), _AT_ONCE):
                objects = [{"Key": key} for key in keys[start : start + _AT_ONCE]]
                # Not fs.rm: what a server refuses to remove it passes over in silence.
                answer = self.fs.call_s3(
                    "delete_objects", Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
                )
                _raise_first(answer.get("Errors", []))

    def fetch(self, rel: str, local: Path) -> None:
        paths = self.list(rel)
        if not paths:
            raise NotFound("FileNotFound", f"There is nothing at {self.uri(rel)}.")
        for path in paths:
            target = local if path == rel else local / path[len(rel) :].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with _translated(self.uri(path)):
                self.fs.get_file(self._key(path), str(target))

    def put(self, local: Path, rel: str) -> None:
        for source, target in _pairs(local, rel):
            with _translated(self.uri(target)):
                self.fs.put_file(str(source), self._key(target))

    @property
    def _bucket(self) -> str:
        return self.prefix.split("/")[0]

    def _key(self, rel: str) -> str:
        return f"{self.prefix}/{rel}".rstrip("/") if rel else self.prefix


_DRAFT = ".draft-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What some network file systems answer for a folder: they keep names at once."""
_AT_ONCE = 1000
"""Keys that S3 removes by one request."""
_SOMEBODY_WAS_FIRST = ("PreconditionFailed", "412")


def _pairs(local: Path, rel: str) -> list[tuple[Path, str]]:
    if local.is_file():
        return [(local, rel)]
    files = sorted(path for path in local.rglob("*") if path.is_file())
    return [(path, f"{rel}/{path.relative_to(local).as_posix()}".lstrip("/")) for path in files]


def _whole_files(start: Path) -> Iterator[Path]:
    """Files at or below a path, without the drafts of writers that are at work or dead."""
    if start.is_file():
        yield start
        return
    for folder, _, names in os.walk(start):  # a folder that goes away meanwhile is passed over
        yield from (Path(folder, name) for name in names if not name.startswith(_DRAFT))


def _sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    """Errors of file systems and of S3 in our own words."""
    try:
        yield
    except StageError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFound("FileNotFound", f"There is nothing at {uri}: {_words(error)}.") from error
    except (PermissionError, NoCredentialsError, PartialCredentialsError) as error:
        raise NotFound(
            "AccessDenied", f"Access to {uri} is refused ({_words(error)}): check spec.credentials and its rights."
        ) from error
    except OSError as error:
        if error.errno in _FULL:
            raise Transient(
                "VolumeFull", f"No space is left at {uri}: make room or ask for a larger volume."
            ) from error
        raise Transient("StoreUnavailable", f"{uri} cannot be reached now: {_words(error)}.") from error
    except BotoCoreError as error:
        raise Transient("StoreUnavailable", f"{uri} cannot be reached now: {_words(error)}.") from error


def _code(error: BaseException) -> str:
    """What an S3 server calls an error; empty if none of its answers caused it."""
    cause = error.__cause__
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""


def _raise_first(errors: Sequence[Mapping[str, str]]) -> None:
    """Raise what an S3 server answered for one of many keys as if it had been asked for that one alone."""
    for error in errors:
        code, words = error.get("Code", ""), f"{error.get('Key')}: {error.get('Message') or error.get('Code')}"
        if code != "NoSuchKey":
            raise PermissionError(words) if code in ("AccessDenied", "403") else OSError(errno.EIO, words)


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__

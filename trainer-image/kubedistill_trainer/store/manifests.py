"""Manifests: the file that is written last and makes a stage's output visible as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kubedistill_api.base import Tolerant
from kubedistill_api.results import Success
from kubedistill_trainer.errors import NotFound
from kubedistill_trainer.store.workspace import Workspace

MANIFEST = "manifest.json"
RESULT = "result.json"


class FileEntry(Tolerant):
    """One file of an output."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal."""


class Manifest(Tolerant):
    """What a finished stage made. Its presence is what "finished" means."""

    input_digest: str
    output_digest: str
    files: dict[str, FileEntry] = {}
    """By path relative to the stage's folder."""
    meta: dict[str, Any] = {}
    """Whatever else the stage wants to remember."""
    result: Success
    """What the stage said; a second run says the same."""


def commit(
    workspace: Workspace,
    result: Success,
    files: Mapping[str, FileEntry] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write `<folder>/result.json` for people and then `<folder>/manifest.json`, which makes the output visible."""
    manifest = Manifest(
        input_digest=result.input_digest,
        output_digest=result.output_digest,
        files=dict(files or {}),
        meta=dict(meta or {}),
        result=result,
    )
    workspace.write_bytes(f"{result.folder}/{RESULT}", result.model_dump_json(by_alias=True, indent=2).encode())
    workspace.write_bytes(f"{result.folder}/{MANIFEST}", manifest.model_dump_json(by_alias=True, indent=1).encode())
    return manifest


def load(workspace: Workspace, folder: str) -> Manifest | None:
    """The manifest of a finished stage; None if there is none, or one that this version cannot read."""
    try:
        return Manifest.model_validate_json(workspace.read_bytes(f"{folder}/{MANIFEST}"))
    except (NotFound, ValidationError):
        return None


def entry(data: bytes) -> FileEntry:
    """The entry of a file whose content is at hand."""
    return FileEntry(size=len(data), sha256=hashlib.sha256(data).hexdigest())


def entry_of(path: Path) -> FileEntry:
    """The entry of a local file, read in pieces."""
    with path.open("rb") as file:
        return FileEntry(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def entries_of(folder: Path) -> dict[str, FileEntry]:
    """The entries of all files below a local folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): entry_of(path) for path in files}

"""A published model: whole and read back, or not there.

    kubedistill.claim.json   whose publish this is, and what it will write; first, by whoever is first
    <the model's files>
    kubedistill.json         every file with its size and digest; last. A model is there if and only if this file is

A publish that was interrupted anywhere leaves a claim and no `kubedistill.json`; the same job goes on from there.
What is neither claimed nor listed by this job (or, with `overwrite: IfOwned`, by a job of the same name) is never
touched.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from kubedistill_api.base import Tolerant
from kubedistill_api.identity import digest
from kubedistill_api.output import Overwrite
from kubedistill_api.run import JobIdentity
from kubedistill_trainer.errors import BadConfiguration, Transient
from kubedistill_trainer.store.manifests import FileEntry, entry_of
from kubedistill_trainer.store.workspace import Workspace

CLAIM = "kubedistill.claim.json"
MANIFEST = "kubedistill.json"


class Owner(Tolerant):
    """Whose publish it is."""

    namespace: str
    name: str
    uid: str
    spec_digest: str

    @staticmethod
    def of(job: JobIdentity) -> Owner:
        """The identity as it is written at the output."""
        return Owner.model_validate(job.model_dump())

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Mark(Tolerant):
    """What claim and manifest have in common: an owner, and paths that are theirs."""

    schema_version: int = 1
    owner: Owner

    @property
    def paths(self) -> frozenset[str]:
        """Files below the output that belong to the owner."""
        raise NotImplementedError


class Claim(Mark):
    """A publish has begun."""

    files: list[str]

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self.files)


class Artifact(Mark):
    """A publish is complete."""

    formats: list[str]
    digest: str
    """Of `files`."""
    size_bytes: int
    files: dict[str, FileEntry]
    """By path relative to the output."""

    @property
    def paths(self) -> frozenset[str]:
        return frozenset(self.files)

    @staticmethod
    def of(owner: Owner, formats: Sequence[str], files: Mapping[str, FileEntry]) -> Artifact:
        """The manifest of these files."""
        return Artifact(
            owner=owner,
            formats=list(formats),
            digest=digest({path: entry.model_dump() for path, entry in files.items()}),
            size_bytes=sum(entry.size for entry in files.values()),
            files=dict(files),
        )


@dataclass(frozen=True)
class Found:
    """What lies at an output before anything is written."""

    files: frozenset[str] = frozenset()
    """All paths, marks included."""
    claim: Claim | None = None
    artifact: Artifact | None = None
    whole: bool = False
    """Every file of the artifact is there, in its size."""

    @property
    def marks(self) -> list[Mark]:
        return [mark for mark in (self.claim, self.artifact) if mark is not None]

    @property
    def owned(self) -> frozenset[str]:
        """Files that a mark accounts for."""
        return frozenset().union(*(mark.paths for mark in self.marks))

    @property
    def foreign(self) -> frozenset[str]:
        """Files that no mark accounts for; an unreadable mark is one of them."""
        readable = {CLAIM} if self.claim else set()
        return self.files - self.owned - readable - ({MANIFEST} if self.artifact else set())


def look(output: Workspace) -> Found:
    """What lies at an output.

    A mark that cannot be read counts as somebody else's file.
    """
    sizes = {file.path: file.size for file in output.files("")}
    files = frozenset(sizes)
    artifact = _read(output, MANIFEST, Artifact, files)
    whole = artifact is not None and all(sizes.get(path) == entry.size for path, entry in artifact.files.items())
    return Found(files, _read(output, CLAIM, Claim, files), artifact, whole)


def objection(found: Found, owner: Owner, overwrite: Overwrite, plan: Artifact | None = None) -> str:
    """Why this job must not publish `plan` here (None: it is not known yet what); empty if it may."""
    for mark in found.marks:
        if mark.owner.uid == owner.uid and (isinstance(mark, Claim) or (plan and mark == plan)):
            continue  # an earlier attempt of our own, or the very same model, of which a file was lost since
        if overwrite is Overwrite.NEVER:
            return f"a model of job {mark.owner} is there already"
        if str(mark.owner) != str(owner):
            return f"it belongs to job {mark.owner}, and overwrite: IfOwned replaces only what {owner} published"
    if not found.marks and found.files:
        return f"it is not empty: {_some(found.files)} did not come from this job"
    if strange := found.foreign & {*(plan.paths if plan else ()), CLAIM, MANIFEST}:
        return f"{_some(strange)} did not come from this job and would be replaced"
    return ""


def publish(
    output: Workspace,
    staged: Path,
    plan: Artifact,
    overwrite: Overwrite,
    scratch: Path,
    tick: Callable[[int], None] = lambda _: None,
) -> Artifact:
    """Put the files of `plan`, which lie below `staged`, at the output, and make them visible as one.

    1. Look: complete and ours already? Somebody else's? 2. Claim. 3. Withdraw what is replaced, its manifest first.
    4. Upload. 5. Read back and compare. 6. Write the manifest, remove the claim.

    `tick` gets the bytes that were written or read back since it was last called, each file's twice in all.

    Raises:
        BadConfiguration: the output is not free.
        Transient: what was read back is not what was written.
    """
    found = look(output)
    if found.whole and found.artifact == plan:
        output.remove(CLAIM)
        return plan
    refuse_if_taken(output, found, plan, overwrite)
    found = _claim(output, found, plan, overwrite)
    output.remove(MANIFEST)
    for path in sorted(found.owned - plan.paths):
        output.remove(path)
    for folder in {posixpath.dirname(path) for path in plan.files}:
        output.sweep(folder)  # an attempt that was killed left the file that it was copying, which no listing shows
    for path in sorted(plan.files):
        output.put(staged / path, path)
        tick(plan.files[path].size)
    read_back(output, plan.files, scratch, tick)
    output.write_bytes(MANIFEST, _json(plan))
    output.remove(CLAIM)
    return plan


def refuse_if_taken(output: Workspace, found: Found, plan: Artifact, overwrite: Overwrite) -> None:
    """Raise BadConfiguration, with what lies in the way, if the output is not this job's to write."""
    if why := objection(found, plan.owner, overwrite, plan):
        raise BadConfiguration(
            "OutputNotFree",
            f"Nothing was published to {output.root}: {why}. Write another output.uri, or empty that folder"
            f"{'' if overwrite is Overwrite.IF_OWNED else ', or write overwrite: IfOwned to replace your own'}.",
        )


def read_back(
    output: Workspace, files: Mapping[str, FileEntry], scratch: Path, tick: Callable[[int], None] = lambda _: None
) -> None:
    """Read every file from where it was put and compare size and digest.

    Raises:
        Transient: one differs.
    """
    for path, expected in files.items():
        seen = _entry_there(output, path, scratch)
        if seen != expected:
            raise Transient(
                "ReadBackDiffers",
                f"{output.uri(path)} was written with {expected.size} bytes (sha256 {expected.sha256[:12]}) and read "
                f"back with {seen.size} (sha256 {seen.sha256[:12]}); nothing was published, and it is tried again.",
            )
        tick(seen.size)


def _claim(output: Workspace, found: Found, plan: Artifact, overwrite: Overwrite) -> Found:
    """Become the one who publishes here, then look again: what was finished before our claim is seen now, and nothing
    is begun after it. What an earlier mark listed stays listed until it is withdrawn.
    """
    claim = Claim(owner=plan.owner, files=sorted(plan.paths | found.owned))
    if found.claim is not None:
        output.write_bytes(CLAIM, _json(claim))
    else:
        output.create(CLAIM, _json(claim))
    now = look(output)
    try:
        refuse_if_taken(output, now, plan, overwrite)
    except BadConfiguration:
        if now.claim == claim:
            output.remove(CLAIM)
        raise
    return now


def _entry_there(output: Workspace, path: str, scratch: Path) -> FileEntry:
    local = output.local_path(path)
    if local is not None:
        return entry_of(local) if local.is_file() else FileEntry(size=0, sha256=hashlib.sha256().hexdigest())
    copy = scratch / "read-back"
    try:
        output.fetch(path, copy)
        return entry_of(copy)
    finally:
        copy.unlink(missing_ok=True)


MarkType = TypeVar("MarkType", bound=Mark)


def _read(output: Workspace, path: str, kind: type[MarkType], files: frozenset[str]) -> MarkType | None:
    if path not in files:
        return None
    try:
        return kind.model_validate_json(output.read_bytes(path))
    except ValidationError:
        return None


def _json(mark: Mark) -> bytes:
    return mark.model_dump_json(by_alias=True, indent=1).encode()


def _some(paths: frozenset[str]) -> str:
    names = sorted(paths)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

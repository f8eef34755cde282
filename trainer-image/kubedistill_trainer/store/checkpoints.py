"""Checkpoints of a training: whole, or invisible.

    <trained>/checkpoints/step-00000042/state/...         what the ranks wrote
    <trained>/checkpoints/step-00000042/checkpoint.json   last: the marker, with the size of every file

A checkpoint without its marker, of other inputs, or with a file of another size does not exist. Removing one begins
with its marker. On a file system the ranks write in place; for a bucket they write to scratch and it is uploaded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from kubedistill_api.base import Tolerant
from kubedistill_api.status import Checkpoint as CheckpointStatus
from kubedistill_trainer.errors import NotFound
from kubedistill_trainer.store.workspace import Workspace

MARKER = "checkpoint.json"


class TrainingState(Tolerant):
    """Where a training is. Data order, learning rate and randomness follow from the step alone."""

    step: int = 0
    """Optimizer steps done."""
    loss: float | None = None
    """Of the last step."""
    validated_step: int = 0
    """The last step after which the held-out answers were looked at."""
    validation_loss: float | None = None
    """What was seen there."""
    best_step: int | None = None
    """The step of the lowest validation loss."""
    best_loss: float | None = None
    """What it was, nats a target."""
    stale: int = 0
    """Validations since then without an improvement that counts."""
    finished: bool = False
    """Nothing is left to train."""


class Checkpoint(Tolerant):
    """The marker."""

    input_digest: str
    """Of the training; one of other inputs is none of ours."""
    world_size: int
    """Processes that wrote it."""
    state: TrainingState
    time: str
    """When it was complete, RFC 3339."""
    files: dict[str, int]
    """Bytes by path relative to the checkpoint's folder."""


class Checkpoints:
    """The checkpoints of one training in a workspace."""

    def __init__(self, workspace: Workspace, folder: str, scratch: Path, input_digest: str) -> None:
        """`folder` is the stage's, relative to the workspace."""
        self._workspace = workspace
        self._folder = f"{folder}/checkpoints"
        self._scratch = scratch / "checkpoints"
        self._input_digest = input_digest

    def complete(self) -> list[Checkpoint]:
        """All complete checkpoints, the newest last."""
        sizes = {file.path: file.size for file in self._workspace.files(self._folder)}
        steps = sorted({path.removeprefix(f"{self._folder}/").split("/")[0] for path in sizes})
        found = (self._read(name, sizes) for name in steps)
        return sorted((each for each in found if each is not None), key=lambda each: each.state.step)

    def begin(self, step: int) -> Path:
        """An empty local folder for the ranks to write the checkpoint of `step` into. One process calls this, on the
        first node."""
        self.remove(step)
        return self.begin_here(step)

    def begin_here(self, step: int) -> Path:
        """An empty local folder on this node, whose name no other node has."""
        local = self.local(step)
        shutil.rmtree(local, ignore_errors=True)
        local.mkdir(parents=True)
        return local

    def drop_here(self) -> None:
        """Remove this node's own copies, once they are delivered or loaded."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def shared(self) -> bool:
        """Whether all nodes write into one folder."""
        return self._workspace.local_path("") is not None

    def local(self, step: int) -> Path:
        """Where the ranks write the checkpoint of `step`."""
        return self._workspace.local_path(f"{self._folder}/{_name(step)}") or self._scratch / _name(step)

    def deliver(self, step: int) -> dict[str, int]:
        """Bring what lies in `local(step)` to where the marker may vouch for it: bytes by path. One process of each
        node calls this."""
        local = self.local(step)
        paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name != MARKER)
        _flush(paths)
        if not self.shared:
            self._workspace.put(local, f"{self._folder}/{_name(step)}")
        return {path.relative_to(local).as_posix(): path.stat().st_size for path in paths}

    def commit(self, state: TrainingState, world_size: int, files: Mapping[str, int]) -> Checkpoint:
        """Make what was delivered by all nodes the complete checkpoint of that step."""
        checkpoint = Checkpoint(
            input_digest=self._input_digest,
            world_size=world_size,
            state=state,
            time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            files=dict(files),
        )
        self.note(checkpoint)
        return checkpoint

    def note(self, checkpoint: Checkpoint) -> None:
        """Write the marker (again): whoever reads sees the old one or the new."""
        name = f"{self._folder}/{_name(checkpoint.state.step)}/{MARKER}"
        self._workspace.write_bytes(name, checkpoint.model_dump_json(by_alias=True, indent=1).encode())

    def fetch(self, step: int) -> Path:
        """The local folder of a complete checkpoint, downloaded if need be."""
        local = self.local(step)
        if not self.shared:
            shutil.rmtree(local, ignore_errors=True)  # an earlier training may have left other files there
            self._workspace.fetch(f"{self._folder}/{_name(step)}", local)
        return local

    def keep_only(self, steps: Collection[int]) -> None:
        """Remove every checkpoint but these, incomplete ones too."""
        kept = {_name(step) for step in steps}
        names = {path.removeprefix(f"{self._folder}/").split("/")[0] for path in self._workspace.list(self._folder)}
        for name in sorted(names - kept):
            self._remove(name)

    def remove(self, step: int) -> None:
        """Remove one checkpoint, complete or not."""
        self._remove(_name(step))

    def status(self, checkpoint: Checkpoint) -> CheckpointStatus:
        """The checkpoint as a status names it."""
        uri = self._workspace.uri(f"{self._folder}/{_name(checkpoint.state.step)}")
        return CheckpointStatus(step=checkpoint.state.step, uri=uri, time=checkpoint.time)

    def _read(self, name: str, sizes: dict[str, int]) -> Checkpoint | None:
        folder = f"{self._folder}/{name}"
        try:
            checkpoint = Checkpoint.model_validate_json(self._workspace.read_bytes(f"{folder}/{MARKER}"))
        except (NotFound, ValidationError):
            return None
        whole = all(sizes.get(f"{folder}/{path}") == size for path, size in checkpoint.files.items())
        ours = checkpoint.input_digest == self._input_digest and name == _name(checkpoint.state.step)
        return checkpoint if whole and ours else None

    def _remove(self, name: str) -> None:
        self._workspace.remove(f"{self._folder}/{name}/{MARKER}")
        self._workspace.remove(f"{self._folder}/{name}")
        shutil.rmtree(self._scratch / name, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08}"


def _flush(paths: Collection[Path]) -> None:
    """A marker must not reach the disk before what it vouches for."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

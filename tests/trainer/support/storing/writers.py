"""What the store's writers do, as functions that a process of its own can run: each goes on where the one before died.

Every file tells which attempt wrote it, so that a mixture of two attempts is seen although both are of the same size.
"""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
from storing.processes import Say

from kubedistill_api.output import Overwrite
from kubedistill_trainer.store.artifacts import Artifact, Owner, publish
from kubedistill_trainer.store.checkpoints import Checkpoints, TrainingState
from kubedistill_trainer.store.manifests import entries_of
from kubedistill_trainer.store.shards import AnswerRow, RejectedRow, Shard, ShardMeta, commit_shard, shard_path
from kubedistill_trainer.store.workspace import Workspace

ANSWERS, TRAINED, DIGEST = "answers", "trained", "sha256:training"
ROWS = 20


def write_shards(uri: str, count: int, attempt: str, size: int, *, say: Say) -> None:
    """Make the shards that are not there, in order; say each that became ours."""
    place = Workspace.open(uri)
    there = set(place.list(f"{ANSWERS}/shards"))
    say("ready")
    for index in range(count):
        if shard_path(ANSWERS, "train", index) not in there and commit_shard(
            place, ANSWERS, a_shard(index, attempt, size)
        ):
            say(index)


def a_shard(index: int, attempt: str, size: int) -> Shard:
    """A shard of about `size` bytes of answers, and as many that were rejected."""
    text = noise(f"{index} {attempt}", size // ROWS).hex()
    row = AnswerRow(
        row_id="",
        sample=0,
        split="train",
        label=attempt,
        messages="[]",
        text=text,
        finish_reason="stop",
        teacher="big",
        input_ids=np.arange(4, dtype=np.int32),
        target_mask=np.ones(4, dtype=np.bool_),
    )
    rows = [AnswerRow(**{**row.__dict__, "row_id": f"{number:04}"}) for number in range(ROWS)]
    rejected = [RejectedRow(f"r{number}", 0, "train", "Empty", detail=attempt, text=text) for number in range(ROWS)]
    meta = ShardMeta(split="train", index=index, teacher="big", accepted=ROWS, reasons={"Empty": ROWS})
    return Shard(meta, rows, rejected)


def write_checkpoints(uri: str, scratch: str, last: int, attempt: str, size: int, *, say: Say) -> None:
    """Train to step `last` without training: go on after the newest checkpoint, keep two; say each that is complete."""
    checkpoints = Checkpoints(Workspace.open(uri), TRAINED, Path(scratch), DIGEST)
    done = [each.state.step for each in checkpoints.complete()]
    checkpoints.keep_only(done)
    say("ready")
    for step in range(max(done, default=0) + 1, last + 1):
        folder = checkpoints.begin(step)
        for name, data in state_of(step, attempt, size).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        checkpoints.commit(TrainingState(step=step), 2, checkpoints.deliver(step))
        say(step)
        done = [*done, step][-2:]
        checkpoints.keep_only(done)


def state_of(step: int, attempt: str, size: int) -> dict[str, bytes]:
    """Files of a checkpoint, of the same sizes whatever the attempt."""
    files = {f"state/rank-{rank}.pt": noise(f"{step} {attempt} {rank}", size) for rank in range(3)}
    return {"state/attempt": f"{attempt:>20}".encode(), **files}


def write_artifact(uri: str, staged: str, scratch: str, owner: str, *, say: Say) -> None:
    """Publish a folder, replacing what the same job published before; say each file that went or was read back."""
    output, plan = Workspace.open(uri), plan_of(Path(staged), Owner.model_validate_json(owner))
    say("ready")
    publish(output, Path(staged), plan, Overwrite.IF_OWNED, Path(scratch), tick=say)
    say(plan.digest)


def plan_of(staged: Path, owner: Owner) -> Artifact:
    """The manifest of a staged model."""
    return Artifact.of(owner, ["Merged"], entries_of(staged))


def a_model(folder: Path, version: str, size: int) -> Path:
    """Something in the shape of a model; both versions have files of their own and one in common."""
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(noise(version, size))
    (folder / "config.json").write_text(json.dumps({"version": version}))
    (folder / f"only-in-{version}.json").write_bytes(noise(f"extra {version}", size // 4))
    return folder


def create_all(uri: str, names: list[str], writer: str, size: int, *, say: Say) -> None:
    """Be the first to make each of these files; say which became ours."""
    place = Workspace.open(uri)
    place.exists("anything")  # opens the connection: the race shall be of writes
    say("ready")
    for name in names:
        if place.create(name, content_of(writer, name, size)):
            say(name)


def content_of(writer: str, name: str, size: int) -> bytes:
    """What a writer puts into a file: its name first, then noise that only it writes."""
    return writer.encode() + b"\n" + noise(f"{writer} {name}", size)


def replace_for_ever(uri: str, name: str, size: int, *, say: Say) -> None:
    """Write a file again and again, each time with other content."""
    place = Workspace.open(uri)
    say("ready")
    for number in range(10**9):
        place.write_bytes(name, signed(number, size))


def signed(number: int, size: int) -> bytes:
    """Noise behind its own digest: a part of it, or a mixture of two, does not verify."""
    data = noise(str(number), size)
    return hashlib.sha256(data).digest() + data


def verifies(data: bytes) -> bool:
    """Whether this is something that `signed` made, whole."""
    return hashlib.sha256(data[32:]).digest() == data[:32]


def noise(seed: str, size: int) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)

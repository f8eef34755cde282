"""Writers are killed at random instants (promise P14): a reader sees what they made whole or not at all.

Each round starts a writer in a process of its own, kills it somewhere within the time that the whole work takes, looks
at what it left as the next attempt would, and lets that one finish.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from storing import writers
from storing.processes import Mortal

from kubedistill_trainer.store.artifacts import MANIFEST, Artifact, Owner, look, read_back
from kubedistill_trainer.store.checkpoints import Checkpoint, Checkpoints
from kubedistill_trainer.store.shards import read_shard
from kubedistill_trainer.store.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE = 400_000
"""Bytes of a payload: long enough to be killed within."""
NewUri = Callable[[str], str]


@pytest.fixture
def rounds(kind: str) -> range:
    """How often a writer is killed."""
    return range(50 if kind == "folder" else 15)


class Lottery:
    """Instants to kill a writer at: any of its messages, and up to the time between two of them later."""

    def __init__(self, seed: int, whole: Callable[[], Mortal]) -> None:
        """`whole` starts a writer that is left to finish: how much it says, and how fast."""
        self._random = random.Random(seed)
        writer = whole()
        writer.ready()
        started = time.monotonic()
        self._messages = len(writer.finish()) - 1
        self._between = (time.monotonic() - started) / self._messages

    def strike(self, writer: Mortal, look: Callable[[], object] = lambda: None) -> list[Any]:
        """Kill a writer; what it had said, its readiness left out. Until then `look` is called again and again."""
        writer.ready()
        for _ in range(self._random.randrange(self._messages)):
            writer.listen()
        with ThreadPoolExecutor(1) as onlooker:
            dead = threading.Event()
            looking = onlooker.submit(_until, dead, look)
            time.sleep(self._random.uniform(0, self._between))
            said = writer.kill()[1:]
            dead.set()
            looking.result()
        return said


def _until(dead: threading.Event, look: Callable[[], object]) -> None:
    while not dead.is_set():
        look()


def test_a_shard_is_whole_or_invisible_and_never_made_again(new_uri: NewUri, rounds: range) -> None:
    count, died_within = 6, 0

    def writer(name: str, attempt: str) -> Mortal:
        return Mortal(writers.write_shards, new_uri(name), count, attempt, SIZE)

    lottery = Lottery(1, lambda: writer("whole", "0"))
    for number in rounds:
        place = Workspace.open(new_uri(f"round-{number}"))
        said = lottery.strike(writer(f"round-{number}", "first"), lambda place=place: all_shards(place))
        left = all_shards(place)
        assert [index for index in range(count) if path_of(index) in left] == list(range(len(left))), "made in order"
        assert set(said) <= set(range(len(left))), "what was said to be committed is there"
        died_within += len(left) < count
        made = writer(f"round-{number}", "second").finish()[1:]
        assert made == list(range(len(left), count)), "only what was missing is made"
        after = all_shards(place)
        assert len(after) == count
        assert {path: after[path] for path in left} == left
    assert died_within > len(rounds) / 10, "the writers were killed too early or too late to tell anything"


def path_of(index: int) -> str:
    return f"{writers.ANSWERS}/shards/train-{index:05}.parquet"


def all_shards(place: Workspace) -> dict[str, bytes]:
    """All shards that are visible, each read whole and with its own rejected rows."""
    shards = {path: place.read_bytes(path) for path in place.list(f"{writers.ANSWERS}/shards")}
    for data in shards.values():
        meta, rows = read_shard(data)
        assert len(rows) == writers.ROWS
        [attempt] = {row.label for row in rows}
        rejected = place.read_bytes(f"{writers.ANSWERS}/{meta.rejected}")
        assert hashlib.sha256(rejected).hexdigest()[:12] in meta.rejected
        assert rejected.count(f'"detail": "{attempt}"'.encode()) == writers.ROWS, "of another attempt"
    return shards


def test_two_writers_of_the_same_shards_leave_one_of_each_whoever_dies(new_uri: NewUri, rounds: range) -> None:
    count = 6

    def writer(name: str, attempt: str) -> Mortal:
        return Mortal(writers.write_shards, new_uri(name), count, attempt, SIZE)

    lottery = Lottery(2, lambda: writer("whole", "0"))
    for number in rounds[: len(rounds) // 2]:
        place = Workspace.open(new_uri(f"round-{number}"))
        living, dying = writer(f"round-{number}", "living"), writer(f"round-{number}", "dying")
        gone = lottery.strike(dying)
        left = all_shards(place)
        made = living.finish()[1:]
        shards = all_shards(place)
        assert len(shards) == count
        assert {path: shards[path] for path in left} == left
        assert not set(gone) & set(made), "both were told to have been first"
        for index in made:
            assert {row.label for row in read_shard(shards[path_of(index)])[1]} == {"living"}


def test_a_checkpoint_is_whole_or_invisible_and_a_complete_one_is_never_lost(
    new_uri: NewUri, rounds: range, tmp_path: Path
) -> None:
    last, died_within = 6, 0

    def writer(name: str, attempt: str) -> Mortal:
        scratch = tmp_path / f"scratch-{name}-{attempt}"
        return Mortal(writers.write_checkpoints, new_uri(name), str(scratch), last, attempt, SIZE)

    lottery = Lottery(3, lambda: writer("whole", "0"))
    for number in rounds:
        place = Workspace.open(new_uri(f"round-{number}"))
        seen = Checkpoints(place, writers.TRAINED, tmp_path / f"reader-{number}", writers.DIGEST)
        said = lottery.strike(writer(f"round-{number}", "first"), seen.complete)
        left = seen.complete()
        for checkpoint in left:
            assert attempt_of(checkpoint, seen.fetch(checkpoint.state.step)) == "first"
        newest = max((each.state.step for each in left), default=0)
        assert newest >= max(said, default=0), "what was said to be complete is there"
        died_within += newest < last
        made = writer(f"round-{number}", "second").finish()[1:]
        assert made == list(range(newest + 1, last + 1))
        attempts = {each.state.step: attempt_of(each, seen.fetch(each.state.step)) for each in seen.complete()}
        # Who dies between its last marker and the removal of an older checkpoint leaves nothing to go on with.
        kept = {last - 1, last} if made else {each.state.step for each in left}
        assert attempts == {step: "second" if step > newest else "first" for step in kept}
        names = {path.split("/")[2] for path in place.list(writers.TRAINED)}
        assert names == {f"step-{step:08}" for step in attempts}, "nothing half is left"
    assert died_within > len(rounds) / 10, "the writers were killed too early or too late to tell anything"


@pytest.mark.parametrize("kind", [pytest.param("s3", marks=pytest.mark.s3)], indirect=True)
def test_what_an_earlier_training_left_in_scratch_is_not_mixed_into_a_checkpoint(
    new_uri: NewUri, tmp_path: Path
) -> None:
    Mortal(writers.write_checkpoints, new_uri("place"), str(tmp_path / "writer"), 1, "first", 1000).finish()
    reader = Checkpoints(Workspace.open(new_uri("place")), writers.TRAINED, tmp_path / "reader", writers.DIGEST)
    left = reader.local(1) / "state" / "rank-99.pt"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of a larger world")
    assert {path.name for path in (reader.fetch(1) / "state").iterdir()} == {
        Path(name).name for name in writers.state_of(1, "first", 1000)
    }


def attempt_of(checkpoint: Checkpoint, folder: Path) -> str:
    """Which attempt wrote a checkpoint; all of its files, byte by byte."""
    attempt = (folder / "state" / "attempt").read_text().strip()
    files = {name: (folder / name).read_bytes() for name in checkpoint.files}
    assert files == writers.state_of(checkpoint.state.step, attempt, SIZE)
    return attempt


def test_a_model_is_whole_or_invisible_also_while_it_replaces_another(
    new_uri: NewUri, rounds: range, kind: str, tmp_path: Path
) -> None:
    size = SIZE if kind == "s3" else 10 * SIZE  # a folder takes a small one faster than any signal comes
    owners = {name: Owner(namespace="team", name="job", uid=name, spec_digest=name) for name in ("old", "new")}
    staged = {name: writers.a_model(tmp_path / "staged" / name, name, size) for name in owners}
    plans = {name: writers.plan_of(staged[name], owner) for name, owner in owners.items()}
    seen: list[str] = []

    def writer(name: str, version: str) -> Mortal:
        scratch = tmp_path / "scratch" / f"{name}-{version}"
        scratch.mkdir(parents=True, exist_ok=True)
        owner = owners[version].model_dump_json(by_alias=True)
        return Mortal(writers.write_artifact, new_uri(name), str(staged[version]), str(scratch), owner)

    lottery = Lottery(4, lambda: writer("whole", "old"))
    for number in rounds:
        output = Workspace.open(new_uri(f"round-{number}"))
        for version in ("old", "new"):
            said = lottery.strike(writer(f"round-{number}", version))
            found = the_model(output, tmp_path)
            assert found in (None, plans["old"], plans["new"])
            assert plans[version].digest not in said or found == plans[version], (
                "what was said to be published is there"
            )
            seen.append("nothing" if found is None else f"{found.owner.uid} while {version}")
            writer(f"round-{number}", version).finish()
            assert the_model(output, tmp_path) == plans[version]
            assert set(output.list("")) == {*plans[version].files, MANIFEST}
    assert seen.count("nothing") > len(rounds) / 10, f"the writers were killed too early or too late: {seen}"


def the_model(output: Workspace, scratch: Path) -> Artifact | None:
    """What a reader of the output finds: nothing, or a model of which every byte is as its manifest says."""
    found = look(output)
    if found.artifact is not None:
        read_back(output, found.artifact.files, scratch)
    return found.artifact

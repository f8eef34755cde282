"""What goes wrong with a checkpoint in the thread beside the training is known before the next step."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kubedistill_trainer.engine import Place
from kubedistill_trainer.errors import Transient
from kubedistill_trainer.stages.train_keeper import Courier, Keeper
from kubedistill_trainer.store.checkpoints import Checkpoints, TrainingState
from kubedistill_trainer.store.loss_logs import LossLog
from kubedistill_trainer.store.workspace import Workspace


class Post:
    """Letters in a dictionary: the table itself is tested in test_meeting."""

    def __init__(self) -> None:
        self.letters: dict[str, str] = {}
        self.come = threading.Event()

    def leave(self, name: str, text: str) -> None:
        self.letters[name] = text
        self.come.set()

    def collect(self, name: str) -> str:
        assert self.come.wait(20)
        return self.letters[name]


class FullBucket(Checkpoints):
    """As of a bucket that takes nothing."""

    def deliver(self, step: int) -> dict[str, int]:
        raise Transient("VolumeFull", "No room.")


def steps(courier: Courier) -> None:
    """As a rank that trains on."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        courier.check()
        time.sleep(0.01)


def write(checkpoints: Checkpoints, step: int, name: str) -> None:
    (checkpoints.local(step) / name).write_text(name)


@pytest.fixture
def nodes(tmp_path: Path) -> list[Checkpoints]:
    """The checkpoints of one training as two nodes see them, on a shared volume."""
    workspace = Workspace.open((tmp_path / "shared").as_uri())
    return [Checkpoints(workspace, "trained", tmp_path / f"scratch-{node}", "sha256:1") for node in (0, 1)]


def keeper(checkpoints: Checkpoints, tmp_path: Path, letters: Any) -> Keeper:
    losses = LossLog(Workspace.open((tmp_path / "shared").as_uri()), "trained", tmp_path / "losses")
    return Keeper(checkpoints, losses, Place(0, 2), 2, letters)


def test_a_marker_waits_for_what_the_other_node_delivers(nodes: list[Checkpoints], tmp_path: Path) -> None:
    post: Any = Post()
    first, second = keeper(nodes[0], tmp_path, post), Courier(nodes[1], Place(1, 2), post)
    first.begin(4)
    second.begin(4)
    write(nodes[0], 4, "of rank 0")
    first.commit(TrainingState(step=4))
    first.note(TrainingState(step=4, validated_step=4))
    time.sleep(0.1)
    first.check()
    assert nodes[0].complete() == []
    write(nodes[1], 4, "of rank 1")
    second.commit(TrainingState(step=4))
    for helper in (first, second):
        helper.close()
    (complete,) = nodes[0].complete()
    assert complete.files == {"of rank 0": 9, "of rank 1": 9}
    assert complete.state.validated_step == 4


def test_a_delivery_that_fails_is_raised_before_the_next_step(tmp_path: Path) -> None:
    workspace = Workspace.open((tmp_path / "shared").as_uri())
    post: Any = Post()
    courier = Courier(FullBucket(workspace, "trained", tmp_path / "scratch", "sha256:1"), Place(1, 2), post)
    courier.begin(4)
    courier.commit(TrainingState(step=4))
    with pytest.raises(Transient, match="No room"):
        steps(courier)
    assert post.letters == {}

"""A training that SIGKILL ends at twenty random steps: the same rows, the same losses, the same student.

Python and torch take seconds to start, so the processes are forked from one that has imported everything and trains
nothing itself; each kills itself when its time has come, a random moment after a random step began. Whole pods are
killed in test_processes.
"""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training.forks import Server

from kubedistill_api.run import TrainRun
from kubedistill_trainer.runtime import StageContext

pytestmark = pytest.mark.slow

KILLS = 20
EVERY = 3
"""Steps between two checkpoints."""
LONG: dict[str, Any] = {
    "hyperparameters": {"epochs": 24, "learningRate": 5e-4},
    "checkpoints": {"everySteps": EVERY, "keepLast": 2},
}
"""72 steps."""
KINDS: dict[str, dict[str, Any]] = {
    # Dropout in the adapters, so that the random state matters as well.
    "LoRA": {"student": {"adapter": {"rank": 4, "alpha": 8, "dropout": 0.1}}, "training": LONG},
    "all-weights-ZeRO-2": {"training": {**LONG, "deepspeed": {"zeroStage": 2}}},
}


class Training:
    """A training in a workspace of its own, run as often as it takes."""

    def __init__(self, run: TrainRun, folder: Path, server: Server) -> None:
        self._folder = folder
        self._server = server
        self.trained = folder / run.folder
        (folder / "run.json").write_text(run.model_dump_json(by_alias=True))

    def finish(self) -> None:
        assert self._server.run(self._folder, None) == 0

    def killed_at(self, step: int, pause_seconds: float) -> None:
        """It gets SIGKILL so long after a step was begun; the first is 0."""
        assert self._server.run(self._folder, (step, pause_seconds)) == -signal.SIGKILL

    @property
    def losses(self) -> bytes:
        path = self.trained / "losses.jsonl"
        return path.read_bytes() if path.exists() else b""

    @property
    def student(self) -> bytes:
        return (self.trained / "model" / "model.safetensors").read_bytes()

    @property
    def step(self) -> int:
        """The last one whose loss was told."""
        lines = self.losses.rpartition(b"\n")[0].splitlines()
        return int(json.loads(lines[-1])["step"]) if lines else 0

    @property
    def checkpoint(self) -> int:
        """The step of the newest complete one."""
        markers = self.trained.glob("checkpoints/*/checkpoint.json")
        return max((int(json.loads(marker.read_text())["state"]["step"]) for marker in markers), default=0)

    @property
    def rows(self) -> dict[int, set[tuple[int, ...]]]:
        """The rows that each step was begun with, by all attempts."""
        seen: dict[int, set[tuple[int, ...]]] = {}
        for line in (self._folder / "rows").read_text().splitlines():
            step, rows = json.loads(line)
            seen.setdefault(step, set()).add(tuple(rows))
        return seen


@pytest.fixture
def a_training(
    a_run: Callable[..., TrainRun], a_context: Callable[..., StageContext], server: Server
) -> Callable[[str, str], Training]:
    def build(name: str, kind: str) -> Training:
        workspace = a_context(name).workspace
        folder = workspace.local_path("")
        assert folder is not None
        return Training(a_run(workspace=workspace.root, **KINDS[kind]), folder, server)

    return build


@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_twenty_random_steps_change_neither_rows_nor_losses_nor_the_student(
    a_training: Callable[[str, str], Training], kind: str
) -> None:
    lottery = random.Random(11)
    whole, killed = a_training("whole", kind), a_training("killed", kind)
    whole.finish()
    for _ in range(KILLS):
        killed.killed_at(killed.checkpoint + lottery.randint(0, EVERY), lottery.uniform(0, 0.02))
        assert killed.step - killed.checkpoint <= 2 * EVERY, "the newest checkpoint may have been on its way"
    killed.finish()
    assert killed.losses == whole.losses
    assert killed.rows == whole.rows
    assert all(len(rows) == 1 for rows in killed.rows.values())
    assert killed.student == whole.student

"""Trainings as the pods run them: `python -m kubedistill_trainer train`, stopped, killed and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from training.places import lay_out

from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, TrainResult, read_result
from kubedistill_api.run import TrainRun

pytestmark = pytest.mark.slow

EVERY = 4
"""Steps between two checkpoints."""


class Training:
    """A training in a workspace of its own, run as often as it takes."""

    def __init__(self, run: TrainRun, folder: Path) -> None:
        self.run = run
        self.folder = folder / run.folder
        self.message = folder / "termination-log"
        self._run_file = folder / "run.json"
        self._run_file.write_text(run.model_dump_json(by_alias=True))
        self._scratch = folder / "scratch"

    def start(self, *before: str) -> subprocess.Popen[bytes]:
        """`before`: what comes before the command."""
        variables = {
            "KUBEDISTILL_RUN": str(self._run_file),
            "KUBEDISTILL_TERMINATION_LOG": str(self.message),
            "KUBEDISTILL_SCRATCH": str(self._scratch),
            "KUBEDISTILL_PORT": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [*before, sys.executable, "-m", "kubedistill_trainer", "train"]
        with (self.folder.parents[2] / "log").open("ab") as log:
            return subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log)

    def finish(self) -> TrainResult:
        with self.start() as process:
            code = process.wait(timeout=300)
        assert code == Exit.OK, (self.folder.parents[2] / "log").read_text()[-2000:]
        result = read_result(self.message.read_text())
        assert isinstance(result, TrainResult)
        return result

    def interrupted(self, number: signal.Signals, at_step: int) -> int:
        """Start, send the signal once `at_step` is in the log of losses, and return the exit code."""
        with self.start() as process:
            deadline = time.monotonic() + 240
            while process.poll() is None and (not self.lines or self.lines[-1]["step"] < at_step):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            if process.poll() is None:
                process.send_signal(number)
            return process.wait(timeout=120)

    @property
    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "losses.jsonl"
        texts = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(text) for text in texts if text.endswith("\n")]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines if "loss" in line]

    @property
    def validation_losses(self) -> list[float]:
        return [line["validation_loss"] for line in self.lines if "validation_loss" in line]

    @property
    def checkpoint_steps(self) -> list[int]:
        markers = self.folder.glob("checkpoints/*/checkpoint.json")
        return sorted(json.loads(marker.read_text())["state"]["step"] for marker in markers)

    @property
    def lost_steps(self) -> int:
        """Those that the next attempt takes again."""
        return int(self.lines[-1]["step"]) - max(self.checkpoint_steps, default=0)

    @property
    def on_its_way(self) -> bool:
        """Whether a checkpoint newer than the complete ones was begun."""
        begun = (int(folder.name.removeprefix("step-")) for folder in self.folder.glob("checkpoints/step-*"))
        return max(begun, default=0) > max(self.checkpoint_steps, default=0)


@pytest.fixture(scope="module")
def a_training(
    a_run: Callable[..., TrainRun], answers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Training]:
    """Builds a training of 24 steps with a checkpoint every four; the same name is the same workspace again."""
    trainings = tmp_path_factory.mktemp("trainings")

    def build(name: str, zero_stage: int = 2, processes: int = 1, **changes: Any) -> Training:
        folder = trainings / name
        lay_out(answers, folder)
        training = {
            "hyperparameters": {"epochs": 8, "learningRate": 2e-3},
            "checkpoints": {"everySteps": EVERY, "keepLast": 2},
            "deepspeed": {"zeroStage": zero_stage},
            "processesPerNode": processes,
        }
        plain = {"training": training, "microBatchSize": 2 // processes}
        return Training(a_run(workspace=folder.as_uri(), **{**plain, **changes}), folder)

    return build


@pytest.fixture(scope="module")
def whole(a_training: Callable[..., Training]) -> Callable[[int, int], Training]:
    """The training that nobody touched, at a ZeRO stage in so many processes: each is run once."""

    @cache
    def build(zero_stage: int, processes: int) -> Training:
        training = a_training(f"whole-{zero_stage}-{processes}", zero_stage, processes)
        training.finish()
        return training

    return build


def test_a_training_that_is_killed_again_and_again_ends_like_one_that_never_was(
    a_training: Callable[..., Training], whole: Callable[[int, int], Training]
) -> None:
    killed = a_training("killed")
    lottery = random.Random(7)
    for earliest in (2, 9, 15):
        reached = killed.lines[-1]["step"] if killed.lines else 0
        at_step = max(earliest + lottery.randrange(4), reached + 1)  # so that each attempt has taken a step
        assert killed.interrupted(signal.SIGKILL, at_step) == -signal.SIGKILL
        most = 2 * EVERY if killed.on_its_way else EVERY
        assert killed.lost_steps <= most, "everySteps; and while a checkpoint is on its way, the one before it counts"
    killed.finish()
    assert killed.lines == whole(2, 1).lines
    for file in ("model/model.safetensors", "student.json"):
        assert (killed.folder / file).read_bytes() == (whole(2, 1).folder / file).read_bytes()


def test_sigterm_ends_two_processes_with_a_complete_checkpoint_of_the_same_step(
    a_training: Callable[..., Training], whole: Callable[[int, int], Training]
) -> None:
    stopped = a_training("stopped", processes=2)
    assert stopped.interrupted(signal.SIGTERM, 5) == Exit.STOPPED_AT_CHECKPOINT
    said = read_result(stopped.message.read_text())
    assert isinstance(said, FailedResult)
    assert said.exit_code == Exit.STOPPED_AT_CHECKPOINT
    assert stopped.checkpoint_steps[-1] == stopped.lines[-1]["step"] < 24
    stopped.finish()
    assert stopped.lines == whole(2, 2).lines


def test_the_losses_do_not_depend_on_the_number_of_processes(whole: Callable[[int, int], Training]) -> None:
    one, two = whole(2, 1), whole(2, 2)
    assert two.losses[:4] == pytest.approx(one.losses[:4], rel=1e-5)
    assert two.losses == pytest.approx(one.losses, rel=1e-4), "what rounding differs in grows with the steps"
    assert two.validation_losses == pytest.approx(one.validation_losses, rel=1e-4)


def test_full_memory_ends_with_the_exit_code_that_asks_for_a_smaller_micro_batch(
    a_training: Callable[..., Training],
) -> None:
    full = {"hyperparameters": {"globalBatchSize": 4096}}
    training = a_training("full", training=full, microBatchSize=4096)
    with training.start("prlimit", f"--as={6 * 2**30}") as process:
        assert process.wait(timeout=240) == Exit.DEVICE_OUT_OF_MEMORY
    said = read_result(training.message.read_text())
    assert isinstance(said, FailedResult)
    assert said.reason == "DeviceOutOfMemory"
    assert "micro batch of 4096" in said.message

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
from pathlib import Path
from typing import Any

import pytest

from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, TrainResult, read_result
from kubedistill_api.run import TrainRun
from kubedistill_trainer.runtime import StageContext

pytestmark = pytest.mark.slow

LONG = {"epochs": 8, "learningRate": 2e-3}
"""24 steps."""


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
    def checkpoint_steps(self) -> list[int]:
        markers = self.folder.glob("checkpoints/*/checkpoint.json")
        return sorted(json.loads(marker.read_text())["state"]["step"] for marker in markers)


@pytest.fixture
def a_training(a_run: Callable[..., TrainRun], a_context: Callable[..., StageContext]) -> Callable[..., Training]:
    def build(name: str, **changes: Any) -> Training:
        workspace = a_context(name).workspace
        folder = workspace.local_path("")
        assert folder is not None
        return Training(a_run(workspace=workspace.root, **changes), folder)

    return build


def test_a_training_that_is_killed_again_and_again_ends_like_one_that_never_was(
    a_training: Callable[..., Training],
) -> None:
    changes = {"training": {"hyperparameters": LONG, "checkpoints": {"everySteps": 4, "keepLast": 2}}}
    whole, killed = a_training("whole", **changes), a_training("killed", **changes)
    whole.finish()
    lottery = random.Random(7)
    for earliest in (2, 9, 15):
        assert killed.interrupted(signal.SIGKILL, earliest + lottery.randrange(4)) == -signal.SIGKILL
        lost = killed.lines[-1]["step"] - max(killed.checkpoint_steps, default=0)
        assert lost <= 4 + 1, "at most everySteps, and the one whose checkpoint was being written"
    killed.finish()
    assert killed.lines == whole.lines
    for file in ("model/model.safetensors", "student.json"):
        assert (killed.folder / file).read_bytes() == (whole.folder / file).read_bytes()


def test_sigterm_ends_two_processes_with_a_complete_checkpoint_of_the_same_step(
    a_training: Callable[..., Training],
) -> None:
    changes = {
        "training": {"hyperparameters": LONG, "processesPerNode": 2, "deepspeed": {"zeroStage": 2}},
        "microBatchSize": 1,
    }
    whole, stopped = a_training("whole", **changes), a_training("stopped", **changes)
    whole.finish()
    assert stopped.interrupted(signal.SIGTERM, 5) == Exit.STOPPED_AT_CHECKPOINT
    said = read_result(stopped.message.read_text())
    assert isinstance(said, FailedResult)
    assert said.exit_code == Exit.STOPPED_AT_CHECKPOINT
    assert stopped.checkpoint_steps[-1] == stopped.lines[-1]["step"] < 24
    stopped.finish()
    assert stopped.lines == whole.lines


def test_the_losses_do_not_depend_on_the_number_of_processes(a_training: Callable[..., Training]) -> None:
    one = a_training("one", training={"hyperparameters": {"maxSteps": 4}})
    two = a_training("two", training={"hyperparameters": {"maxSteps": 4}, "processesPerNode": 2}, microBatchSize=1)
    one.finish()
    two.finish()
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert two.lines[-1]["validation_loss"] == pytest.approx(one.lines[-1]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_training_goes_on_with_another_number_of_processes(stage: int, a_training: Callable[..., Training]) -> None:
    zero = {"hyperparameters": LONG, "deepspeed": {"zeroStage": stage}}
    whole = a_training("whole", training=zero)
    whole.finish()
    one = a_training("moved", training=zero)
    assert one.interrupted(signal.SIGTERM, 6) == Exit.STOPPED_AT_CHECKPOINT
    two = a_training("moved", training={**zero, "processesPerNode": 2})
    two.finish()
    assert two.losses == pytest.approx(whole.losses, rel=1e-4)


def test_full_memory_ends_with_the_exit_code_that_asks_for_a_smaller_micro_batch(
    a_training: Callable[..., Training],
) -> None:
    training = a_training("full", training={"hyperparameters": {"globalBatchSize": 4096}}, microBatchSize=4096)
    with training.start("prlimit", f"--as={6 * 2**30}") as process:
        assert process.wait(timeout=240) == Exit.DEVICE_OUT_OF_MEMORY
    said = read_result(training.message.read_text())
    assert isinstance(said, FailedResult)
    assert said.reason == "DeviceOutOfMemory"
    assert "micro batch of 4096" in said.message

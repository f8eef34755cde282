"""A training over two nodes, as its two pods run it: same losses, one end, whatever ends first.

Each pod has its index and a scratch folder of its own; they meet on this machine instead of by a pod's name.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from training.places import lay_out

from kubedistill_api.exits import PEER_LOST, Exit
from kubedistill_api.results import FailedResult, Success, TrainResult, read_result
from kubedistill_api.run import TrainRun
from kubedistill_trainer.store.workspace import Workspace

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240
STEPS = 60


@dataclass
class Pods:
    """The pods of one training, run as often as it takes."""

    run: TrainRun
    home: Path
    """Of their logs, scratch folders and results."""
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *indexes: int) -> None:
        """Start an attempt: the pods of these indexes, at a meeting point of its own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            leader = f"127.0.0.1:{free.getsockname()[1]}"
        run = self.run.model_copy(update={"leader": leader})
        (self.home / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
        self.processes = []
        for index in indexes:
            self.add(index)

    def add(self, index: int) -> None:
        """One more pod of the attempt."""
        self.message(index).unlink(missing_ok=True)
        variables = {
            "KUBEDISTILL_RUN": str(self.home / "run.json"),
            "KUBEDISTILL_TERMINATION_LOG": str(self.message(index)),
            "KUBEDISTILL_SCRATCH": str(self.home / f"scratch-{index}"),
            "KUBEDISTILL_PORT": "0",
            "JOB_COMPLETION_INDEX": str(index),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "kubedistill_trainer", "train"]
        with self.log(index).open("ab") as log:
            self.processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=log, stderr=log))

    def codes(self) -> list[int]:
        """How they ended, by when they were started."""
        return [process.wait(timeout=PATIENCE_SECONDS) for process in self.processes]

    def message(self, index: int) -> Path:
        return self.home / f"termination-{index}"

    def log(self, index: int) -> Path:
        return self.home / f"log-{index}"

    def said(self, index: int) -> Success | FailedResult:
        return read_result(self.message(index).read_text())

    def reason(self, index: int) -> str:
        said = self.said(index)
        assert isinstance(said, FailedResult)
        return said.reason

    def finish(self) -> None:
        self.start(0, 1)
        assert self.codes() == [0, 0], self.log(0).read_text()[-2000:] + self.log(1).read_text()[-2000:]

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.run.workspace)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of the log of losses, as far as the first node has told."""
        name = f"{self.run.folder}/losses.jsonl"
        if not self.workspace.exists(name):
            return []
        texts = self.workspace.read_bytes(name).decode().splitlines(keepends=True)
        return [json.loads(text) for text in texts if text.endswith("\n")]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines if "loss" in line]

    @property
    def checkpoints(self) -> dict[int, dict[str, int]]:
        """Files of each complete checkpoint, by its step."""
        found = {}
        for path in self.workspace.list(f"{self.run.folder}/checkpoints"):
            if path.endswith("/checkpoint.json"):
                marker = json.loads(self.workspace.read_bytes(path))
                found[int(marker["state"]["step"])] = marker["files"]
        return found

    def until(self, happened: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not happened():
            assert time.monotonic() < end
            assert all(process.poll() is None for process in self.processes), self.log(0).read_text()[-2000:]
            time.sleep(0.02)

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                kill_tree(process.pid)
            process.wait()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def kill_tree(pid: int) -> None:
    """What is left of a pod whose container is killed: nothing."""
    for each in (pid, *children(pid)):
        os.kill(each, signal.SIGKILL)


@pytest.fixture(scope="module")
def two_nodes(
    a_run: Callable[..., TrainRun], answers: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Pods]]:
    """Builds trainings of 60 steps over two nodes, with a checkpoint every four."""
    made: list[Pods] = []
    trainings = tmp_path_factory.mktemp("nodes")

    def build(name: str, workspace: str = "", zero_stage: int = 2, **training: Any) -> Pods:
        home = trainings / name
        lay_out(answers, home)
        plain = {
            "hyperparameters": {"epochs": 20, "learningRate": 2e-3, "globalBatchSize": 4},
            "checkpoints": {"everySteps": 4, "keepLast": 2},
            "deepspeed": {"zeroStage": zero_stage},
            "nodes": 2,
        }
        run = a_run(workspace=workspace or home.as_uri(), training={**plain, **training}, microBatchSize=1)
        made.append(Pods(run, home))
        return made[-1]

    yield build
    for pods in made:
        pods.kill()


@pytest.fixture(scope="module")
def whole(two_nodes: Callable[..., Pods]) -> Pods:
    """The training over two nodes that nobody touched."""
    pods = two_nodes("whole")
    pods.finish()
    return pods


def test_two_nodes_train_like_two_processes_and_both_say_what_came_of_it(
    two_nodes: Callable[..., Pods], whole: Pods
) -> None:
    one = two_nodes("one", nodes=1, processesPerNode=2)
    (one.home / "run.json").write_text(one.run.model_dump_json(by_alias=True, exclude_none=True))
    one.add(0)
    assert one.codes() == [0]
    assert len(whole.losses) == STEPS
    assert whole.lines == one.lines
    alone, first, second = one.said(0), whole.said(0), whole.said(1)
    assert isinstance(alone, TrainResult)
    assert isinstance(first, TrainResult)
    assert first == second
    assert first.output_digest == alone.output_digest, "the same student, to the bit"


def test_whatever_ends_one_node_ends_both_and_the_next_attempt_goes_on(
    two_nodes: Callable[..., Pods], whole: Pods
) -> None:
    pods = two_nodes("ended")
    pods.start(0, 1)
    pods.until(lambda: max(pods.checkpoints, default=0) >= 4)
    (rank,) = [pid for pid in children(pods.processes[1].pid) if b"spawn_main" in command(pid)]
    os.kill(rank, signal.SIGKILL)
    with at_most(30):
        assert pods.codes() == [Exit.TRANSIENT, Exit.TRANSIENT]
    assert (pods.reason(0), pods.reason(1)) == (PEER_LOST, "RankKilled")

    before = max(pods.checkpoints)
    pods.start(0, 1)
    pods.until(lambda: pods.lines[-1]["step"] > before + 4)
    pods.processes[1].send_signal(signal.SIGTERM)
    with at_most(60):
        assert pods.codes() == [Exit.STOPPED_AT_CHECKPOINT] * 2
    assert max(pods.checkpoints) == pods.lines[-1]["step"] < STEPS

    before = max(pods.checkpoints)
    pods.start(0, 1)
    pods.until(lambda: pods.lines[-1]["step"] > before + 4)
    kill_tree(pods.processes[0].pid)
    with at_most(60):
        assert pods.codes() == [-signal.SIGKILL, Exit.TRANSIENT]
    assert pods.reason(1) == PEER_LOST

    pods.finish()
    assert pods.lines == whole.lines
    ended, never = pods.said(0), whole.said(0)
    assert isinstance(ended, TrainResult)
    assert isinstance(never, TrainResult)
    assert ended.output_digest == never.output_digest

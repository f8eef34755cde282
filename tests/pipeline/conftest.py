"""Real jobs on this machine: the command line, the stages and a toy model, none of them a stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAIN_ROWS, VALID_ROWS = 24, 6
"""Prompts: four shards to train on, and one that is held out."""
SLICE_SECONDS = 0.02
"""So long a stage runs between two looks at it."""
PATIENCE_SECONDS = 1200
"""For one stage on a busy machine."""
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)

Snapshot = dict[str, tuple[int, int, str]]


@dataclass(frozen=True)
class LocalJob:
    """A folder with a job file, and ways to run it, to look at it, and to hold a stage still."""

    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / ".kubedistill" / "jobs" / "small" / "workspace"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    # Running

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`kubedistill …` in the background, in a process group of its own, as a shell starts it."""
        return subprocess.Popen(
            [sys.executable, "-m", "kubedistill_cli", *(words or ("run", "job.yaml"))],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> str:
        """`kubedistill …` to its end, which must be a good one; what it said."""
        with self.start(*words) as process:
            text, _ = process.communicate(timeout=5 * PATIENCE_SECONDS)
        assert process.returncode == 0, f"{text}\n{self.logs()}"
        return text

    def interrupt(self, stage: str, moment: Callable[[], bool]) -> None:
        """Run the job, press Ctrl-C at a moment of a stage, and wait until the job rests."""
        with self.start() as process:
            held = self.hold(stage, moment, process)
            os.killpg(process.pid, signal.SIGINT)
            _wait(lambda: _is_told_to_stop(held))
            _send(held, signal.SIGCONT)
            text, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130, f"{text}\n{self.logs()}"
        assert "Suspended" in text
        assert not self.processes()

    def kill(self, stage: str, moment: Callable[[], bool]) -> None:
        """Run the job, kill its runner at a moment of a stage, and wait until its processes are gone too."""
        with self.start() as process:
            self.hold(stage, moment, process)
            process.kill()
            process.communicate(timeout=PATIENCE_SECONDS)
        _wait(lambda: not self.processes(), seconds=60)

    def hold(self, stage: str, moment: Callable[[], bool], runner: subprocess.Popen[str]) -> int:
        """The process of a stage, stopped (SIGSTOP) at a moment that its files show.

        It runs in slices and is looked at only while it stands still: however fast the machine, no moment is missed.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        while (held := self._process_of(stage)) is None:
            assert runner.poll() is None, f"the job ended before {stage}\n{self.logs()}"
            assert time.monotonic() < end, f"{stage} did not start"
            time.sleep(0.01)
        while True:
            _send(held, signal.SIGSTOP)
            _wait(lambda: _state(held) in "TZ")
            assert _state(held) == "T", f"{stage} ended before its moment came\n{self.logs()}"
            if moment():
                return held
            assert time.monotonic() < end, f"the moment of {stage} did not come\n{self.logs()}"
            _send(held, signal.SIGCONT)
            time.sleep(SLICE_SECONDS)

    def _process_of(self, stage: str) -> int | None:
        """The newest attempt of a stage: the one process below its leash."""
        file = self.folder / ".kubedistill" / "jobs" / "small" / "children.json"
        children = json.loads(file.read_text())["found"] if file.exists() else {}
        pods = [
            pod
            for name, child in children.items()
            if name.startswith(f"Job/small-{stage}-")
            for pod in child["pods"].values()
        ]
        leashes = [pod["pid"] for pod in pods if pod["pid"] and pod["exit_code"] is None]
        below = [pid for leash in leashes for pid in self.processes() if _parent(pid) == leash]
        return below[0] if below else None

    def processes(self) -> list[int]:
        """Every process of this job's stages that is alive, found by its environment."""
        mine = f"KUBEDISTILL_RUN={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and mine in _read(entry / "environ") and _state(int(entry.name)) not in ("", "Z"):
                found.append(int(entry.name))
        return found

    # Looking

    def stage(self, name: str) -> Path | None:
        """The folder of a stage; None before it has one."""
        found = list(self.workspace.glob("answers/toy-*" if name == "generate" else f"jobs/*/{name}-*"))
        assert len(found) <= 1, f"{name} went to {found}"
        return found[0] if found else None

    def has(self, stage: str, file: str) -> bool:
        folder = self.stage(stage)
        return folder is not None and (folder / file).exists()

    def shards(self) -> list[Path]:
        return sorted(self.workspace.glob("answers/*/shards/*.parquet"))

    def losses(self) -> list[dict[str, Any]]:
        """Lines of the loss log, training and validation, in order; a line that is being written is left out."""
        folder = self.stage("train")
        file = folder / "losses.jsonl" if folder else None
        texts = file.read_text().splitlines(keepends=True) if file and file.exists() else []
        return [json.loads(text) for text in texts if text.endswith("\n")]

    def step(self) -> int:
        """The last optimizer step in the loss log."""
        return max((line["step"] for line in self.losses()), default=0)

    def checkpoint(self) -> int:
        """The step of the newest complete checkpoint; 0: there is none."""
        markers = self.workspace.glob("jobs/*/train-*/checkpoints/*/checkpoint.json")
        return max((json.loads(marker.read_text())["state"]["step"] for marker in markers), default=0)

    def log(self, stage: str) -> str:
        """The log of a stage's newest attempt."""
        files = sorted(self._logs(stage), key=lambda path: path.stat().st_mtime)
        return files[-1].read_text() if files else ""

    def logs(self) -> str:
        """The ends of all logs."""
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted(self._logs("")))

    def _logs(self, stage: str) -> list[Path]:
        return list(self.folder.glob(f".kubedistill/jobs/small/logs/small-{stage}*.log"))

    def committed(self) -> Snapshot:
        """What must never be made again: all shards, and all files that a finished stage vouches for."""
        manifests = [*self.workspace.glob("jobs/*/*/manifest.json"), *self.workspace.glob("answers/*/manifest.json")]
        vouched = [path.parent / name for path in manifests for name in json.loads(path.read_text())["files"]]
        return {
            path.relative_to(self.workspace).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, sha256(path))
            for path in (*manifests, *vouched, *self.shards())
            if path.is_file()  # what Publish vouches for lies at the output
        }

    def published(self) -> dict[str, str]:
        """Digests of what lies at the output, by path; hidden files too."""
        files = [path for path in self.output.rglob("*") if path.is_file()]
        return {path.relative_to(self.output).as_posix(): sha256(path) for path in files}

    def scratch(self) -> list[str]:
        """What the stages left in the folder of things that may be lost."""
        return sorted(path.name for path in (self.workspace.parent / "scratch").iterdir())


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy teacher, which answers shortly."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    command = [sys.executable, EXAMPLES / "models" / "make_toy.py", "--output", folder, "--steps", "100"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=PATIENCE_SECONDS)
    return folder


@pytest.fixture(scope="session")
def make_job(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalJob]:
    """Makes the same small job in a folder of its own: 24 prompts, 4 + 1 shards, 12 steps, a checkpoint every 2."""

    def make(name: str) -> LocalJob:
        folder = tmp_path_factory.mktemp(name) / "my%20jobs & more"  # a folder of a user
        folder.mkdir()
        for file, rows in (("support-train.jsonl", TRAIN_ROWS), ("support-valid.jsonl", VALID_ROWS)):
            lines = (EXAMPLES / "data" / file).read_text().splitlines(keepends=True)[:rows]
            (folder / file).write_text("".join(lines))
        (folder / "job.yaml").write_text(yaml.safe_dump(_document(toy)))
        return LocalJob(folder)

    return make


@pytest.fixture(scope="session")
def whole(make_job: Callable[[str], LocalJob]) -> LocalJob:
    """The job that nobody interrupted."""
    job = make_job("whole")
    job.run()
    return job


def _document(toy: Path) -> dict[str, Any]:
    # One row at a time: which rows are computed together changes the last bits of their scores.
    batch = {"gpus": 0, "batchSize": 1, "precision": "FP32"}
    hyperparameters = {"learningRate": 1e-3, "epochs": 4, "globalBatchSize": 8, "microBatchSize": 2}
    spec = {
        "task": "Conversation",
        "teachers": [{"name": "toy", "model": {"uri": toy.as_uri()}, "batch": batch}],
        "student": {"prunedFrom": {"teacher": "toy", "layers": 2}},
        "data": {
            "train": {"uri": "file://support-train.jsonl"},
            "validation": {"uri": "file://support-valid.jsonl"},
        },
        "generation": {
            "signal": "TopK",
            "topK": 8,
            "temperature": 0,
            "maxTokens": 32,
            "shards": 4,
            "parallelism": 1,
            "minYield": 0.5,
            "filters": {"dropTruncated": False, "dropRepetitive": False, "deduplicate": False},
        },
        "training": {
            "objective": {"type": "ForwardKL", "softWeight": 1.0},
            "hyperparameters": hyperparameters | {"maxSequenceLength": 512},
            "gpusPerNode": 0,
            "precision": "FP32",
            "gradientCheckpointing": False,
            "deepspeed": {"zeroStage": 0},
            "checkpoints": {"everySteps": 2, "keepLast": 2},
        },
        "evaluation": {"metrics": ["TeacherKL", "TeacherAgreement", "ROUGE"]},
        "output": {"uri": "file://out"},
    }
    metadata = {"name": "small"}
    return {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": metadata, "spec": spec}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wait(true: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.0005)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _is_told_to_stop(pid: int) -> bool:
    """Whether SIGTERM waits for a process that stands still, or it is gone already."""
    lines = dict(line.split(":", 1) for line in _read(Path(f"/proc/{pid}/status")).decode().splitlines())
    return not lines or bool(int(lines["ShdPnd"], 16) & SIGTERM_BIT)


def _state(pid: int) -> str:
    """R, S, T, Z …; empty: there is no such process."""
    return _stat(pid, 0)


def _parent(pid: int) -> int:
    return int(_stat(pid, 1) or 0)


def _stat(pid: int, place: int) -> str:
    fields = _read(Path(f"/proc/{pid}/stat")).decode().rpartition(")")[2].split()
    return fields[place] if fields else ""


def _read(path: Path) -> bytes:
    """A file of /proc; empty where the process is gone or somebody else's."""
    try:
        return path.read_bytes()
    except OSError:
        return b""

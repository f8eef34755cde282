"""Real processes for the local runner: a package that stands where the trainer does and ends in milliseconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

STAND_IN = '''
"""A trainer that makes nothing: it keeps the contract (run file in, progress, result out, exit code) and its habits
are set by files in $HABITS: `<stage>.exit` (exit code and reason), `<stage>.sleep` (seconds; it stops on SIGTERM)."""
import json, os, pathlib, signal, sys, time, urllib.parse

run = json.loads(pathlib.Path(os.environ["KUBEDISTILL_RUN"]).read_text())
habits = pathlib.Path(os.environ["HABITS"])
stage = "look" if run.get("lookOnly") else run["stage"].lower()
with (habits / "calls").open("a") as calls:
    calls.write(f"{stage} {run['attempt']} {os.getpid()} {os.environ.get('JOB_COMPLETION_INDEX')}\\n")

def say(**result):
    pathlib.Path(os.environ["KUBEDISTILL_TERMINATION_LOG"]).write_text(json.dumps(result))

def stopped(*_):
    say(outcome="Failed", stage=run["stage"], exitCode=143, **{"class": "Preempted"}, reason="Stopped", message="x")
    sys.exit(143)

signal.signal(signal.SIGTERM, stopped)
if (habits / f"{stage}.sleep").exists():
    time.sleep(float((habits / f"{stage}.sleep").read_text()))
if (habits / f"{stage}.exit").exists():
    code, reason = (habits / f"{stage}.exit").read_text().split()
    if (habits / f"{stage}.once").exists():
        (habits / f"{stage}.exit").unlink()
    print("the last words")
    if reason != "silent":
        kind = {"65": "BadData", "75": "Infrastructure"}.get(code, "Application")
        said = {"stage": run["stage"], "exitCode": int(code), "class": kind, "reason": reason, "message": "Mend it."}
        say(outcome="Failed", **said)
    sys.exit(int(code))
said = {key: run[key] for key in ("stage", "inputDigest", "folder")} | {"outputDigest": "sha256:" + stage}
match run["stage"]:
    case "Prepare":
        said |= {"estimate": {"rows": 3}}
    case "Generate":
        said |= {"teacher": run["teacher"]["name"], "ledger": {"accepted": 3, "rejected": 0}}
        said |= {"missingShards": 5} if stage == "look" and not (habits / "answers.there").exists() else {}
    case "Train":
        said |= {"steps": 4, "loss": 0.5, "microBatchSize": run["microBatchSize"]}
    case "Evaluate":
        said |= {"scores": [{"metric": "ROUGE", "student": "0.5", "baseline": "0.1", "gate": "Passed"}]}
    case "Publish":
        out = pathlib.Path(urllib.parse.unquote(run["output"]["uri"].removeprefix("file://")))
        out.mkdir(parents=True, exist_ok=True)
        said |= {"modelURI": run["output"]["uri"], "digest": "sha256:m", "sizeBytes": 1}
say(**said)
'''

SERVER = '''
"""A vLLM that answers every completion with one and the same word, and notes that it was started."""
import http.server, os, pathlib, sys

with (pathlib.Path(os.environ["HABITS"]) / "servers").open("a") as starts:
    starts.write("started\\n")

class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

port = next(int(word.removeprefix("--port=")) for word in sys.argv if word.startswith("--port="))
http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
'''


@dataclass
class Bench:
    """A folder with a job file, and ways to run the command line on it as a user does."""

    folder: Path

    @property
    def habits(self) -> Path:
        """Where the stand-in's habits are set."""
        return self.folder / "habits"

    def write_job(self, **parts: Any) -> Path:
        """The job file; parts replace fields of its spec."""
        spec = {
            "teachers": [{"name": "big", "model": {"uri": "file://models/big"}, "batch": {"gpus": 0}}],
            "student": {"prunedFrom": {"teacher": "big", "layers": 2}},
            "data": {"train": {"uri": "file://data/train.jsonl"}},
            "generation": {"parallelism": 1},
            "training": {"gpusPerNode": 0},
            "output": {"uri": "file://out/small"},
            **parts,
        }
        document = {
            "apiVersion": "kubedistill.io/v1alpha1",
            "kind": "DistillationJob",
            "metadata": {"name": "small"},
            "spec": spec,
        }
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def environment(self) -> Mapping[str, str]:
        """The stand-in before the trainer on Python's path."""
        return {**os.environ, "PYTHONPATH": str(self.folder / "lib"), "HABITS": str(self.habits), "COLUMNS": "150"}

    def run(self, *words: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """`kubedistill …`, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "kubedistill_cli", *words],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`kubedistill …`, in the background."""
        return subprocess.Popen(
            [sys.executable, "-m", "kubedistill_cli", *words],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def habit(self, name: str, value: str = "") -> None:
        """Set a habit of the stand-in."""
        (self.habits / name).write_text(value)

    def calls(self) -> list[list[str]]:
        """Stage, attempt, pid and index of every start, in order."""
        path = self.habits / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def servers(self) -> int:
        """How often a teacher was started."""
        path = self.habits / "servers"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for(self, true: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An empty bench with the stand-in installed, in a folder whose name is more than letters."""
    tmp_path = tmp_path / "50%20off, all"
    package = tmp_path / "lib" / "kubedistill_trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(textwrap.dedent(STAND_IN))
    server = tmp_path / "lib" / "vllm" / "entrypoints" / "openai"
    server.mkdir(parents=True)
    for folder in (server, *server.parents[:2]):
        (folder / "__init__.py").touch()
    (server / "api_server.py").write_text(textwrap.dedent(SERVER))
    (tmp_path / "habits").mkdir()
    return Bench(tmp_path)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """`alive`, for tests."""
    return alive


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[str]], None]:
    """Ctrl-C."""
    return lambda process: process.send_signal(signal.SIGINT)

"""Trainings in forks of one process that has imported everything: Python and torch take seconds to start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRIPT = Path(__file__).with_name("fork_server.py")


class Server:
    """Forks trainings, one at a time. See fork_server."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._told() == "ready"

    def run(self, folder: Path, death: tuple[int, float] | None) -> int:
        """A training to its end, whose exit code is returned."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps([str(folder), death])}\n")
        self._process.stdin.flush()
        return int(self._told())

    def _told(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@contextmanager
def fork_server(model: Path, log: Path) -> Iterator[Server]:
    """A fork server that has loaded `model`; what it forked ends with it."""
    command = [sys.executable, str(SCRIPT), str(model)]
    pipe = subprocess.PIPE
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, start_new_session=True) as process,
    ):
        try:
            yield Server(process)
        finally:
            os.killpg(process.pid, signal.SIGKILL)

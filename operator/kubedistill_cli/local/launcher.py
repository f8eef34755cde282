"""Starting and ending the processes of this runner: on a leash, each with its own log."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kubedistill_cli.local.processes import kill_descendants


class Launcher:
    """The processes that this runner holds; they die with it (`leash`)."""

    def __init__(self) -> None:
        self._held: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> int:
        """Start a command; its output is appended to the log. The pid is that of its leash."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kubedistill_cli.local.leash", *command],
                env=dict(variables),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the runner, which stops the stages in order
            )
        self._held[process.pid] = process
        return process.pid

    def exit_code(self, pid: int) -> int | None:
        """How a process ended; None while it runs. One that this runner does not hold counts as killed."""
        process = self._held.get(pid)
        if process is None:
            return 128 + signal.SIGKILL
        code = process.poll()
        return None if code is None else (code if code >= 0 else 128 - code)

    def holds(self, pid: int) -> bool:
        """Whether this runner started the process; another did so before it was killed."""
        return pid in self._held

    def terminate(self, pid: int) -> None:
        """Ask a process to stop, as the kubelet does."""
        if self.exit_code(pid) is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def kill(self, pid: int) -> None:
        """End a process and everything below it."""
        if self.exit_code(pid) is None:
            kill_descendants(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._held[pid].wait()

    def kill_all(self) -> None:
        """End every process of this runner."""
        for pid in list(self._held):
            self.kill(pid)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""Long-lived processes that outlive the command that started them, known by the record they leave.

A record holds the pid and the kernel's start time, so a pid that was given to someone else is never taken for ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rig.errors import RigError
from rig.paths import Layout

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Process:
    """A process as it was when it was started. `started` is in clock ticks since boot."""

    name: str
    pid: int
    started: int
    command: tuple[str, ...]

    @property
    def is_alive(self) -> bool:
        """Running, and still the one we started. A zombie is dead."""
        return _start_time(self.pid) == self.started


def start(layout: Layout, name: str, command: Sequence[str | Path], *, owned: bool = False) -> Process:
    """Start a process unless it runs already. `owned`: the kernel ends it when the caller dies."""
    if (process := find(layout, name)) and process.is_alive:
        return process
    words = [str(word) for word in command]
    if owned:
        words = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    # posix_spawn, not subprocess: nothing here waits for the child, and a Popen dropped alive is a warning.
    pid = os.posix_spawnp(words[0], words, os.environ, file_actions=_to_log(layout, name), setsid=True)
    started = _start_time(pid)
    if started is None:
        raise RigError(f"{name} died at once:\n{log_tail(layout, name)}")
    process = Process(name, pid, started, tuple(words))
    _record(layout, name).write_text(json.dumps(asdict(process)))
    return process


def find(layout: Layout, name: str) -> Process | None:
    """The process of this name, dead or alive, if one was ever started."""
    try:
        fields = json.loads(_record(layout, name).read_text())
    except FileNotFoundError:
        return None
    return Process(**{**fields, "command": tuple(fields["command"])})


def stop(layout: Layout, name: str, *, grace_seconds: float = 10) -> None:
    """Ask the process to end, insist after the grace period, forget it. Twice is harmless."""
    if process := find(layout, name):
        end(process, grace_seconds)
        _record(layout, name).unlink()


def end(process: Process, grace_seconds: float) -> None:
    """SIGTERM, then SIGKILL; returns when the process is gone."""
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        if not process.is_alive:
            return
        os.kill(process.pid, number)
        deadline = time.monotonic() + seconds
        while process.is_alive and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    if process.is_alive:
        raise RigError(f"{process.name} (pid {process.pid}) survives SIGKILL")


def wait_until(layout: Layout, name: str, is_up: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait until a process answers; its early death or its silence is an error with the end of its log."""
    deadline = time.monotonic() + seconds
    while not is_up():
        process = find(layout, name)
        if process is None or not process.is_alive:
            raise RigError(f"{name} died:\n{log_tail(layout, name)}")
        if time.monotonic() > deadline:
            raise RigError(f"{name} does not answer after {seconds:.0f} s:\n{log_tail(layout, name)}")
        time.sleep(POLL_SECONDS)


def log_tail(layout: Layout, name: str, characters: int = 2000) -> str:
    """The end of a process's log."""
    path = _log(layout, name)
    return path.read_text(errors="replace")[-characters:] if path.exists() else "(no log)"


def scan(is_ours: Callable[[str], bool]) -> list[Process]:
    """Every process of the machine whose command line is ours, as told by the predicate."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            started = _start_time(pid := int(folder.name))
            if started is not None and is_ours(" ".join(words)):
                found.append(Process(words[0], pid, started, tuple(words)))
    return found


def _start_time(pid: int) -> int | None:
    """When the kernel started this pid; None if there is none or only its zombie, which is buried if ours."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the name in parentheses and may hold anything, so count from its end.
    state, *fields = text.rpartition(")")[2].split()
    if state != "Z":
        return int(fields[18])
    with contextlib.suppress(ChildProcessError):  # somebody else's child: init buries it
        os.waitpid(pid, os.WNOHANG)
    return None


def _to_log(layout: Layout, name: str) -> list[tuple[int, int, str, int, int] | tuple[int, int, int]]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(_log(layout, name)), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]


def _record(layout: Layout, name: str) -> Path:
    return layout.processes / f"{name}.json"


def _log(layout: Layout, name: str) -> Path:
    return layout.logs / f"{name}.log"

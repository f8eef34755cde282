"""Processes of this machine: who they are, whose children they are, and how all of them end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_STAT_PARENT, _STAT_STARTED = 1, 19
"""Positions in /proc/<pid>/stat after the name, which may itself hold blanks (proc(5), fields 4 and 22)."""


def started_at(pid: int) -> int:
    """When a process started, in ticks since boot: with the pid, its identity. 0: there is none."""
    found = _stat(pid)
    return int(found[_STAT_STARTED]) if found else 0


def descendants(pid: int) -> list[int]:
    """All children of a process and theirs, those in sessions of their own too."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))):
            parents.setdefault(int(found[_STAT_PARENT]), []).append(int(entry.name))
    found_pids: list[int] = []
    ahead = [pid]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found_pids.extend(children)
        ahead.extend(children)
    return found_pids


def kill_descendants(pid: int, *, seconds: float = 5.0) -> None:
    """Kill everything below a process, and again what was born meanwhile."""
    end = time.monotonic() + seconds
    while (alive := [p for p in descendants(pid) if _state(p) != "Z"]) and time.monotonic() < end:
        for child in alive:
            _kill(child)
        time.sleep(0.02)


def kill_tree(pid: int, started: int) -> None:
    """Kill a process that was recorded earlier, if it is still the same, with everything below it."""
    if pid and started and started_at(pid) == started:
        kill_descendants(pid, seconds=1.0)
        _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _state(pid: int) -> str:
    found = _stat(pid)
    return found[0] if found else "Z"


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()

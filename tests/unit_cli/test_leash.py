"""The leash: a command that ends when it is asked to, and with whoever holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from kubedistill_cli.local.processes import descendants


@pytest.fixture
def leashed() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kubedistill_cli.local.leash", "sleep", "60"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def child_of(leash: subprocess.Popen[bytes]) -> int:
    """The command's process, as soon as it is born."""
    end = time.monotonic() + 30
    while not (found := descendants(leash.pid)):
        assert time.monotonic() < end
    return found[0]


def is_gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def test_a_command_that_is_asked_to_stop_at_its_birth_stops(leashed: subprocess.Popen[bytes]) -> None:
    with leashed:
        child = child_of(leashed)
        leashed.send_signal(signal.SIGTERM)
        assert leashed.wait(timeout=30) == 128 + signal.SIGTERM
    assert is_gone(child)


def test_a_command_dies_with_its_holder(leashed: subprocess.Popen[bytes]) -> None:
    with leashed:
        child = child_of(leashed)
        assert leashed.stdin is not None
        leashed.stdin.close()
        assert leashed.wait(timeout=30) == 128 + signal.SIGKILL
    assert is_gone(child)

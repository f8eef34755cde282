"""`python -m kubedistill_cli.local.leash COMMAND…`: run a command that must not outlive whoever holds our input open.

When standard input ends, the holder is gone: the command and everything below it are killed, also what moved into a
session of its own (torchrun's workers do). SIGTERM goes to the command alone, as the kubelet sends it. The exit code is
the command's, 128 + n after signal n.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading

from kubedistill_cli.local.processes import kill_descendants

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(command: list[str]) -> int:
    """Run the command until it ends or the holder does."""
    _adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = threading.Event()
    child: subprocess.Popen[bytes] | None = None

    def stop(*_: object) -> None:
        asked.set()
        if child is not None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)  # before the child is born: whoever ends us then would leave it without a leash
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    if asked.is_set():
        child.send_signal(signal.SIGTERM)
    threading.Thread(target=_die_with_holder, daemon=True).start()
    code = child.wait()
    kill_descendants(os.getpid())
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    """Orphans below us become our children, so that none escapes; only Linux can do this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_holder() -> None:
    while os.read(0, 4096):
        pass
    kill_descendants(os.getpid())
    os._exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One line for each step, with the seconds since the start, on standard error: standard output is for answers."""

from __future__ import annotations

import sys
import time

_STARTED = time.monotonic()


def say(message: str) -> None:
    """Tell the person at the terminal what is going on."""
    print(f"rig {time.monotonic() - _STARTED:6.1f}s  {message}", file=sys.stderr, flush=True)

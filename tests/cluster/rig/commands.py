"""One way to run the tools of the system, with an error that tells what they said."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from rig.errors import RigError


def run(
    *command: str | Path, stdin: str | None = None, env: Mapping[str, str] | None = None, live: bool = False
) -> str:
    """Run a command to its end and return its standard output. `live`: its output goes to the terminal instead."""
    words = [str(word) for word in command]
    try:
        # A build's own progress goes to standard error, where progress belongs.
        result = subprocess.run(
            words,
            input=stdin,
            env=env,
            check=False,
            text=True,
            stdout=2 if live else subprocess.PIPE,
            stderr=None if live else subprocess.PIPE,
        )
    except FileNotFoundError:
        raise RigError(f"{words[0]} is not installed") from None
    if result.returncode:
        said = "" if live else f":\n{(result.stderr or result.stdout).strip()[-4000:]}"
        raise RigError(f"{' '.join(words)} failed ({result.returncode}){said}")
    return result.stdout or ""


def succeeds(*command: str | Path) -> bool:
    """Whether a command exits 0; what it says is nobody's business."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=False, capture_output=True).returncode == 0

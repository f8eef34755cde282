"""Two processes that do as they are told: `ranks_script.py <what> <folder>`. Run by test_ranks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubedistill_trainer.errors import DeviceOutOfMemory, StageError, Stopped
from kubedistill_trainer.ranks import run_together


@dataclass(frozen=True)
class Script:
    """What each rank does."""

    what: str
    folder: Path

    def __call__(self, rank: int, stopping: threading.Event, tell: Callable[[Any], None]) -> str:
        (self.folder / f"pid-{rank}").write_text(str(os.getpid()))
        while not (self.folder / f"pid-{1 - rank}").exists():
            time.sleep(0.01)
        tell(f"rank {rank} is here")
        match self.what, rank:
            case "succeed", _:
                return f"result of rank {rank}"
            case "full", 1:
                raise DeviceOutOfMemory("DeviceOutOfMemory", "The device's memory is full.")
            case "bug", 1:
                raise KeyError("something")
            case "killed", 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait", _:
                stopping.wait(60)
                time.sleep(1.0 - 0.8 * rank)  # a checkpoint takes its time, and rank 0 marks it complete, so it is last
                (self.folder / f"saved-{rank}").touch()
                raise Stopped
        threading.Event().wait()  # as in a collective that never ends
        return ""


def main(what: str, folder: Path) -> None:
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        print(
            "returned",
            run_together(Script(what, folder), (0, 1), stopping, lambda told: print("heard", told, flush=True)),
        )
    except StageError as error:
        print("raised", type(error).__name__, error.reason)
    except Stopped:
        print("raised Stopped")
    except RuntimeError as error:
        print("raised RuntimeError", error)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""A fork server of trainings that may kill themselves: `fork_server.py <folder of a model>`. See training.forks.

Each line on its input is a list: a folder with `run.json`, and the step and the seconds into it at which the training
gets SIGKILL, or null. It forks the training and tells its exit code. Ranks of a training are forked, too, and the first
one that begins the step is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from kubedistill_api.base import Stage
from kubedistill_api.run import TrainRun
from kubedistill_trainer import ranks
from kubedistill_trainer.core.order import DataOrder
from kubedistill_trainer.models import load_model, load_tokenizer
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import train
from kubedistill_trainer.store.workspace import Workspace


def attempt(folder: Path, death: tuple[int, float] | None) -> None:
    """One training from where the one before was killed, with a line about the rows of each step it begins."""
    rows_of_step = DataOrder.rows_of_step

    def told(order: DataOrder, step: int) -> tuple[int, ...]:
        rows = rows_of_step(order, step)
        with (folder / "rows").open("a") as file:
            file.write(json.dumps([step, rows]) + "\n")
        if death is not None and step == death[0]:
            threading.Timer(death[1], os.kill, (os.getpid(), signal.SIGKILL)).start()
        return rows

    DataOrder.rows_of_step = told  # type: ignore[method-assign]
    ranks.multiprocessing = Forking()  # type: ignore[attr-defined]
    run = TrainRun.model_validate_json((folder / "run.json").read_text())
    context = StageContext(
        Workspace.open(run.workspace), folder / "scratch", ProgressBoard(Stage.TRAIN), threading.Event()
    )
    train.run(run, context)


class Forking:
    """`multiprocessing` whose every way to start a process is a fork."""

    def get_context(self, _: str) -> Any:
        return multiprocessing.get_context("fork")

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)


def warm(model: Path) -> None:
    """What is imported or computed once in a process, and would be in every fork: most of its time."""
    import peft  # noqa: F401
    import pyarrow.dataset  # noqa: F401

    load_model(model, torch.float32)
    load_tokenizer(model)


def main(model: Path) -> None:
    warm(model)
    print("ready", flush=True)
    for line in sys.stdin:
        folder, death = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
            attempt(Path(folder), death)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""A fork server of trainings that kill themselves: `kills_script.py <folder of a model>`. Run by test_kills.

Each line on its input is a list: a folder with `run.json`, and the step and the seconds into it at which the training
gets SIGKILL, or null. It forks the training and tells its exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from kubedistill_api.base import Stage
from kubedistill_api.run import TrainRun
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
    run = TrainRun.model_validate_json((folder / "run.json").read_text())
    context = StageContext(
        Workspace.open(run.workspace), folder / "scratch", ProgressBoard(Stage.TRAIN), threading.Event()
    )
    train.run(run, context)


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
            attempt(Path(folder), death)
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

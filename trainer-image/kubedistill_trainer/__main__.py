"""`python -m kubedistill_trainer <stage>`: run the stage that the run file describes."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import cast

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.results import CLASS_OF_EXIT, FailedResult
from kubedistill_trainer import runtime
from kubedistill_trainer.errors import BadConfiguration, StageError


def main(arguments: list[str]) -> int:
    """Run one stage; the exit code is one of `kubedistill_api.exits`."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    _hush_libraries()
    stages = {stage.lower(): stage for stage in Stage}
    asked = arguments[0].lower() if len(arguments) == 1 else ""
    if asked not in stages:
        print(f"usage: python -m kubedistill_trainer {{{'|'.join(stages)}}}", file=sys.stderr)
        return int(Exit.BAD_CONFIGURATION)
    try:
        run = runtime.load_run()
        if run.stage is not stages[asked]:
            raise BadConfiguration("RunFileInvalid", f"The run file is for {run.stage}, not for {stages[asked]}.")
        context = runtime.open_context(run)
    except StageError as error:
        return _refuse(stages[asked], error)
    with runtime.surroundings(context):
        module = cast(runtime.StageModule, importlib.import_module(f"kubedistill_trainer.stages.{asked}"))
        result = runtime.execute(run, context, module)
    runtime.write_termination_message(result)
    return runtime.exit_code(result)


def _hush_libraries() -> None:
    """Keep the log for what the stage says: how far it is, the progress endpoint tells. Ranks inherit this."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is told by us, without a stack of C++
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars obey it too, if it is set early


def _refuse(stage: Stage, error: StageError) -> int:
    logging.getLogger("kubedistill").error("%s: %s", error.reason, error.message)
    code = error.exit_code
    runtime.write_termination_message(
        FailedResult(
            stage=stage, exit_code=int(code), class_=CLASS_OF_EXIT[code], reason=error.reason, message=error.message
        )
    )
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

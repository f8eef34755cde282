"""What cannot be trained here is told at once: nothing was fetched, and nothing is there to be fetched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from teaching.work import context_of

from kubedistill_api.exits import Exit
from kubedistill_api.run import TrainRun
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.stages import train
from kubedistill_trainer.store.workspace import Workspace

TOO_MANY = {"gpusPerNode": torch.cuda.device_count() + 1, "precision": "BF16"}
"""GPUs: more than this machine has, whichever it is."""
ZERO_3 = {"zero_optimization": {"stage": 3}}

REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "half precision on a CPU": (
        {"training": {"precision": "FP16"}},
        "PrecisionUnsupported",
        "write training.precision",
    ),
    "a micro batch that divides nothing": ({"microBatchSize": 3}, "TrainingUnsupported", "cannot be set up"),
    "a ZeRO stage beside the spec's own": (
        {"training": {"deepspeed": {"config": ZERO_3}}},
        "TrainingUnsupported",
        "zeroStage",
    ),
    "GPUs that are not there": (
        {"training": TOO_MANY},
        "DevicesMissing",
        f"asks for {TOO_MANY['gpusPerNode']} GPUs and sees {torch.cuda.device_count()}: write training.gpusPerNode: 0",
    ),
    "four bits on GPUs that are not there": (
        {"training": TOO_MANY, "student": {"adapter": {"type": "QLoRA"}}},
        "DevicesMissing",
        "write training.gpusPerNode: 0",
    ),
}


@pytest.mark.parametrize(("changes", "reason", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_trained_here_is_refused_before_anything_is_fetched(
    changes: dict[str, Any], reason: str, words: str, a_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    context = context_of(Workspace.open((tmp_path / "empty").as_uri()), tmp_path / "scratch")
    with pytest.raises(BadConfiguration) as refused:
        train.run(a_run(workspace=context.workspace.root, **changes), context)
    assert (refused.value.reason, refused.value.exit_code) == (reason, Exit.BAD_CONFIGURATION)
    assert words in refused.value.message
    assert refused.value.message.endswith(".")
    assert not list(tmp_path.iterdir())

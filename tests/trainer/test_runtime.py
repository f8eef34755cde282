"""What happens around every stage."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from teaching.work import context_of

from kubedistill_api.base import Stage
from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, Success, TrainResult
from kubedistill_api.run import GenerateRun, Run, TrainRun
from kubedistill_trainer import runtime
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store.workspace import Workspace

DAY = 24 * 3600


class Idle:
    """A stage that does nothing."""

    @staticmethod
    def run(run: Any, context: StageContext) -> Success:
        return TrainResult(
            input_digest="i", output_digest="o", folder=run.folder, steps=1, loss=0.0, micro_batch_size=1
        )


ALONE = TrainRun.model_construct(stage=Stage.TRAIN, folder="mine", input_digest="i")
AMONG_OTHERS = GenerateRun.model_construct(stage=Stage.GENERATE, folder="mine", input_digest="i")


@pytest.mark.parametrize(
    ("run", "worker", "left"),
    [
        pytest.param(ALONE, 0, [], id="alone"),
        pytest.param(ALONE, 1, ["old", "young"], id="a-rank-beside-the-first"),
        pytest.param(AMONG_OTHERS, 0, ["young"], id="among-other-workers"),
        pytest.param(AMONG_OTHERS, 3, ["young"], id="any-of-them"),
    ],
)
def test_a_stage_removes_the_drafts_that_are_surely_dead(
    tmp_path: Path, run: Run, worker: int, left: list[str]
) -> None:
    place = Workspace.open(f"file://{tmp_path}/workspace")
    for folder in ("mine/deep", "other"):
        for name, age in (("young", 60), ("old", DAY + 60)):
            draft = tmp_path / "workspace" / folder / f".draft-{name}"
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(b"ha")
            os.utime(draft, (time.time() - age, time.time() - age))
    assert isinstance(runtime.execute(run, context_of(place, tmp_path / "scratch", worker), Idle), TrainResult)
    mine, other = (sorted(p.name for p in (tmp_path / "workspace" / f).iterdir()) for f in ("mine/deep", "other"))
    assert mine == [f".draft-{name}" for name in left]
    assert other == [".draft-old", ".draft-young"]


class Full:
    """A stage whose disk is full."""

    @staticmethod
    def run(run: Any, context: StageContext) -> Success:
        Path("/dev/full").write_bytes(b"more than nothing")
        raise AssertionError


class FullInWords:
    """The same in safetensors, whose errors have no number."""

    @staticmethod
    def run(run: Any, context: StageContext) -> Success:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


class FullForTorch:
    """The same where a checkpoint is written."""

    @staticmethod
    def run(run: Any, context: StageContext) -> Success:
        torch.save(torch.zeros(2**20), "/dev/full")
        raise AssertionError


@pytest.mark.parametrize("stage", [Full, FullInWords, FullForTorch])
def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, stage: Any) -> None:
    place = Workspace.open(f"file://{tmp_path}/workspace")
    failed = runtime.execute(ALONE, context_of(place, tmp_path / "scratch", 0), stage)
    assert isinstance(failed, FailedResult)
    assert (failed.reason, failed.exit_code) == ("DiskFull", Exit.TRANSIENT)
    assert "ask for ephemeral-storage" in failed.message


def test_a_torn_file_is_no_full_disk(tmp_path: Path) -> None:
    torn = tmp_path / "torn.pt"
    torch.save(torch.zeros(2**10), torn)
    torn.write_bytes(torn.read_bytes()[:2000])
    with pytest.raises(RuntimeError, match="PytorchStreamReader") as error:
        torch.load(torn)
    assert runtime.describe(error.value, ALONE).reason == "UnexpectedError"

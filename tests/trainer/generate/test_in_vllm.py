"""Generate with a real vLLM in its process: stopped in the middle, and begun again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kubedistill_api.exits import Exit
from kubedistill_api.results import FailedResult, read_result
from kubedistill_api.run import GenerateRun
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.workspace import Workspace

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

PATIENCE_SECONDS = 600


def test_after_a_stop_only_what_is_missing_is_made(
    workspace: Workspace, a_run: Callable[..., GenerateRun], broad_folder: Path, tmp_path: Path
) -> None:
    batch = {"engine": "VLLM", "gpus": 0, "batchSize": 2, "precision": "FP32"}
    teacher = Teacher.model_validate({"name": "t", "model": {"uri": broad_folder.as_uri()}, "batch": batch})
    filters = {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0}
    run = a_run(kind="batch", signal="TopK", topK=5, maxTokens=64, filters=filters)
    (tmp_path / "run.json").write_text(run.model_copy(update={"teacher": teacher}).model_dump_json(by_alias=True))

    with start(tmp_path) as stage:
        wait_for(lambda: stage.poll() is not None or bool(shards(workspace)))
        stage.send_signal(signal.SIGTERM)
        assert stage.wait(PATIENCE_SECONDS) == Exit.STOPPED_AT_CHECKPOINT
    kept = shards(workspace)
    assert 0 < len(kept) < 9
    assert manifests.load(workspace, "answers/t-1") is None

    with start(tmp_path) as stage:
        assert stage.wait(PATIENCE_SECONDS) == Exit.OK
    assert len(shards(workspace)) == 9
    assert kept.items() <= shards(workspace).items()
    assert manifests.load(workspace, "answers/t-1") is not None


def test_devices_that_are_not_there_are_told_before_the_model_is_fetched(
    workspace: Workspace, a_run: Callable[..., GenerateRun], tmp_path: Path
) -> None:
    """By the vLLM for CPUs that is here; the model could not be fetched."""
    teacher = Teacher.model_validate(
        {"name": "t", "model": {"uri": "file:///nowhere"}, "batch": {"engine": "VLLM", "gpus": 2}}
    )
    run = a_run(kind="batch").model_copy(update={"teacher": teacher})
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    with start(tmp_path) as stage:
        assert stage.wait(PATIENCE_SECONDS) == Exit.BAD_CONFIGURATION
    said = read_result((tmp_path / "said.json").read_text())
    assert isinstance(said, FailedResult)
    assert said.reason == "DevicesDiffer"
    assert "batch.gpus is 2, but this vLLM is built for CPUs" in said.message


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The stage as a pod runs it."""
    told = {
        "KUBEDISTILL_RUN": str(folder / "run.json"),
        "KUBEDISTILL_SCRATCH": str(folder / "scratch"),
        "KUBEDISTILL_TERMINATION_LOG": str(folder / "said.json"),
        "KUBEDISTILL_PORT": "0",
    }
    return subprocess.Popen([sys.executable, "-m", "kubedistill_trainer", "generate"], env={**os.environ, **told})


def shards(workspace: Workspace) -> dict[str, int]:
    """When each was written, in nanoseconds, by its path."""
    folder = workspace.local_path("answers/t-1/shards")
    assert folder is not None
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)

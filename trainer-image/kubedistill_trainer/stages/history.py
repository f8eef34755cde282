"""What the stages before said, read from their manifests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from kubedistill_api.identity import digest, short
from kubedistill_api.results import GenerateResult, PrepareResult, ResultBase, TrainResult
from kubedistill_api.run import EvaluateRun, PublishRun
from kubedistill_trainer.errors import NotFound
from kubedistill_trainer.report.content import Point
from kubedistill_trainer.report.lineage import Origin
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.workspace import Workspace

ResultType = TypeVar("ResultType", bound=ResultBase)


def result_of(workspace: Workspace, folder: str, kind: type[ResultType]) -> ResultType:
    """The recorded result of a finished stage.

    Raises:
        NotFound: that stage has not finished, or another one wrote there.
    """
    manifest = manifests.load(workspace, folder)
    if manifest is None or not isinstance(manifest.result, kind):
        name = kind.__name__.removesuffix("Result")
        raise NotFound("StageOutputMissing", f"{workspace.uri(folder)} holds no finished {name}: run it first.")
    return manifest.result


def origin_of(run: EvaluateRun | PublishRun, context: StageContext) -> Origin:
    """How the student came to be.

    Raises:
        NotFound: a stage before has not finished.
    """
    asked = run.spec if isinstance(run, PublishRun) else run
    return Origin(
        spec_digest=run.job.spec_digest,
        teachers=asked.teachers,
        student=asked.student,
        data=asked.data,
        generation=asked.generation,
        training=asked.training,
        prepare=result_of(context.workspace, run.prepared, PrepareResult),
        generates=[result_of(context.workspace, folder, GenerateResult) for folder in run.answers],
        train=result_of(context.workspace, run.trained, TrainResult),
    )


def model_folder(trained: str, context: StageContext) -> Path:
    """A local folder with the trained student's weights."""
    rel = f"{trained}/model"
    local = context.workspace.local_path(rel)
    if local is not None:
        return local
    target = context.scratch / "trained" / short(digest(rel))
    if not target.is_dir():
        partial = target.with_suffix(".partial")
        context.workspace.fetch(rel, partial)
        partial.rename(target)
    return target


def losses_of(trained: str, context: StageContext) -> tuple[list[Point], list[Point]]:
    """The loss of each step, and of each validation; both empty if none were written."""
    path = f"{trained}/losses.jsonl"
    if not context.workspace.exists(path):
        return [], []
    lines = [json.loads(line) for line in context.workspace.read_bytes(path).splitlines() if line.strip()]
    return _points(lines, "loss"), _points(lines, "validation_loss")


def _points(lines: Sequence[dict[str, Any]], name: str) -> list[Point]:
    return [Point(int(line["step"]), float(line[name])) for line in lines if line.get(name) is not None]

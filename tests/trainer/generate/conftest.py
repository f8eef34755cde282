"""A prepared workspace, run files for Generate, and a teacher over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from teaching.work import prepare, prompt_row

from kubedistill_api.base import Task
from kubedistill_api.generation import Generation
from kubedistill_api.run import Endpoint, GenerateRun, JobIdentity
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, tiny_folder: Path) -> Workspace:
    """Forty prompts for training and four for validation, and the tokenizers."""
    place = Workspace.open(f"file://{tmp_path / 'workspace'}")
    prepare(place, tiny_folder, [prompt_row(f"Question {i}?") for i in range(40)])
    return place


@pytest.fixture
def a_run(workspace: Workspace, tiny_folder: Path) -> Callable[..., GenerateRun]:
    """A run file; what a test does not name is ordinary."""

    def make(
        url: str = "", kind: str = "external", task: Task = Task.CONVERSATION, labels: tuple[str, ...] = (), **more: Any
    ) -> GenerateRun:
        workers = more.pop("workers", 1)
        how: dict[str, Any] = {
            "external": {"external": {"url": url, "model": "teacher", "termsAccepted": True, "maxConcurrency": 4}},
            "serving": {"serving": {"idleTimeoutSeconds": 60}},
            "batch": {"batch": {"gpus": 0, "batchSize": 16, "precision": "FP32"}},
        }[kind]
        return GenerateRun(
            job=JobIdentity(namespace="default", name="job", uid="u", spec_digest="sha256:s"),
            workspace=workspace.root,
            folder="answers/t-1",
            input_digest="sha256:in",
            task=task,
            labels=list(labels),
            teacher=Teacher.model_validate({"name": "t", "model": {"uri": f"file://{tiny_folder}"}, **how}),
            endpoint=Endpoint(url=url, model="teacher") if url else None,
            generation=Generation.model_validate({"shards": 8, "maxTokens": 24, "minYield": 0.5, **more}),
            prepared="prepared",
            workers=workers,
        )

    return make

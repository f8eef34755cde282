"""Models as they come out of a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kubedistill_api.results import PrepareResult
from kubedistill_api.status import Estimate, ResolvedModel
from kubedistill_api.teachers import ModelRef
from kubedistill_trainer.models import at_ease, pinned
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import Manifest
from kubedistill_trainer.store.workspace import Workspace

OLD, NEW = "1" * 40, "2" * 40
"""The commit that Prepare found, and the one that the branch names since."""


class Weights(nn.Linear):
    """As much of a model as matters here."""

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype


@pytest.mark.parametrize(
    ("dtype", "flags"),
    [(torch.bfloat16, {"avx512_bf16", "amx_bf16", "bf16"}), (torch.float16, {"avx512_fp16", "amx_fp16", "asimdhp"})],
)
def test_half_precision_stays_where_the_cpu_computes_in_it(dtype: torch.dtype, flags: set[str]) -> None:
    """What the kernel says of the CPU decides."""
    native = flags & set(Path("/proc/cpuinfo").read_text().split())
    assert at_ease(Weights(2, 2, dtype=dtype)).dtype is (dtype if native else torch.float32)


def test_float32_stays_and_a_gpu_is_left_alone() -> None:
    assert at_ease(Weights(2, 2)).dtype is torch.float32
    assert at_ease(Weights(2, 2, dtype=torch.bfloat16, device="meta")).dtype is torch.bfloat16


def prepared() -> PrepareResult:
    """What Prepare found of a student and a teacher on the hub."""
    models = [ResolvedModel(role=role, uri="hf://acme/tiny", revision=OLD) for role in ("student", "teacher:big")]
    return PrepareResult(
        input_digest="sha256:i", output_digest="sha256:o", folder="prepared", estimate=Estimate(), models=models
    )


PINS = {
    "a-branch": (ModelRef(uri="hf://acme/tiny", revision="main"), "student", OLD),
    "no-revision": (ModelRef(uri="hf://acme/tiny"), "teacher:big", OLD),
    "a-folder": (ModelRef(uri="file:///models/tiny"), "student", ""),
    "another-model": (ModelRef(uri="hf://acme/other", revision="main"), "student", "main"),
    "unknown-to-prepare": (ModelRef(uri="hf://acme/tiny", revision="main"), "teacher:small", "main"),
}


@pytest.mark.parametrize(("ref", "role", "revision"), PINS.values(), ids=PINS.keys())
def test_a_model_of_the_hub_is_pinned_to_the_commit_that_prepare_found(ref: ModelRef, role: str, revision: str) -> None:
    manifest = Manifest(input_digest="sha256:i", output_digest="sha256:o", result=prepared())
    assert pinned(ref, role, manifest) == ref.model_copy(update={"revision": revision})
    assert pinned(ref, role, None) == ref


@pytest.fixture
def hub(tmp_path: Path, tiny_folder: Path) -> dict[str, str]:
    """An environment whose hub cache has two commits of a model; its branch is at the newer one."""
    model = tmp_path / "hub" / "models--acme--tiny"
    for commit in (OLD, NEW):
        shutil.copytree(tiny_folder, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NEW)
    return {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "student", [{"model": {"uri": "hf://acme/tiny"}}, {"prunedFrom": {"teacher": "big", "layers": 1}}]
)
def test_the_student_and_the_teacher_beside_it_are_of_the_commit_that_prepare_found(
    hub: dict[str, str], tmp_path: Path, student: dict[str, Any]
) -> None:
    """In a process of its own: the hub's library reads its environment when it is imported."""
    place = Workspace.open(f"file://{tmp_path}/workspace")
    manifests.commit(place, prepared())
    teachers = [{"name": "big", "model": {"uri": "hf://acme/tiny", "revision": "main"}, "batch": {"gpus": 0}}]
    said = subprocess.run(
        [sys.executable, "-c", LOOK, place.root, json.dumps(student), json.dumps(teachers)],
        env=hub, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert [Path(line).name for line in said.stdout.split()] == [OLD, NEW, OLD], said.stderr


LOOK = """
import json, pathlib, sys, threading
from kubedistill_api.base import Stage
from kubedistill_api.run import TrainRun
from kubedistill_api.student import Student
from kubedistill_api.teachers import ModelRef, Teacher
from kubedistill_api.training import Objective, Training
from kubedistill_trainer.models import fetch_model
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.train import _teacher_beside
from kubedistill_trainer.store.workspace import Workspace
from kubedistill_trainer.students import fetch_source

root, student, teachers = sys.argv[1:]
context = StageContext(Workspace.open(root), pathlib.Path("unused"), ProgressBoard(Stage.TRAIN), threading.Event())
run = TrainRun.model_construct(
    student=Student.model_validate(json.loads(student)),
    teachers=[Teacher.model_validate(teacher) for teacher in json.loads(teachers)],
    prepared="prepared",
    training=Training.model_construct(objective=Objective.model_validate({"hiddenStates": {}})),
)
print(fetch_source(run, context))
print(fetch_model(ModelRef(uri="hf://acme/tiny"), context))
print(_teacher_beside(run, context))
"""

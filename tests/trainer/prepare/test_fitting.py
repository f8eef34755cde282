"""A student that cannot fit the memory that the spec states is refused with both numbers; one that may fit is not."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kubedistill_api.documents import parse_job
from kubedistill_api.job import DistillationJobSpec
from kubedistill_trainer.core.estimates import ModelShape, least_bytes, student_bytes
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.preparation.expecting import plan_of
from kubedistill_trainer.preparation.fitting import check_student, check_volume, size_of
from kubedistill_trainer.store.workspace import FolderWorkspace, Workspace

GB = 10**9
BILLION = ModelShape(
    parameters=GB,
    layer_parameters=40_000_000,
    layers=20,
    hidden=2048,
    kv_heads=8,
    head_dim=64,
    vocabulary=32_000,
    layer_linear=40_000_000,
    layer_features=30_000,
)
GPU = "nvidia.com/gpu.memory"


def a_spec(limit: Any = None, label: str = "", adapter: Any = None, **training: Any) -> DistillationJobSpec:
    template: dict[str, Any] = {"stage": "Train"}
    if limit is not None:
        template["resources"] = {"limits": {"memory": limit}}
    if label:
        template["nodeSelector"] = {GPU: label}
    spec = {
        "teachers": [{"name": "t", "model": {"uri": "file:///m"}, "batch": {"gpus": 0}}],
        "student": {"model": {"uri": "file:///s"}, **({"adapter": adapter} if adapter else {})},
        "data": {"train": {"uri": "file:///d.jsonl"}},
        "training": {"gpusPerNode": 0, **training},
        "stageTemplates": [template],
        "output": {"uri": "file:///o"},
    }
    head = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": {"name": "j"}}
    return parse_job({**head, "spec": spec}).spec


def refusal(spec: DistillationJobSpec, shape: ModelShape = BILLION, beside: tuple[ModelShape, ...] = ()) -> str:
    """Empty: it is not refused."""
    try:
        check_student(spec, shape, plan_of(spec), beside)
    except BadConfiguration as error:
        return f"{error.reason}: {error.message}"
    return ""


FULL: dict[str, tuple[dict[str, Any], int]] = {
    "float32": ({"precision": "FP32", "deepspeed": {"zeroStage": 0}}, 16),
    "bfloat16": ({"deepspeed": {"zeroStage": 2}}, 16),
    "two-processes": ({"precision": "FP32", "deepspeed": {"zeroStage": 0}, "processesPerNode": 2}, 32),
    "two-that-share-it": ({"precision": "FP32", "deepspeed": {"zeroStage": 3}, "processesPerNode": 2}, 16),
    "the-optimizer-elsewhere": ({"deepspeed": {"zeroStage": 2, "offloadOptimizer": True}}, 2),
}


@pytest.mark.parametrize(("training", "per_parameter"), FULL.values(), ids=FULL)
def test_a_pod_on_cpus_must_hold_the_states_of_all_its_processes(training: dict[str, Any], per_parameter: int) -> None:
    """A billion parameters: so many bytes for each are so many gigabytes."""
    assert refusal(a_spec(per_parameter * GB, **training)) == ""
    assert refusal(a_spec(per_parameter * GB - 1, **training)) != ""
    assert refusal(a_spec(None, **training)) == ""


def test_the_sentence_has_both_numbers_and_what_to_write() -> None:
    said = refusal(a_spec("16Gi", precision="FP32", deepspeed={"zeroStage": 0}, processesPerNode=2))
    assert said == (
        "StudentDoesNotFit: The training of a student of 1,000,000,000 parameters takes at least 29.8 GiB "
        "(2 processes of 14.9 GiB each): weights, gradients and the optimizer's state. "
        "limits.memory of stageTemplates Train is 16.0 GiB: write a higher limit, fewer processesPerNode, "
        "a smaller student, or student.adapter."
    )


def test_a_gpu_has_what_the_label_of_the_selected_nodes_says() -> None:
    """The label counts MiB, and ZeRO spreads over GPUs what each of them must hold."""
    one, four = {"gpusPerNode": 1}, {"gpusPerNode": 4, "deepspeed": {"zeroStage": 3}}
    assert refusal(a_spec(label="15258", **one)) != ""  # 15,259 MiB are 16 GB
    assert refusal(a_spec(label="15259", **one)) == ""
    assert refusal(a_spec(label="3814", **four)) != ""
    assert refusal(a_spec(label="3815", **four)) == ""
    said = refusal(a_spec(label="8192", **one))
    assert "GPUs (nvidia.com/gpu.memory) have 8.0 GiB" in said
    assert "more gpusPerNode with deepspeed.zeroStage: 3" in said


NOTHING_STATED: dict[str, DistillationJobSpec] = {
    "a-limit-of-a-pod-with-gpus": a_spec("1Gi", gpusPerNode=1),
    "a-label-of-a-pod-without": a_spec(label="1"),
    "a-label-that-is-no-number": a_spec(label="40GB", gpusPerNode=1),
    "a-limit-that-is-no-quantity": a_spec("much"),
    "deepspeed-as-the-user-has-it": a_spec(1, deepspeed={"config": {"zero_optimization": {"stage": 3}}}),
}


@pytest.mark.parametrize("spec", NOTHING_STATED.values(), ids=NOTHING_STATED)
def test_where_nothing_is_stated_nothing_is_refused(spec: DistillationJobSpec) -> None:
    assert refusal(spec) == ""


@pytest.mark.parametrize(("kind", "least"), [("LoRA", 2 * GB), ("QLoRA", 0.813 * GB)])
def test_beside_adapters_only_the_frozen_weights_count(kind: str, least: float) -> None:
    asked = {"adapter": {"type": kind}, "gpusPerNode": 1}
    assert refusal(a_spec(label=str(int(least * 1.01) >> 20), **asked)) == ""
    said = refusal(a_spec(label=str(int(least * 0.99) >> 20), **asked))
    assert "the weights alone" in said
    assert "student.adapter" not in said


def test_a_teacher_beside_the_student_counts_as_well() -> None:
    asked: dict[str, Any] = {"precision": "FP32", "deepspeed": {"zeroStage": 0}}
    assert refusal(a_spec(17 * GB, **asked)) == ""
    assert "the teacher's weights beside them" in refusal(a_spec(17 * GB, **asked), beside=(BILLION,))
    assert refusal(a_spec(20 * GB, **asked), beside=(BILLION,)) == ""


def test_the_whole_estimate_is_never_what_is_refused_for() -> None:
    """What passes may still be too large: activations depend on a batch, which is halved where memory is full."""
    for training, _ in FULL.values():
        plan = plan_of(a_spec(**training))
        assert refusal(a_spec(student_bytes(BILLION, plan) * (training.get("processesPerNode") or 1), **training)) == ""


def test_what_is_refused_for_is_what_torch_holds_at_its_first_step(tiny_model: Any) -> None:
    """Not a byte more: weights, gradients and both moments, in float32 without ZeRO."""
    model = copy.deepcopy(tiny_model).train()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.tensor([[1, 2, 3]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    held = sum(each.numel() * each.element_size() for each in (*model.parameters(), *gradients, *moments))
    plan = plan_of(a_spec(precision="FP32", deepspeed={"zeroStage": 0}))
    assert least_bytes(ModelShape.of(tiny_model), plan) == held


QUANTITIES: dict[int | str, int | None] = {
    8589934592: 8 * 2**30,
    "8Gi": 8 * 2**30,
    "1.5Gi": 3 * 2**29,
    "8G": 8 * 10**9,
    "8e9": 8 * 10**9,
    "500M": 5 * 10**8,
    "2048Ki": 2 * 2**20,
    "1k": 1000,
    "1500m": 1,
    "1E": 10**18,
    "": None,
    "8 Gi": None,
    "8GB": None,
    "-1": None,
    "1e99": None,
}


@pytest.mark.parametrize(("quantity", "size"), QUANTITIES.items(), ids=repr)
def test_quantities_are_read_as_kubernetes_does(quantity: int | str, size: int | None) -> None:
    assert size_of(quantity) == size


class Volume(FolderWorkspace):
    """A claim with so much room: a real one of that size would need a file system of its own."""

    def __init__(self, free: int) -> None:
        super().__init__("pvc://team/small", Path("/nowhere"))
        self.free = free

    def free_bytes(self) -> int:
        return self.free


def too_small(free: int, milestones: int = 100, **more: Any) -> str:
    """Empty: it is not refused."""
    spec = a_spec(**more)
    try:
        check_volume(spec, BILLION, plan_of(spec), milestones, Volume(free))
    except BadConfiguration as error:
        return f"{error.reason}: {error.message}"
    return ""


@pytest.mark.parametrize(
    ("more", "milestones", "needed"),
    [
        ({}, 100, 4 * 14 * GB),
        ({"checkpoints": {"keepLast": 1}}, 100, 2 * 14 * GB),
        ({"precision": "FP32"}, 100, 4 * 12 * GB),
        ({}, 2, 2 * 14 * GB),
        ({}, 1, 14 * GB),
        ({"adapter": {"rank": 8, "alpha": 8}}, 100, 4 * 14 * 20 * 30_000 * 8),
    ],
    ids=["default", "keepLast", "float32", "two-milestones", "one-milestone", "adapter"],
)
def test_a_workspace_must_hold_the_checkpoints_that_lie_there_at_a_time(
    more: dict[str, Any], milestones: int, needed: int
) -> None:
    assert too_small(needed, milestones, **more) == ""
    assert too_small(needed - 1, milestones, **more).startswith("WorkspaceTooSmall: ")


def test_the_sentence_of_a_small_workspace_has_both_numbers_and_what_to_write() -> None:
    assert too_small(50 * 2**30) == (
        "WorkspaceTooSmall: The training keeps 4 checkpoints of 13.0 GiB each at a time, and pvc://team/small has "
        "50.0 GiB left: write a larger workspace.pvc.size, a bucket as workspace.uri, a checkpoints.keepLast below 3, "
        "a smaller student, or student.adapter."
    )


def test_what_is_free_is_known_of_a_folder_before_it_is_made(tmp_path: Path) -> None:
    free = Workspace.open((tmp_path / "not" / "yet").as_uri()).free_bytes()
    assert free is not None
    assert 0 < free <= shutil.disk_usage(tmp_path).total

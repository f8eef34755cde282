"""Whether the student fits the memory that the spec states, and its checkpoints the workspace, before its teacher is
paid for.

A spec states memory in two places, both in the template of Train: what a pod on CPUs may use (`limits.memory`), and, by
the label that NVIDIA's GPU feature discovery puts on nodes, what the GPUs have that it is placed on. Compared is only
what no batch is too small for: weights, gradients and the optimizer's state. What passes here may still be too large.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction

from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.placement import TemplateStage
from kubedistill_trainer.core import estimates
from kubedistill_trainer.core.estimates import GIB, ModelShape, TrainingPlan
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.store.workspace import Workspace

GPU_MEMORY = "nvidia.com/gpu.memory"
"""Of each GPU of a node, in MiB (NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery, "Generated Labels")."""

_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]+)|([KMGTPE]i)|([mkMGTPE]))?")
_POWERS = {"m": -1, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
LARGEST_EXPONENT = 30


@dataclass(frozen=True)
class _Stated:
    """Memory that the spec states, and how many training processes share it."""

    size: int
    processes: int
    words: str
    advice: str


def check_student(
    spec: DistillationJobSpec, shape: ModelShape, plan: TrainingPlan, beside: Collection[ModelShape]
) -> None:
    """Whether the weights, gradients and optimizer's state of the training fit what the spec states.

    `beside`: teachers whose weights stand beside the student.

    Raises:
        BadConfiguration: they do not; the sentence has both numbers and what to write instead.
    """
    stated = _stated(spec)
    if stated is None or "zero_optimization" in spec.training.deepspeed.config:  # the user's own may move all of it
        return
    each = estimates.least_bytes(shape, plan) + sum(estimates.beside_bytes(one, plan.precision) for one in beside)
    if each * stated.processes <= stated.size:
        return
    several = f" ({stated.processes} processes of {_gib(each)} each)" if stated.processes > 1 else ""
    what = "the weights alone" if plan.adapter_rank is not None else "weights, gradients and the optimizer's state"
    teachers = ", the teacher's weights beside them" if beside else ""
    raise BadConfiguration(
        "StudentDoesNotFit",
        f"The training of a student of {shape.parameters:,} parameters takes at least {_gib(each * stated.processes)}"
        f"{several}: {what}{teachers}. {stated.words} {_gib(stated.size)}: write {stated.advice}, a smaller student"
        f"{'' if plan.adapter_rank is not None else ', or student.adapter'}.",
    )


def check_volume(
    spec: DistillationJobSpec, shape: ModelShape, plan: TrainingPlan, checkpoints: int, workspace: Workspace
) -> None:
    """Whether the workspace has room for the checkpoints that lie there at a time: those that are kept, and the one
    that is written, before an old one goes. `checkpoints`: how many the training will write, at least.

    Raises:
        BadConfiguration: it has not; the sentence has both numbers and what to write instead.
    """
    free = workspace.free_bytes()
    kept = spec.training.checkpoints.keep_last
    at_a_time, each = min(checkpoints, kept + 1), estimates.checkpoint_bytes(shape, plan)
    if free is None or at_a_time * each <= free:
        return
    count = f"{at_a_time} checkpoints of {_gib(each)} each" if at_a_time > 1 else f"a checkpoint of {_gib(each)}"
    fewer = f", a checkpoints.keepLast below {kept}" if kept > 1 and at_a_time > 2 else ""
    adapter = "" if plan.adapter_rank is not None else ", or student.adapter"
    raise BadConfiguration(
        "WorkspaceTooSmall",
        f"The training keeps {count} at a time, and {workspace.root} has {_gib(free)} left: write a larger "
        f"workspace.pvc.size, a bucket as workspace.uri{fewer}, a smaller student{adapter}.",
    )


def size_of(quantity: int | str) -> int | None:
    """Bytes of a Kubernetes quantity: 8Gi, 8e9, 8G, 8589934592; None: it is none (the API server will say so)."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        return None
    number, exponent, binary, decimal = found.groups()
    if exponent and abs(int(exponent[1:])) > LARGEST_EXPONENT:
        return None
    factor = Fraction(1024) ** _POWERS[binary[0]] if binary else Fraction(1000) ** _POWERS[decimal] if decimal else 1
    return int(Fraction(number + (exponent or "")) * factor)


def _stated(spec: DistillationJobSpec) -> _Stated | None:
    """None: the spec states nothing."""
    template = next((one for one in spec.stage_templates if one.stage is TemplateStage.TRAIN), None)
    if template is None:
        return None
    training = spec.training
    if training.gpus_per_node:
        label = template.node_selector.get(GPU_MEMORY, "")
        if not (label.isascii() and label.isdigit()):
            return None
        spread = "" if training.deepspeed.zero_stage == 3 else " with deepspeed.zeroStage: 3"
        return _Stated(
            size=int(label) * 2**20,
            processes=1,
            words=f"nodeSelector of stageTemplates Train picks nodes whose GPUs ({GPU_MEMORY}) have",
            advice=f"another {GPU_MEMORY}, more gpusPerNode{spread}",
        )
    limit = size_of(template.resources.limits.get("memory", ""))
    if limit is None:
        return None
    fewer = ", fewer processesPerNode" if training.processes_per_node > 1 else ""
    return _Stated(
        size=limit,
        processes=training.processes_per_node,
        words="limits.memory of stageTemplates Train is",
        advice=f"a higher limit{fewer}",
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"

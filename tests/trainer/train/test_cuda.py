"""Trainings on a GPU: the same stage, the same rows, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kubedistill_api.results import TrainResult
from kubedistill_api.run import TrainRun
from kubedistill_trainer.errors import DeviceOutOfMemory, Stopped
from kubedistill_trainer.stages import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # DeepSpeed's, when it first meets ZeRO
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),  # DeepSpeed's ZeRO-3
]

ON_GPU = {"gpusPerNode": 1, "precision": "BF16"}


@pytest.mark.parametrize(
    "training",
    [
        pytest.param({}, id="autocast"),
        pytest.param({"deepspeed": {"zeroStage": 1}}, id="ZeRO-1"),
        pytest.param({"deepspeed": {"zeroStage": 2}}, id="ZeRO-2"),
        pytest.param({"deepspeed": {"zeroStage": 3}}, id="ZeRO-3"),
        pytest.param({"deepspeed": {"zeroStage": 2, "offloadOptimizer": True}}, id="optimizer offloaded"),
        pytest.param(
            {"deepspeed": {"zeroStage": 3, "offloadOptimizer": True, "offloadParameters": True}}, id="all offloaded"
        ),
        pytest.param({"precision": "FP16", "deepspeed": {"zeroStage": 2}}, id="FP16, ZeRO-2"),
        pytest.param({"precision": "FP32"}, id="FP32"),
        pytest.param({"gradientCheckpointing": True}, id="gradient checkpointing"),
        pytest.param({"hyperparameters": {"packing": False}}, id="padded"),
        pytest.param(
            {"objective": {"hiddenStates": {"weight": 0.5}, "attention": {"weight": 0.1}}}, id="matching the inside"
        ),
    ],
)
def test_every_way_to_train_lowers_the_loss(training: dict[str, Any], trained: Callable[..., Any]) -> None:
    hyper = {"epochs": 6, **training.get("hyperparameters", {})}
    done = trained(training={**ON_GPU, **training, "hyperparameters": hyper})
    assert sum(done.losses[-3:]) < 0.9 * sum(done.losses[:3])


@pytest.mark.parametrize("kind", ["LoRA", "QLoRA"])
def test_an_adapter_learns(kind: str, trained: Callable[..., Any]) -> None:
    done = trained(
        student={"adapter": {"type": kind, "rank": 8}},
        training={**ON_GPU, "hyperparameters": {"epochs": 8, "learningRate": 2e-2}},
    )
    assert sum(done.losses[-3:]) < 0.95 * sum(done.losses[:3])


@pytest.mark.parametrize(("precision", "tolerance"), [("FP32", 1e-4), ("BF16", 2e-2)])
def test_the_losses_are_those_of_a_cpu(precision: str, tolerance: float, trained: Callable[..., Any]) -> None:
    on_cpu = trained("cpu", training={"hyperparameters": {"maxSteps": 4}})
    on_gpu = trained("gpu", training={**ON_GPU, "precision": precision, "hyperparameters": {"maxSteps": 4}})
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=tolerance)
    assert on_gpu.validation_losses == pytest.approx(on_cpu.validation_losses, rel=tolerance)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_stopped_training_goes_on_as_if_it_had_never_stopped(
    stage: int, trained: Callable[..., Any], a_run: Callable[..., TrainRun], a_context: Any
) -> None:
    training = {**ON_GPU, "deepspeed": {"zeroStage": stage}, "checkpoints": {"everySteps": 2}}
    whole = trained("whole", training=training)
    context = a_context("stopped")
    run = a_run(workspace=context.workspace.root, training=training)
    for _ in range(2):
        context.stopping.set()  # as SIGTERM does: seen after the next step
        with pytest.raises(Stopped):
            train.run(run, context)
    context.stopping.clear()
    result = train.run(run, context)
    assert isinstance(result, TrainResult)
    assert result.steps == len(whole.losses)
    assert result.validation_loss == pytest.approx(whole.result.validation_loss, rel=1e-3), "atomics add in any order"


def test_full_memory_asks_for_a_smaller_micro_batch(trained: Callable[..., Any]) -> None:
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated() + 128 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(DeviceOutOfMemory, match="micro batch of 512"):
            trained(training={**ON_GPU, "hyperparameters": {"globalBatchSize": 512}}, microBatchSize=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

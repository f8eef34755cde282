"""Every objective trains a real toy: two steps on all rows, and the loss has fallen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kubedistill_api.run import TrainRun
from kubedistill_trainer.errors import Stopped
from kubedistill_trainer.stages import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # DeepSpeed's, when it first meets ZeRO
    pytest.mark.filterwarnings("ignore:`torch.distributed:FutureWarning"),  # DeepSpeed's ZeRO-3
]

TWO_STEPS = {
    "globalBatchSize": 12,
    "microBatchSize": 6,
    "maxSteps": 2,
    "warmupRatio": 0,
    "learningRate": 1e-4,  # the toy is near its teacher from the start: a larger step would go past it
}


@pytest.mark.parametrize("tail", ["Bucket", "Sampled"])
@pytest.mark.parametrize("type_", ["ForwardKL", "ReverseKL", "JensenShannon", "SkewKL"])
def test_two_steps_of_every_objective_lower_its_loss(type_: str, tail: str, trained: Callable[..., Any]) -> None:
    if (type_, tail) == ("ReverseKL", "Sampled"):
        tail = "Auto"  # the API refuses the one; the other is the bucket
    done = trained(
        generation={"tail": tail},
        training={"objective": {"type": type_, "softWeight": 1.0}, "hyperparameters": TWO_STEPS},
        microBatchSize=6,
    )
    first, second = done.losses
    assert second < first
    assert first > 0 or tail == "Sampled"  # the toy's answers were not drawn from it
    assert done.lines[0]["parts"].keys() == {type_, "CrossEntropy"}
    assert done.lines[0]["parts"][type_] == pytest.approx(first)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"deepspeed": {"zeroStage": 3}}, id="ZeRO-3"),
        pytest.param({"precision": "BF16", "deepspeed": {"zeroStage": 1}, "gradientCheckpointing": True}, id="BF16"),
    ],
)
def test_two_steps_bring_the_inside_nearer_and_leave_no_trace_but_in_the_weights(
    changes: dict[str, Any], trained: Callable[..., Any]
) -> None:
    inside = {"hiddenStates": {"weight": 2, "layers": "EvenlySpaced"}, "attention": {"weight": 0.5}}
    objective = {"type": "ForwardKL", **inside}
    done = trained(
        training={"objective": objective, "hyperparameters": TWO_STEPS, **changes},
        microBatchSize=6,
    )
    first, second = (line["parts"] for line in done.lines if "parts" in line)
    assert second["HiddenStates"] < first["HiddenStates"]
    assert second["Attention"] < first["Attention"]
    assert done.losses[1] < done.losses[0]
    assert done.losses[0] == pytest.approx(
        0.75 * first["ForwardKL"] + 0.25 * first["CrossEntropy"] + 2 * first["HiddenStates"] + 0.5 * first["Attention"],
        rel=1e-4,
    )
    assert not [name for name in done.model().state_dict() if "projection" in name]


def test_a_training_beside_its_teacher_goes_on_as_if_it_had_never_stopped(
    trained: Callable[..., Any], a_run: Callable[..., TrainRun], a_context: Any
) -> None:
    training = {"objective": {"hiddenStates": {}}, "hyperparameters": {"maxSteps": 3}}
    whole = trained("whole", training=training)
    context = a_context("stopped")
    run = a_run(workspace=context.workspace.root, training=training)
    context.stopping.set()
    with pytest.raises(Stopped):
        train.run(run, context)
    context.stopping.clear()
    train.run(run, context)
    folder = context.workspace.local_path(run.folder)
    assert (folder / "losses.jsonl").read_text() == (whole.folder / "losses.jsonl").read_text()

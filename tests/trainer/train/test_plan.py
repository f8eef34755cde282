"""Steps, milestones, and what a validation means."""

from __future__ import annotations

from typing import Any

import pytest

from kubedistill_api.training import EarlyStopping, Training
from kubedistill_trainer.stages.train_plan import Plan, validated
from kubedistill_trainer.store.checkpoints import TrainingState


def a_plan(rows: int, every: int = 500, **hyper: Any) -> Plan:
    hyper = {"globalBatchSize": 4, "microBatchSize": 2, "epochs": 2, **hyper}
    return Plan.of(Training.model_validate({"hyperparameters": hyper, "checkpoints": {"everySteps": every}}), rows)


@pytest.mark.parametrize(
    ("plan", "total", "milestones"),
    [
        pytest.param(a_plan(12), 6, {3, 6}, id="epoch ends"),
        pytest.param(a_plan(12, every=2), 6, {2, 3, 4, 6}, id="every two steps as well"),
        pytest.param(a_plan(13), 7, {4, 7}, id="an epoch ends within a step"),
        pytest.param(a_plan(12, maxSteps=2), 2, {2}, id="stopped before the first epoch ends"),
        pytest.param(a_plan(12, maxSteps=100), 6, {3, 6}, id="maxSteps beyond the epochs"),
        pytest.param(a_plan(1), 1, {1}, id="one row"),
        pytest.param(a_plan(4, epochs=60), 60, set(range(3, 61, 3)), id="of many short epochs every third"),
    ],
)
def test_the_plan_names_every_step_that_ends_with_a_checkpoint(plan: Plan, total: int, milestones: set[int]) -> None:
    assert plan.total_steps == total
    assert plan.milestones == milestones


def test_a_validation_is_due_once_at_a_milestone() -> None:
    plan = a_plan(12)
    assert not plan.validates(TrainingState(step=2))
    assert plan.validates(TrainingState(step=3))
    assert not plan.validates(TrainingState(step=3, validated_step=3))
    assert not plan.validates(TrainingState())


def test_the_learning_rate_ends_near_zero_and_starts_above_it() -> None:
    plan = a_plan(400, learningRate=1.0)
    assert 0 < plan.learning_rate(0) < plan.learning_rate(20)
    assert 0 < plan.learning_rate(plan.total_steps - 1) < 0.01


def after(losses: list[float | None], stopping: EarlyStopping | None = None, total: int = 100) -> TrainingState:
    state = TrainingState()
    for loss in losses:
        state = validated(state.model_copy(update={"step": state.step + 10}), loss, stopping, total)
    return state


def test_the_best_is_the_lowest_loss_seen() -> None:
    state = after([3.0, 2.0, 2.5])
    assert (state.best_step, state.best_loss, state.validation_loss, state.stale) == (20, 2.0, 2.5, 1)


def test_without_held_out_answers_the_last_weights_are_the_best() -> None:
    state = after([None, None])
    assert (state.best_step, state.best_loss, state.stale) == (20, None, 0)


def test_training_ends_when_patience_is_used_up() -> None:
    patient = EarlyStopping(patience=2)
    assert not after([3.0, 2.0, 2.5, 1.0, 1.5], patient).finished
    assert after([3.0, 2.0, 2.5, 2.5], patient).finished
    assert not after([3.0, 2.0, 2.5, 2.5]).finished


def test_a_smaller_improvement_than_min_delta_counts_as_none_but_its_weights_are_kept() -> None:
    state = after([3.0, 2.95, 2.94], EarlyStopping(patience=2, min_delta=0.1))
    assert (state.best_step, state.finished) == (30, True)


def test_training_ends_with_its_last_step() -> None:
    assert after([3.0], total=10).finished
    assert not after([3.0], total=11).finished

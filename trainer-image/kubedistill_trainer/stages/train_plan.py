"""What a training will do, as values: its steps, its milestones, and what a validation means. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from kubedistill_api.training import EarlyStopping, Training
from kubedistill_trainer.core.order import DataOrder
from kubedistill_trainer.core.schedule import Schedule
from kubedistill_trainer.store.checkpoints import TrainingState

MOST_EPOCHS_VALIDATED = 20
"""Of more epochs than that, only some end with a validation: a small set of rows has very short ones."""


@dataclass(frozen=True)
class Plan:
    """A training from its first step to its last."""

    order: DataOrder
    total_steps: int
    schedule: Schedule
    milestones: frozenset[int]
    """Steps after which a checkpoint is written and the held-out answers are looked at."""
    peak_learning_rate: float

    @staticmethod
    def of(training: Training, rows: int) -> Plan:
        """The plan for so many rows. Raises ValueError for none."""
        hyper = training.hyperparameters
        order = DataOrder(rows, hyper.global_batch_size, hyper.seed)
        total = min(order.steps(hyper.epochs), hyper.max_steps or order.steps(hyper.epochs))
        every = -(-hyper.epochs // MOST_EPOCHS_VALIDATED)
        epoch_ends = {order.steps(epoch) for epoch in range(every, hyper.epochs, every)}
        scheduled = set(range(training.checkpoints.every_steps, total, training.checkpoints.every_steps))
        return Plan(
            order=order,
            total_steps=total,
            schedule=Schedule(hyper.scheduler, total, hyper.warmup_ratio),
            milestones=frozenset({step for step in epoch_ends | scheduled if step < total} | {total}),
            peak_learning_rate=hyper.learning_rate,
        )

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` finished ones."""
        return self.peak_learning_rate * self.schedule.factor(step)

    def validates(self, state: TrainingState) -> bool:
        """Whether the held-out answers are to be looked at now."""
        return state.step in self.milestones and state.validated_step < state.step


def validated(
    state: TrainingState, loss: float | None, early_stopping: EarlyStopping | None, total_steps: int
) -> TrainingState:
    """The state after a validation. `loss` is None where there are no held-out answers: then the last weights count."""
    improved = loss is not None and (state.best_loss is None or loss < state.best_loss)
    patience, least = (early_stopping.patience, early_stopping.min_delta) if early_stopping else (None, 0.0)
    counts = loss is not None and (state.best_loss is None or loss < state.best_loss - least)
    stale = 0 if counts or loss is None else state.stale + 1
    return state.model_copy(
        update={
            "validated_step": state.step,
            "validation_loss": loss,
            "best_step": state.step if improved or loss is None else state.best_step,
            "best_loss": loss if improved else state.best_loss,
            "stale": stale,
            "finished": state.step >= total_steps or (patience is not None and stale >= patience),
        }
    )

"""The learning rate over the steps."""

from __future__ import annotations

import math

import pytest

from kubedistill_api.training import Scheduler
from kubedistill_trainer.core.schedule import Schedule


@pytest.mark.parametrize("kind", Scheduler)
def test_the_warm_up_rises_evenly_from_the_first_step_and_reaches_the_peak(kind):
    schedule = Schedule(kind, total_steps=100, warmup_ratio=0.04)
    assert [schedule.factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(
    ("kind", "middle", "last"),
    [
        (Scheduler.COSINE, 0.5, 0.5 * (1 + math.cos(math.pi * 99 / 100))),
        (Scheduler.LINEAR, 0.5, 0.01),
        (Scheduler.CONSTANT, 1.0, 1.0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_it_falls_to_nothing_after_the_last_step(kind, middle, last):
    schedule = Schedule(kind, total_steps=100, warmup_ratio=0.0)
    assert schedule.factor(0) == 1.0
    assert schedule.factor(50) == pytest.approx(middle)
    assert schedule.factor(99) == pytest.approx(last)
    assert schedule.factor(10_000) == pytest.approx(1.0 if kind is Scheduler.CONSTANT else 0.0)


@pytest.mark.parametrize("kind", Scheduler)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 1.0), (7, 1.0), (3, 0.03)])
def test_every_step_learns_something_and_none_more_than_the_peak(kind, steps, warmup):
    schedule = Schedule(kind, steps, warmup)
    assert all(0 < schedule.factor(step) <= 1 for step in range(steps))

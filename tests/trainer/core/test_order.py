"""The data order: complete, resumable, and blind to how the work is split."""

from __future__ import annotations

from collections import Counter

import pytest

from kubedistill_trainer.core.order import DataOrder, shuffled


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    first, second = shuffled(50, seed=7, epoch=0).tolist(), shuffled(50, seed=7, epoch=1).tolist()
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != shuffled(50, seed=8, epoch=0).tolist()


def test_the_order_is_fixed_for_ever():
    """A resumed run may meet a newer numpy; these numbers must not move."""
    assert shuffled(8, seed=42, epoch=3).tolist() == [1, 6, 3, 4, 5, 2, 0, 7]


@pytest.mark.parametrize(("rows", "batch", "epochs"), [(10, 5, 3), (10, 4, 3), (7, 3, 2), (3, 8, 2), (1, 1, 1)])
def test_every_row_is_shown_in_every_epoch_and_no_step_is_short(rows, batch, epochs):
    order = DataOrder(rows, batch, seed=1)
    shown = [row for step in range(order.steps(epochs)) for row in order.rows_of_step(step)]
    assert len(shown) % batch == 0
    counts = Counter(shown)
    assert set(counts) == set(range(rows))
    assert min(counts.values()) >= epochs
    assert len(shown) - rows * epochs < batch
    for epoch in range(epochs):
        assert sorted(shown[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_resumed_run_meets_the_rows_it_would_have_met():
    uninterrupted = [DataOrder(23, 4, seed=5).rows_of_step(step) for step in range(40)]
    resumed = DataOrder(23, 4, seed=5)
    assert [resumed.rows_of_step(step) for step in range(17, 40)] == uninterrupted[17:]


def test_a_step_straddles_two_epochs_without_losing_a_row():
    order = DataOrder(5, 4, seed=0)
    assert order.rows_of_step(1)[0] == shuffled(5, 0, 0)[4]
    assert list(order.rows_of_step(1)[1:]) == shuffled(5, 0, 1)[:3].tolist()
    assert order.epoch_of_step(1) == pytest.approx(0.8)


@pytest.mark.parametrize(("rows", "batch"), [(0, 4), (4, 0)])
def test_nothing_to_order_is_an_error(rows, batch):
    with pytest.raises(ValueError, match="nothing to order"):
        DataOrder(rows, batch, seed=0)

"""Rows on disk are the rows that came in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kubedistill_trainer.core.signals import Text, TopK
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.shards import AnswerRow, Signal


def a_row(row_id: str, tokens: int = 5, k: int | None = 2) -> AnswerRow:
    mask = np.arange(tokens) >= 2
    targets = int(mask.sum())
    signal = None
    if k is not None:
        logprobs = np.log(np.full((targets, k), 0.8 / k)).astype(np.float16)
        ids = np.arange(targets * k, dtype=np.int32).reshape(targets, k)
        flat = np.full(targets, np.log(0.2), dtype=np.float32)
        signal = Signal(ids, logprobs, flat, flat)
    return AnswerRow(
        row_id=row_id,
        sample=0,
        split="train",
        label="",
        messages="[]",
        text="",
        finish_reason="stop",
        teacher="t",
        input_ids=np.arange(tokens, dtype=np.int32) + len(row_id),
        target_mask=mask,
        signal=signal,
    )


def test_rows_come_in_the_order_of_their_ids_whatever_the_order_they_were_written_in(tmp_path: Path) -> None:
    examples = Examples.write(tmp_path, [a_row("b", 6), a_row("c", 4), a_row("a", 5)], signals=True)
    assert [example.row_id for example in (examples[row] for row in range(3))] == ["a/0/t", "b/0/t", "c/0/t"]
    assert examples.lengths.tolist() == [5, 6, 4]
    assert examples.targets.tolist() == [3, 4, 2]


def test_a_row_comes_back_with_its_own_signal(tmp_path: Path) -> None:
    rows = [a_row("b", 6), a_row("a", 4)]
    example = Examples.write(tmp_path, rows, signals=True)[1]
    assert torch.equal(example.input_ids_T, torch.arange(6) + 1)
    assert example.target_mask_T.tolist() == [False, False, True, True, True, True]
    assert isinstance(example.teacher, TopK)
    assert torch.equal(example.teacher.ids_NK, torch.arange(8).view(4, 2))
    assert torch.allclose(example.teacher.logprobs_NK.exp().sum(-1) + example.teacher.tail_N.exp(), torch.ones(4))


def test_without_signals_a_row_is_text(tmp_path: Path) -> None:
    assert isinstance(Examples.write(tmp_path, [a_row("a")], signals=False)[0].teacher, Text)


def test_no_rows_are_a_set_of_none(tmp_path: Path) -> None:
    assert len(Examples.write(tmp_path, [], signals=True)) == 0


def test_what_was_written_can_be_opened_elsewhere(tmp_path: Path) -> None:
    Examples.write(tmp_path, [a_row("a"), a_row("b")], signals=True)
    assert torch.equal(Examples(tmp_path)[1].input_ids_T, torch.arange(5) + 1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        pytest.param([a_row("a", k=None)], "has no logprobs of its teacher t", id="none"),
        pytest.param([a_row("a", k=2), a_row("b", k=3)], "has 3 candidates", id="another K"),
    ],
)
def test_signals_that_are_asked_for_must_be_there(rows: list[AnswerRow], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        Examples.write(tmp_path, rows, signals=True)

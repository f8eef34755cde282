"""Logits that are not the model's are told from those that are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kubedistill_trainer.formats.parity import EXACT, ROUNDED, NotTheModel, check, compare

LOGITS = torch.randn(40, 50, generator=torch.Generator().manual_seed(5)) * 3


def test_equal_logits_have_no_distance() -> None:
    parity = compare([LOGITS], [LOGITS])
    assert (parity.positions, parity.same_top, parity.divergence, parity.largest) == (40, 40, 0.0, 0.0)
    check(parity, EXACT)


WRONG = {
    "another model": torch.randn(40, 50, generator=torch.Generator().manual_seed(6)) * 3,
    "one logit": LOGITS + 0.2 * torch.eye(40, 50) * (torch.arange(40) == 7).float()[:, None],
    "shifted by one position": LOGITS.roll(1, 0),
    "another temperature": LOGITS * 1.05,
}


@pytest.mark.parametrize("found", WRONG.values(), ids=WRONG.keys())
def test_other_logits_are_refused_with_numbers(found: Tensor) -> None:
    with pytest.raises(NotTheModel, match=r"at \d+ of 40 positions of held-out prompts, logits differ by at most \d"):
        check(compare([LOGITS], [found]), EXACT)


def test_rounded_weights_may_move_a_logit_but_not_the_distribution() -> None:
    noise = torch.randn(40, 50, generator=torch.Generator().manual_seed(7))
    check(compare([LOGITS], [LOGITS + 0.1 * noise]), ROUNDED)
    with pytest.raises(NotTheModel):
        check(compare([LOGITS], [LOGITS + 1.0 * noise]), ROUNDED)


def test_every_text_counts() -> None:
    with pytest.raises(NotTheModel):
        check(compare([LOGITS, LOGITS], [LOGITS, WRONG["another model"]]), EXACT)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(value: float) -> None:
    broken = LOGITS.clone()
    broken[3, 4] = value
    with pytest.raises(NotTheModel, match="not finite"):
        compare([LOGITS], [broken])


def test_another_shape_is_refused() -> None:
    with pytest.raises(NotTheModel, match=r"the shape \[40, 49\], the model's \[40, 50\]"):
        compare([LOGITS], [LOGITS[:, :49]])


def test_nothing_to_compare_proves_nothing() -> None:
    with pytest.raises(ValueError, match="no positions"):
        compare([], [])

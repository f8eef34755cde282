"""Whether two programs compute the same model: their logits on the same tokens, compared.

Shapes: N positions of one text, V vocabulary. Logits in nats; differences are measured in units of the spread of the
model's own logits, so that one limit suits models with flat and with peaked distributions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


class NotTheModel(Exception):
    """What was written does not compute what the model computes; the message says where they part."""


@dataclass(frozen=True)
class Tolerance:
    """How far a form may be from the model."""

    same_top: float
    """At least this share of the positions has the same likeliest token."""
    divergence: float
    """KL(model || form), in nats, in the mean of all positions."""
    largest: float | None = None
    """Of the differences of any two logits, as a share of the spread."""


EXACT = Tolerance(same_top=0.99, divergence=1e-3, largest=0.02)
"""For the same numbers in another program or another 16-bit type. A tie may fall either way, so not every position has
to agree on the likeliest token."""
ROUNDED = Tolerance(same_top=0.8, divergence=0.1)
"""For 8-bit blocks: each weight is held against the model's as well."""


@dataclass(frozen=True)
class Parity:
    """How close they are, over all compared positions."""

    positions: int
    same_top: int
    """Positions with the same likeliest token."""
    divergence: float
    """KL(model || form), in nats, in the mean of all."""
    largest: float
    """Difference of two logits, in nats."""
    spread: float
    """Standard deviation of the model's logits at one position, in the mean of all."""

    def __str__(self) -> str:
        return (
            f"the likeliest token is the same at {self.same_top} of {self.positions} positions of held-out prompts, "
            f"logits differ by at most {self.largest:.2g} (their spread is {self.spread:.2g}), KL "
            f"{self.divergence:.2g} nats"
        )


def compare(model: Iterable[Tensor], form: Iterable[Tensor]) -> Parity:
    """The logits of a model [N, V] for each text, and those of another form of it.

    Raises:
        NotTheModel: shapes differ, or the form gives something that is no number.
        ValueError: there is nothing to compare.
    """
    positions, same_top, divergence, largest, spread = 0, 0, 0.0, 0.0, 0.0
    for ours_NV, theirs_NV in zip(model, form, strict=True):
        if ours_NV.shape != theirs_NV.shape:
            raise NotTheModel(f"its logits have the shape {[*theirs_NV.shape]}, the model's {[*ours_NV.shape]}")
        ours_NV, theirs_NV = ours_NV.float(), theirs_NV.float()
        if not torch.isfinite(theirs_NV).all():
            raise NotTheModel("some of its logits are not finite")
        positions += len(ours_NV)
        same_top += int((ours_NV.argmax(-1) == theirs_NV.argmax(-1)).sum())
        ours, theirs = ours_NV.log_softmax(-1), theirs_NV.log_softmax(-1)
        divergence += float((ours.exp() * (ours - theirs)).sum())
        largest = max(largest, float((ours_NV - theirs_NV).abs().max()))
        spread += float(ours_NV.std(-1).sum())
    if not positions:
        raise ValueError("no positions to compare")
    return Parity(positions, same_top, divergence / positions, largest, spread / positions)


def check(parity: Parity, tolerance: Tolerance) -> None:
    """Raises NotTheModel, with the numbers, if a form is further from its model than it may be."""
    if (
        parity.same_top < tolerance.same_top * parity.positions
        or parity.divergence > tolerance.divergence
        or (tolerance.largest is not None and parity.largest > tolerance.largest * parity.spread)
    ):
        raise NotTheModel(str(parity))

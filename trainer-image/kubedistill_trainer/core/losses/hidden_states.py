"""Hidden-state matching: the student's states, through one learned projection for each pair of layers, point where the
teacher's do.

    1 / pairs * sum over pairs of 1 - cos(W h_student, h_teacher)

Projection: FitNets, Romero et al. 2015 (arXiv:1412.6550), and TinyBERT, Jiao et al. 2020 (arXiv:1909.10351); cosine:
DistilBERT, Sanh et al. 2019 (arXiv:1910.01108). It is half the mean squared difference of both states brought to the
same length, so large states weigh no more than small ones: 0 if W turns one into the other, 1 at chance, at most 2.

The projections belong to the training and not to the student: they are left behind at its export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kubedistill_api.training import HiddenLayers
from kubedistill_trainer.core.signals import LossSum

EVENLY_SPACED_PAIRS = 4
"""Each pair costs a matrix of both widths; neighbouring layers tell much the same."""


class LayerPair(NamedTuple):
    """Whose states are compared, as indices into the states of a model: 0 are the embeddings, the last one the states
    that the vocabulary projection gets."""

    student: int
    teacher: int


def layer_pairs(layers: HiddenLayers, student: int, teacher: int) -> tuple[LayerPair, ...]:
    """The pairs for models of so many decoder layers. The last layers are always one; first layers first.

    EvenlySpaced: the depths 1/4, 1/2, 3/4 and 1 of the student, each with the same depth of the teacher; every layer of
    a student that has fewer than four.
    """
    if layers is HiddenLayers.LAST:
        return (LayerPair(student, teacher),)
    pairs = min(EVENLY_SPACED_PAIRS, student)
    depths = [(student * i + pairs // 2) // pairs for i in range(1, pairs + 1)]
    return tuple(LayerPair(depth, (teacher * depth + student // 2) // student) for depth in depths)


class HiddenStateMatching(nn.Module):
    """The projections of some pairs of layers, [teacher's width, student's width] each, and the loss through them."""

    def __init__(self, pairs: int, student_width: int, teacher_width: int) -> None:
        """Equal widths begin with the identity, others with an orthogonal matrix, by torch's random state."""
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Linear(student_width, teacher_width, bias=False, dtype=torch.float32) for _ in range(pairs)
        )
        for weight in self.parameters():
            if student_width == teacher_width:
                nn.init.eye_(weight)
            else:
                nn.init.orthogonal_(weight)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> LossSum:
        """The loss summed over N counted positions. For each pair the student's states, [N, H], and the teacher's."""
        dtype = next(self.parameters()).dtype
        gaps = [
            _gap(projection(states_NH.to(dtype)), teacher_ND)
            for projection, states_NH, teacher_ND in zip(self.projections, student, teacher, strict=True)
        ]
        return LossSum(torch.stack(gaps).mean(0), len(teacher[0]))


def _gap(projected_ND: Tensor, teacher_ND: Tensor) -> Tensor:
    precise = torch.promote_types(projected_ND.dtype, torch.float32)
    with torch.autocast(projected_ND.device.type, enabled=False):
        cosine_N = functional.cosine_similarity(projected_ND.to(precise), teacher_ND.detach().to(precise), dim=-1)
        return (1.0 - cosine_N).sum()

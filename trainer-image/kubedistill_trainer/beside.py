"""A teacher's weights beside the student, and the terms of the loss that hold the student's inside to the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kubedistill_trainer.core.batching import MicroBatch
from kubedistill_trainer.core.inside import Asked, Inside, attention_projections, look_inside, spans
from kubedistill_trainer.core.losses.attention_relations import attention_relations, relation_heads
from kubedistill_trainer.core.losses.hidden_states import HiddenStateMatching, LayerPair

HIDDEN_STATES = "HiddenStates"
ATTENTION = "Attention"
"""How the terms are called among the parts of a loss."""


class TeacherBeside:
    """A teacher that only reads. It is no module on purpose: whoever holds it neither trains it, nor saves it, nor
    switches its dropout on.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def look(self, batch: MicroBatch, asked: Asked) -> Inside:
        """What the teacher's inside shows of a batch."""
        return look_inside(self.model, batch, asked)


@dataclass(frozen=True)
class Terms:
    """What is added to the loss. A weight of 0 leaves a term out."""

    pairs: Sequence[LayerPair] = ()
    """Whose hidden states meet."""
    hidden_weight: float = 0.0
    attention_weight: float = 0.0

    @property
    def of_student(self) -> Asked:
        return Asked([pair.student for pair in self.pairs], self.attention_weight > 0)

    @property
    def of_teacher(self) -> Asked:
        return Asked([pair.teacher for pair in self.pairs], self.attention_weight > 0)


class Matching(nn.Module):
    """The terms for one student and one teacher, with the projections between them."""

    def __init__(self, student: Any, teacher: TeacherBeside, terms: Terms) -> None:
        """`student` is a causal language model; its weights stay where they are.

        Raises ValueError if attentions are compared and one of the models has them in another form.
        """
        super().__init__()
        self._teacher = teacher
        self.terms = terms
        ours, theirs = (each.config.get_text_config() for each in (student, teacher.model))
        self.states = HiddenStateMatching(len(terms.pairs), ours.hidden_size, theirs.hidden_size)
        self._heads = int(ours.num_attention_heads)
        if terms.attention_weight:
            for each in (student, teacher.model):
                attention_projections(each)

    def forward(self, inside: Inside, batch: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the terms over the batch's targets, and each term unweighted and detached."""
        theirs = self._teacher.look(batch, self.terms.of_teacher)
        total, parts = inside.last_BTH.new_zeros((), dtype=torch.float32), {}
        if self.terms.pairs:
            states = self.states(inside.states, theirs.states).total
            total, parts[HIDDEN_STATES] = total + self.terms.hidden_weight * states, states.detach()
        if inside.vectors is not None and theirs.vectors is not None:
            heads = relation_heads(inside.vectors.widths, theirs.vectors.widths, self._heads)
            relations = attention_relations(inside.vectors, theirs.vectors, spans(batch), heads).total
            total, parts[ATTENTION] = total + self.terms.attention_weight * relations, relations.detach()
        return total, parts

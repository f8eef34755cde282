"""How good a student is, by a measure that knows neither K nor the tail: the teacher's weights stand beside it.

Both read the held-out answers, which the teacher sampled at temperature 1, and are compared over the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, pack
from kubedistill_trainer.core.scores import rouge
from kubedistill_trainer.core.signals import Text
from kubedistill_trainer.core.targets import shift
from kubedistill_trainer.evaluation import answering
from kubedistill_trainer.evaluation.reading import BATCH_TOKENS, batches
from kubedistill_trainer.models import at_ease, end_ids, load_model, load_tokenizer
from kubedistill_trainer.store.shards import AnswerRow

CHUNK = 256
"""Positions whose logits are held at once."""
ANSWERED = 32
"""Held-out prompts that a student answers by itself: one batch."""


@dataclass(frozen=True)
class Figures:
    """Means over the tokens of the held-out answers, in nats where not said otherwise."""

    forward_kl: float
    """KL(teacher || student) over the whole vocabulary."""
    reverse_kl: float
    """KL(student || teacher)."""
    agreement: float
    """Share of tokens at which both have the same first choice."""
    cross_entropy: float
    """Of the tokens that the teacher wrote."""
    rouge_l: float
    """Of the student's greedy answers against the teacher's greedy ones, 0 to 1."""

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 6) for name, value in asdict(self).items()}


class HeldOut(NamedTuple):
    """What every student is held against."""

    sampled: Sequence[AnswerRow]
    """Of temperature 1: they are read."""
    greedy: Sequence[AnswerRow]
    """Of temperature 0: references of what a student answers by itself."""


class Ruler:
    """Measures students. The teacher reads the held-out answers once; its states are kept, which are small."""

    @torch.inference_mode()
    def __init__(self, teacher: Path, held_out: HeldOut) -> None:
        self._tokenizer = load_tokenizer(teacher)
        self._ends = end_ids(self._tokenizer, teacher)
        self._vocabulary = len(self._tokenizer)
        self._examples = [_example(row) for row in held_out.sampled]
        self._asked = sorted(held_out.greedy, key=lambda row: row.row_id)[:ANSWERED]
        model = at_ease(load_model(teacher, torch.float32))
        self._hidden_NH, self._head_VH = _hidden(model, self._examples), _head(model, self._vocabulary).clone()
        groups = batches(self._examples, BATCH_TOKENS)
        self._written_N = torch.cat([_written(example) for group in groups for example in group])

    @torch.inference_mode()
    def measure(self, folder: Path) -> Figures:
        """The figures of a student's folder."""
        model = at_ease(load_model(folder, torch.float32))
        texts = self._texts(model)
        hidden_NH, head_VH = _hidden(model, self._examples), _head(model, self._vocabulary)
        sums = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(self._written_N), CHUNK):
            rows = slice(start, start + CHUNK)
            teacher_NV, student_NV = self._hidden_NH[rows] @ self._head_VH.T, hidden_NH[rows] @ head_VH.T
            sums += compared(teacher_NV, student_NV, self._written_N[rows])
        forward, reverse, agreement, likelihood = (sums / len(self._written_N)).tolist()
        return Figures(forward, reverse, agreement, -likelihood, rouge(texts, [row.text for row in self._asked]))

    def _texts(self, model: Any) -> list[str]:
        """What the student answers by itself, no longer than the longest of the teacher's answers."""
        limit = max(row.targets for row in self._asked)
        prompts = [row.input_ids[: int(row.target_mask.argmax())].tolist() for row in self._asked]
        questions = [answering.Question(tuple(prompt), limit) for prompt in prompts]
        found = answering.answer(model, questions, self._ends, self._vocabulary, lambda _: None)
        return [self._tokenizer.decode(ids, skip_special_tokens=True) for ids in found]


def compared(teacher_NV: Tensor, student_NV: Tensor, written_N: Tensor) -> Tensor:
    """Sums over positions of forward KL, reverse KL, agreements, and the student's logprob of what was written, [4]."""
    p_NV, q_NV = teacher_NV.log_softmax(-1), student_NV.log_softmax(-1)
    gap_NV = p_NV - q_NV
    columns = (
        (p_NV.exp() * gap_NV).sum(-1),
        -(q_NV.exp() * gap_NV).sum(-1),
        p_NV.argmax(-1) == q_NV.argmax(-1),
        q_NV.gather(-1, written_N[:, None]).squeeze(-1),
    )
    return torch.stack([column.sum(dtype=torch.float64) for column in columns])


def _hidden(model: Any, examples: Sequence[Example]) -> Tensor:
    """The states that the vocabulary is projected from, at the positions that predict a target, [N, H]."""
    model.set_attn_implementation(attention.install())
    found = []
    for group in batches(examples, BATCH_TOKENS):
        batch = pack(group)
        found.append(batch.counted(model.get_decoder()(**batch.model_inputs()).last_hidden_state))
    return torch.cat(found)


def _head(model: Any, vocabulary: int) -> Tensor:
    """A plain matrix: the teacher of the studies has neither a bias nor a softcap there."""
    weight_VH: Tensor = model.get_output_embeddings().weight[:vocabulary]
    return weight_VH


def _example(row: AnswerRow) -> Example:
    ids_T = torch.from_numpy(row.input_ids.astype(np.int64))
    return Example(row.row_id, ids_T, torch.from_numpy(row.target_mask), Text())


def _written(example: Example) -> Tensor:
    return shift(example.input_ids_T, example.target_mask_T).target_ids_N

"""Teacher-forced: the model reads the teacher's answers and is asked what it would have said at each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, MicroBatch, pack, pad
from kubedistill_trainer.core.chunked import student_view
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.scores import Reading, read

BATCH_TOKENS = 4096
"""Positions that go through the model at once."""


@torch.inference_mode()
def read_with(
    model: Any, examples: Sequence[Example], vocabulary: int, *, packing: bool, tick: Callable[[int], None]
) -> Reading:
    """What the model thinks of every target token of these answers.

    `vocabulary` is the tokenizer's size; `tick` gets the number of answers read since it was last called.
    """
    if packing:
        model.set_attn_implementation(attention.install())
    head, decoder = Head.of(model, vocabulary), model.get_decoder()
    total = Reading()
    for group in batches(examples, BATCH_TOKENS):
        batch: MicroBatch = (pack(group) if packing else pad(group, pad_id=0)).to(model.device)
        hidden_BTH = decoder(**batch.model_inputs()).last_hidden_state
        total += read(student_view(batch.counted(hidden_BTH), head, batch.supervision), batch.supervision)
        tick(len(group))
    return total


def batches(examples: Sequence[Example], tokens: int) -> Iterator[list[Example]]:
    """All examples, alike in length within a batch; a batch, padded, has at most `tokens` positions or one example."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda one: (len(one.input_ids_T), one.row_id)):
        if group and (len(group) + 1) * len(example.input_ids_T) > tokens:
            yield group
            group = []
        group.append(example)
    if group:
        yield group

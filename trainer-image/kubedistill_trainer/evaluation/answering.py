"""The model answers prompts by itself: greedily, in batches of similar length, and no longer than it needs to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

BATCH_TOKENS = 16_384
"""Positions of prompts and answers, padding included, that are held at once."""
BATCH_ROWS = 32


@dataclass(frozen=True)
class Question:
    """A prompt in the model's tokens, and where an answer is cut off."""

    prompt_ids: tuple[int, ...]
    limit: int
    """New tokens at most."""

    @property
    def tokens(self) -> int:
        """Positions that the longest answer takes."""
        return len(self.prompt_ids) + self.limit


def limit_for(reference_tokens: int, max_tokens: int) -> int:
    """How long an answer may get that is compared with one of `reference_tokens`.

    Half as much again tells a student that finds no end from one that does; more would only cost time.
    """
    return min(max_tokens, reference_tokens + reference_tokens // 2 + 16)


@torch.inference_mode()
def answer(
    model: Any, questions: Sequence[Question], end_ids: Sequence[int], vocabulary: int, tick: Callable[[int], None]
) -> list[list[int]]:
    """The model's greedy answers in the order of the questions, as token ids without their end.

    `vocabulary` is the tokenizer's size; rows that a model has beyond it are never chosen. `tick` gets the number of
    questions answered since it was last called.
    """
    answers: list[list[int]] = [[] for _ in questions]
    for group in batches(questions):
        asked = [questions[index] for index in group]
        new_BT = generate(
            model, [one.prompt_ids for one in asked], max(one.limit for one in asked), end_ids, vocabulary
        )
        for index, question, row_T in zip(group, asked, new_BT.tolist(), strict=True):
            answers[index] = until_end(row_T[: question.limit], end_ids)
        tick(len(group))
    return answers


def batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    """Indices of questions that are answered together: alike in limit, then in length."""
    order = sorted(range(len(questions)), key=lambda i: (questions[i].limit, len(questions[i].prompt_ids), i))
    group: list[int] = []
    for index in order:
        longest = max([questions[index].tokens, *(questions[other].tokens for other in group)])
        if group and (len(group) == BATCH_ROWS or (len(group) + 1) * longest > BATCH_TOKENS):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    limit: int,
    end_ids: Sequence[int],
    vocabulary: int,
    *,
    at_least: int = 0,
) -> Tensor:
    """Greedy continuations, [B, new tokens], filled with the first end after an answer's end; on the CPU."""
    longest = max(len(prompt) for prompt in prompts)
    filler = end_ids[0] if end_ids else 0
    ids_BT = torch.tensor([[filler] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    how = GenerationConfig(
        max_new_tokens=limit,
        min_new_tokens=at_least or None,
        do_sample=False,
        use_cache=True,
        eos_token_id=list(end_ids) or None,
        pad_token_id=filler,
        suppress_tokens=list(range(vocabulary, model.get_output_embeddings().out_features)) or None,
    )
    out_BT: Tensor = model.generate(
        input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device), generation_config=how
    )
    return out_BT[:, longest:].cpu()


def until_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """The tokens before the first end."""
    for at, token in enumerate(ids):
        if token in end_ids:
            return list(ids[:at])
    return list(ids)

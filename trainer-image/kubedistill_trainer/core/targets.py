"""What the student is asked to predict. The one module that shifts.

A conversation becomes one row of token ids and a mask that is true at *targets*: the tokens the teacher wrote. The
logits that predict token t stand at position t - 1; that step back is taken in `shift` and nowhere else.

The end of an answer is a target exactly once if the answer is complete, and never if it was cut off: a student must
learn to stop where the teacher stopped, and not where a limit did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Turn:
    """What precedes an answer and the answer, in the teacher's own tokens (never re-tokenised)."""

    context_ids: Sequence[int]
    """Everything since the previous answer: template, system prompt, the user's words. Never a target."""
    answer_ids: Sequence[int]
    complete: bool
    """The teacher ended the answer itself. False: it was cut off, `finish_reason: length`."""


@dataclass(frozen=True)
class Tokens:
    """One row: token ids, and which of them are targets. Plain integers, ready to be stored."""

    input_ids: tuple[int, ...]
    target_mask: tuple[bool, ...]

    @property
    def targets(self) -> int:
        return sum(self.target_mask)


@dataclass(frozen=True)
class Shifted:
    """Where the logits stand and what they should say; N is the number of targets."""

    positions_N: Tensor
    """Index into the tokens of the position whose logits predict the target: the token before it."""
    target_ids_N: Tensor


def supervise(turns: Sequence[Turn], end_ids: Sequence[int]) -> Tokens:
    """One row from a conversation.

    `end_ids` are the tokens that end an answer, the template's own first: a complete answer that came without one
    (servers strip it) gets that one. Nothing after the first end is kept, so an engine that ran on past it
    (`ignore_eos`) teaches nothing more than one that stopped.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for turn in turns:
        answer = _ended(turn, end_ids)
        ids += [*turn.context_ids, *answer]
        mask += [False] * len(turn.context_ids) + [True] * len(answer)
    return Tokens(tuple(ids), tuple(mask))


def shift(input_ids_T: Tensor, target_mask_T: Tensor) -> Shifted:
    """The positions whose logits count and the ids they should predict, in order.

    Raises ValueError for a mask of another length, or a target that no token precedes.
    """
    if input_ids_T.shape != target_mask_T.shape:
        raise ValueError(f"{len(input_ids_T)} tokens but {len(target_mask_T)} mask entries")
    if len(target_mask_T) and bool(target_mask_T[0]):
        raise ValueError("the first token cannot be a target: nothing precedes it")
    at_N = torch.nonzero(target_mask_T).squeeze(-1)
    return Shifted(at_N - 1, input_ids_T[at_N])


def ends(tokens: Tokens, end_ids: Collection[int]) -> int:
    """How many targets are an end of text: one for each complete answer."""
    return sum(is_target and i in end_ids for i, is_target in zip(tokens.input_ids, tokens.target_mask, strict=True))


def _ended(turn: Turn, end_ids: Sequence[int]) -> list[int]:
    answer = list(turn.answer_ids)
    for at, token in enumerate(answer):
        if token in end_ids:
            return answer[: at + 1]
    return [*answer, end_ids[0]] if turn.complete else answer

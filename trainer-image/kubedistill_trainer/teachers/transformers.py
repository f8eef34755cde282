"""A teacher inside this process: a model from transformers, decoded in one continuous batch.

The scores of a token are taken from the very logits it was drawn from, so there is no second pass.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kubedistill_trainer.core.floors import LOGPROB_FLOOR
from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.models import at_ease, end_ids, load_model, load_tokenizer, torch_dtype
from kubedistill_trainer.store.shards import Signal
from kubedistill_trainer.teachers.decoding import Decoder, draw
from kubedistill_trainer.teachers.protocol import Answered, Failed, Request, Sampling, Work, prompt_of

PREFILL_TOKENS = 4096
"""Prompt tokens, padding included, that are read in one pass."""
REFILL = 8
"""One free place in so many lets new rows join: each joining copies the cache once."""


@dataclass
class _Slot:
    """A row under way."""

    request: Request
    prompt: list[int]
    limit: int
    """Tokens that the answer may have."""
    random: np.random.Generator
    tokens: list[int] = field(default_factory=list)
    scores: list[tuple[npt.NDArray[Any], ...]] = field(default_factory=list)
    """For each token: ids and logprobs of the K candidates, tail, the token's own; empty tuples for text alone."""
    done: bool = False


class TransformersTeacher:
    """See the module. `batch_size` rows are under way at once."""

    def __init__(self, model: Any, tokenizer: Any, ends: Sequence[int], sampling: Sampling, batch_size: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.ends = tuple(ends)
        self._sampling = sampling
        self._batch_size = batch_size
        self._context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30

    @staticmethod
    def load(path: Path, precision: str, sampling: Sampling, batch_size: int) -> TransformersTeacher:
        """Load a model's folder, onto a GPU if there is one.

        A CPU that cannot compute in half precision computes in float32 with weights of that precision.

        Raises:
            NotFound: the folder holds no model that can be loaded.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = at_ease(load_model(path, torch_dtype(precision), device))
        tokenizer = load_tokenizer(path)
        return TransformersTeacher(model, tokenizer, end_ids(tokenizer, path), sampling, batch_size)

    def answer(self, work: Work, stopping: threading.Event) -> None:
        """See `protocol.Teacher`."""
        decoder = Decoder(self._model, len(self._tokenizer))
        slots: list[_Slot] = []
        while not stopping.is_set():
            if sum(slot.done for slot in slots) * REFILL >= len(slots):
                slots = self._refill(decoder, slots, work)
            if not slots:
                return
            self._finish(decoder, slots, work)
            if not all(slot.done for slot in slots):
                self._advance(slots, decoder.step(torch.tensor([slot.tokens[-1] for slot in slots])))

    def close(self) -> None:
        self._model = None

    def _refill(self, decoder: Decoder, slots: list[_Slot], work: Work) -> list[_Slot]:
        """Let new rows take the places of finished ones; places for which there is no row are dropped.

        A batch that cannot be joined (see `Decoder`) only shrinks, until all of it is done.
        """
        if not decoder.joinable and not all(slot.done for slot in slots):
            return _shrunk(decoder, slots)
        if all(slot.done for slot in slots):
            decoder.keep([])
            slots = []
        retired = [place for place, slot in enumerate(slots) if slot.done]
        new = self._new(work, self._batch_size - len(slots) + len(retired))
        for some in _passes(new) if decoder.joinable else [new] if new else []:
            prompts = [slot.prompt for slot in some]
            if len(retired) >= len(some):
                places, retired = retired[: len(some)], retired[len(some) :]
                self._advance(some, decoder.join(prompts, places))
                for place, slot in zip(places, some, strict=True):
                    slots[place] = slot
            else:
                self._advance(some, decoder.join(prompts))
                slots = slots + some
        return _shrunk(decoder, slots)

    def _new(self, work: Work, limit: int) -> list[_Slot]:
        """New rows, the shortest first. A prompt that cannot be asked is given back at once."""
        slots: list[_Slot] = []
        while len(slots) < limit and (requests := work.take(limit - len(slots))):
            for request in requests:
                prompt = prompt_of(self._tokenizer, request, self._context)
                if isinstance(prompt, Failed):
                    work.give(request, prompt)
                    continue
                room = min(self._sampling.max_tokens, self._context - len(prompt))
                slots.append(_Slot(request, prompt, room, np.random.Generator(np.random.Philox(request.seed))))
        return sorted(slots, key=lambda slot: len(slot.prompt))

    def _advance(self, slots: Sequence[_Slot], logits_BV: Tensor) -> None:
        """Draw one token for each row that is not done, and score it."""
        uniforms_B = torch.tensor([0.5 if slot.done else slot.random.random() for slot in slots], dtype=torch.float64)
        tokens_B = draw(logits_BV, uniforms_B, self._sampling.temperature, self._sampling.top_p)
        scores = self._score(logits_BV, tokens_B) if self._sampling.k else ()
        for row, (slot, token) in enumerate(zip(slots, tokens_B.tolist(), strict=True)):
            if not slot.done:
                slot.tokens.append(token)
                slot.scores.append(tuple(column[row] for column in scores))

    def _score(self, logits_BV: Tensor, tokens_B: Tensor) -> tuple[npt.NDArray[Any], ...]:
        signal = top_k(logits_BV, tokens_B, self._sampling.k)
        return (
            signal.ids_NK.to(torch.int32).cpu().numpy(),
            signal.logprobs_NK.to(torch.float16).cpu().numpy(),
            signal.tail_N.cpu().numpy(),
            signal.target_N.cpu().numpy(),
        )

    def _finish(self, decoder: Decoder, slots: Sequence[_Slot], work: Work) -> None:
        """Give back the rows that are done now."""
        for place, slot in enumerate(slots):
            if not slot.done and (slot.tokens[-1] in self.ends or len(slot.tokens) >= slot.limit):
                slot.done = True
                decoder.retire(place)
                work.give(slot.request, self._outcome(slot))

    def _outcome(self, slot: _Slot) -> Answered:
        complete = slot.tokens[-1] in self.ends
        words = slot.tokens[:-1] if complete else slot.tokens
        return Answered(
            text=self._tokenizer.decode(words, skip_special_tokens=True),
            complete=complete,
            token_ids=tuple(slot.tokens),
            signal=_signal(slot.scores),
            tokens=len(slot.tokens),
        )


def _passes(slots: Sequence[_Slot]) -> Iterator[list[_Slot]]:
    """Rows, sorted by length, in passes of bounded size."""
    some: list[_Slot] = []
    for slot in slots:
        if some and (len(some) + 1) * len(slot.prompt) > PREFILL_TOKENS:
            yield some
            some = []
        some.append(slot)
    if some:
        yield some


def _shrunk(decoder: Decoder, slots: list[_Slot]) -> list[_Slot]:
    """Without the places of rows that are done."""
    kept = [place for place, slot in enumerate(slots) if not slot.done]
    if len(kept) < len(slots):
        decoder.keep(kept)
    return [slots[place] for place in kept]


def _signal(scores: Sequence[tuple[npt.NDArray[Any], ...]]) -> Signal | None:
    if not scores or not scores[0]:
        return None
    ids, logprobs, tail, target = (np.stack(column) for column in zip(*scores, strict=True))
    return Signal(ids, np.maximum(logprobs, np.float16(LOGPROB_FLOOR)), tail, target)

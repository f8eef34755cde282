"""From a chat to a row that can train: the student's tokens, which of them are targets, and the teacher's scores.

The prompt is written in the student's own template, so the student is trained as it will be asked. Answers keep the
teacher's tokens where teacher and student share them (`TopK`); else the text is encoded for the student.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kubedistill_trainer.chats import prompt_text
from kubedistill_trainer.core.targets import Tokens, Turn, supervise
from kubedistill_trainer.store.shards import Signal
from kubedistill_trainer.teachers.protocol import Answered


@dataclass(frozen=True)
class Row:
    """Tokens and targets of a chat, and one row of scores for each target."""

    tokens: Tokens
    signal: Signal | None


@dataclass(frozen=True)
class Assembler:
    """Knows the student's tokenizer and what ends an answer."""

    tokenizer: Any
    student_ends: Sequence[int]
    """The template's own first."""
    teacher_ends: Sequence[int] = ()
    top_k: bool = False

    def assemble(
        self,
        history: Sequence[Mapping[str, Any]],
        prompts: Sequence[int],
        answers: Sequence[Answered],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Row:
        """A chat whose answers stand in `history` at `prompts`.

        Every answer is a target. If the template rewrites earlier answers (some strip reasoning or blanks), only the
        last one is: the row then shows the student exactly what it will see.
        """
        taught = [self._taught(answer) for answer in answers]
        ended = [
            answer.complete or any(token in self.student_ends for token in ids)
            for answer, (ids, _) in zip(answers, taught, strict=True)
        ]
        contexts = self._contexts(history, prompts, [answer.text for answer in answers], ended, tools)
        if contexts is None:
            contexts, taught, answers = [self._prompt(history[: prompts[-1]], tools)], taught[-1:], answers[-1:]
        turns = [
            Turn(self._encode(context), ids, answer.complete)
            for context, (ids, _), answer in zip(contexts, taught, answers, strict=True)
        ]
        signals = [signal for _, signal in taught if signal is not None]
        row = Row(supervise(turns, self.student_ends), _joined(signals) if signals else None)
        if row.signal is not None and len(row.signal.tail_logprob_N) != row.tokens.targets:
            raise ValueError(f"{row.tokens.targets} targets but {len(row.signal.tail_logprob_N)} rows of scores")
        return row

    def _taught(self, answer: Answered) -> tuple[list[int], Signal | None]:
        """The tokens of an answer for the student, up to the first end, and their scores."""
        if not self.top_k:
            return self._encode(answer.text), None
        if answer.token_ids is None or answer.signal is None:
            raise ValueError("a teacher without scores was asked for them")
        ids, signal = list(answer.token_ids), answer.signal
        if ids and ids[-1] in self.teacher_ends and ids[-1] not in self.student_ends:
            ids, signal = _renamed_end(ids, signal, self.student_ends[0])
        cut = next((place + 1 for place, token in enumerate(ids) if token in self.student_ends), len(ids))
        return ids[:cut], _cut(signal, cut)

    def _contexts(
        self,
        history: Sequence[Mapping[str, Any]],
        prompts: Sequence[int],
        texts: Sequence[str],
        ended: Sequence[bool],
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> list[str] | None:
        """What stands before each answer and after the one before it; None: the template rewrites earlier answers.

        The end that the template writes after an answer belongs to the answer; after one that was cut off it is no
        target, and belongs to what follows.
        """
        contexts: list[str] = []
        before = ""
        for number, (place, text) in enumerate(zip(prompts, texts, strict=True)):
            prompt = self._prompt(history[:place], tools)
            if not prompt.startswith(before):
                return None
            context = prompt[len(before) :]
            if number and ended[number - 1]:
                context = context.removeprefix(self.tokenizer.decode([self.student_ends[0]]))
            contexts.append(context)
            before = prompt + text
        return contexts

    def _prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        return prompt_text(self.tokenizer, messages, tools)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _renamed_end(ids: Sequence[int], signal: Signal, end: int) -> tuple[list[int], Signal]:
    """The teacher's end under the student's name: the last token, and its place among the last candidates."""
    candidates = signal.topk_ids_NK.copy()
    last = candidates[-1]
    candidates[-1] = np.where(last == ids[-1], end, np.where(last == end, ids[-1], last))
    return [*ids[:-1], end], Signal(candidates, signal.topk_logprobs_NK, signal.tail_logprob_N, signal.target_logprob_N)


def _cut(signal: Signal, rows: int) -> Signal:
    return Signal(
        signal.topk_ids_NK[:rows],
        signal.topk_logprobs_NK[:rows],
        signal.tail_logprob_N[:rows],
        signal.target_logprob_N[:rows],
    )


def _joined(signals: Sequence[Signal]) -> Signal:
    return Signal(
        np.concatenate([signal.topk_ids_NK for signal in signals]),
        np.concatenate([signal.topk_logprobs_NK for signal in signals]),
        np.concatenate([signal.tail_logprob_N for signal in signals]),
        np.concatenate([signal.target_logprob_N for signal in signals]),
    )

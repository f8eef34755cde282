"""Measures one model at a time, and says how far it is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.comparison import Measured
from kubedistill_trainer.core.footprint import Size, Speed
from kubedistill_trainer.core.scores import Reading
from kubedistill_trainer.evaluation import answering, reading, timing
from kubedistill_trainer.models import at_ease

TIMED_PROMPTS = 6
TIMED_TOKENS = 24
"""Enough to tell models apart, little enough to cost a laptop some seconds."""
PUBLISHED_BYTES = 2
"""Of a weight: models are published in bfloat16, whatever they were measured in."""


@dataclass(frozen=True)
class Exam:
    """What every model is put to."""

    examples: Mapping[str, Sequence[Example]]
    """Answers of each teacher, to be read."""
    questions: Sequence[answering.Question]
    """Prompts, to be answered."""
    tokenizer: Any
    packing: bool
    """Read answers end to end instead of padding them."""

    def texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        """Token ids as text."""
        return [self.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]

    def unended(self, answers: Sequence[Sequence[int]]) -> int:
        """How many were cut off: an answer that ended is shorter than its limit, by the end at least."""
        return sum(len(ids) >= question.limit for ids, question in zip(answers, self.questions, strict=True))


@dataclass(frozen=True)
class Candidate:
    """A model that can be loaded."""

    name: str
    """For progress: untrained student."""
    load: Callable[[], Any]
    """Onto the device, in evaluation mode."""
    end_ids: Sequence[int]
    """What ends its answers."""


@dataclass(frozen=True)
class Meter:
    """Puts candidates to an exam, never two of them in memory.

    `say` gets what is being done, in a few words; `tick` gets how many answers were read or written since the last
    call, and may raise to stop.
    """

    exam: Exam
    say: Callable[[str], None]
    tick: Callable[[int], None]

    def measure(self, candidate: Candidate, *, answers: bool, speed: bool = False) -> Measured:
        """A candidate's reading and size, and if asked for its own answers and its speed."""
        model = self._loaded(candidate)
        self.say(f"reading with the {candidate.name}")
        readings = {
            teacher: reading.read_with(
                model, examples, len(self.exam.tokenizer), packing=self.exam.packing, tick=self.tick
            )
            for teacher, examples in self.exam.examples.items()
        }
        written = self._answers(candidate, model) if answers else None
        return Measured(
            reading=sum(readings.values(), Reading()),
            readings=readings,
            size=size_of(model),
            answers=self.exam.texts(written) if written is not None else None,
            unended=self.exam.unended(written) if written is not None else 0,
            speed=self._speed(candidate, model) if speed else None,
        )

    def time(self, candidate: Candidate) -> Speed:
        """A candidate's speed alone."""
        return self._speed(candidate, self._loaded(candidate))

    def _loaded(self, candidate: Candidate) -> Any:
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        self.say(f"loading the {candidate.name}")
        return at_ease(candidate.load())

    def _answers(self, candidate: Candidate, model: Any) -> list[list[int]]:
        self.say(f"answering with the {candidate.name}")
        return answering.answer(model, self.exam.questions, candidate.end_ids, len(self.exam.tokenizer), self.tick)

    def _speed(self, candidate: Candidate, model: Any) -> Speed:
        self.say(f"timing the {candidate.name}")
        prompts = [question.prompt_ids for question in self.exam.questions[:TIMED_PROMPTS]]
        return timing.measure(model, prompts, TIMED_TOKENS, candidate.end_ids, len(self.exam.tokenizer))


def size_of(model: Any) -> Size:
    """A model's weights as they are published; tied weights count once."""
    parameters = sum(weight.numel() for weight in model.parameters())
    return Size(parameters, parameters * PUBLISHED_BYTES)

"""Generation: what the teacher is asked for, and which of its answers may train a student."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Fraction, Model
from kubedistill_api.rules import Rule


class Signal(StrEnum):
    """What is stored of an answer: its text, or also the K likeliest tokens at each of its positions."""

    TEXT = "Text"
    TOP_K = "TopK"


class Tail(StrEnum):
    """How the mass outside the top K enters the loss: by the token that was sampled, or as one class."""

    AUTO = "Auto"
    SAMPLED = "Sampled"
    BUCKET = "Bucket"


class Reasoning(StrEnum):
    """How the teacher is led to its answer."""

    NONE = "None"
    CHAIN_OF_THOUGHT = "ChainOfThought"
    CHAIN_OF_DENSITY = "ChainOfDensity"


class ReasoningTarget(StrEnum):
    """What of a reasoned answer the student learns."""

    ANSWER_ONLY = "AnswerOnly"
    REASONING_AND_ANSWER = "ReasoningAndAnswer"


class Reuse(StrEnum):
    """Whether answers that are there already are used."""

    IF_UNCHANGED = "IfUnchanged"
    NEVER = "Never"


class Filters(Model):
    """Which answers are rejected. Every rejected row keeps its reason in the ledger."""

    drop_truncated: bool = True
    """Answers cut off at `maxTokens`."""
    drop_refusals: bool = True
    """Answers that only decline."""
    drop_repetitive: bool = True
    """Answers that loop."""
    require_label_match: bool = False
    """Rows with a label: only answers that agree with it."""
    min_tokens: Annotated[int, Field(ge=0, le=10**6)] = 1
    """Shorter answers are rejected."""
    deduplicate: bool = True
    """Of equal answers to equal prompts one is kept."""


class Generation(Model):
    """How answers are made and kept."""

    rules: ClassVar = (
        Rule(
            cel="self.tail != 'Sampled' || (self.temperature == 1.0 && self.topP == 1.0)",
            message="tail: Sampled is unbiased only for answers sampled at temperature: 1 and topP: 1; write those, "
            "or tail: Bucket",
            holds=lambda generation: (
                generation.tail is not Tail.SAMPLED or (generation.temperature == 1 and generation.top_p == 1)
            ),
            field="tail",
        ),
        Rule(
            cel="self.reasoning == 'None'",
            message="reasoning is not built yet: write reasoning: None",
            holds=lambda generation: generation.reasoning is Reasoning.NONE,
            field="reasoning",
        ),
    )

    signal: Signal = Signal.TEXT
    """`TopK` needs one tokenizer for teacher and student."""
    top_k: Annotated[int, Field(ge=1, le=128)] = 32
    """K: likeliest tokens stored at each position."""
    tail: Tail = Tail.AUTO
    """`Auto`: Sampled where it is unbiased and the objective can use it (not ReverseKL), else Bucket."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=64)] = 1
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Of the sampling; 0: greedy. Stored scores are always those of temperature 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1: off."""
    max_tokens: Annotated[int, Field(ge=1, le=10**6)] = 1024
    """The longest answer, in tokens."""
    reasoning: Reasoning = Reasoning.NONE
    """Ask for reasoning before the answer."""
    reasoning_target: ReasoningTarget = ReasoningTarget.ANSWER_ONLY
    """What of it the student learns."""
    seed: Annotated[int, Field(ge=0, le=2**53)] = 42
    """Every request's own seed is a hash of this, the row and the sample."""
    shards: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Pieces that are committed one by one: a restart repeats at most one for each pod."""
    parallelism: Annotated[int, Field(ge=1, le=1000)] = 4
    """Generate pods at once."""
    filters: Filters = Filters()
    """Which answers are rejected."""
    min_yield: Fraction = 0.9
    """Fewer usable answers than this share: the stage fails and nothing is trained."""
    reuse: Reuse = Reuse.IF_UNCHANGED
    """Use answers of an earlier run whose every setting and prompt were the same."""

    @property
    def sampled_tail(self) -> bool:
        """Whether the sampled token stands for the tail (`Auto` resolved), where the objective can use it."""
        unbiased = self.temperature == 1 and self.top_p == 1
        return self.tail is Tail.SAMPLED or (self.tail is Tail.AUTO and unbiased)

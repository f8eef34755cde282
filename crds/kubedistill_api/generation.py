"""Generation: what the teacher is asked for, and which of its answers may train a student."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Fraction, Model, Task
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
    require_label_match: bool | None = None
    """Rows with a label: only answers that agree with it. Absent: so for Math, else not."""
    min_tokens: Annotated[int, Field(ge=0, le=10**6)] = 1
    """Shorter answers are rejected."""
    deduplicate: bool = True
    """Of equal answers to equal prompts one is kept."""

    def matches_labels(self, task: Task) -> bool:
        """Whether answers that disagree with their row's label are rejected (`requireLabelMatch` resolved)."""
        return task is Task.MATH if self.require_label_match is None else self.require_label_match


DENSITY_ROUNDS = 4
"""Summaries that a chain of density writes of one text, each denser than the one before."""


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
            cel="self.reasoningTarget == 'AnswerOnly' || self.reasoning == 'ChainOfThought'",
            message="reasoningTarget: ReasoningAndAnswer needs reasoning: ChainOfThought (of a chain of density the "
            "student learns the last summary): write that, or reasoningTarget: AnswerOnly",
            holds=lambda generation: (
                generation.reasoning_target is ReasoningTarget.ANSWER_ONLY
                or generation.reasoning is Reasoning.CHAIN_OF_THOUGHT
            ),
            field="reasoningTarget",
        ),
        Rule(
            cel="self.signal != 'TopK' || self.reasoning == 'None' || self.reasoningTarget == 'ReasoningAndAnswer'",
            message="a teacher scores its answer after its own reasoning, which a student that learns the answer alone "
            "never sees: write signal: Text, or reasoning: ChainOfThought with reasoningTarget: ReasoningAndAnswer",
            holds=lambda generation: (
                generation.signal is not Signal.TOP_K
                or generation.reasoning is Reasoning.NONE
                or generation.reasoning_target is ReasoningTarget.REASONING_AND_ANSWER
            ),
            field="signal",
        ),
        Rule(
            cel="!has(self.summaryWords) || self.maxTokens >= self.summaryWords * (self.reasoning == 'ChainOfDensity' "
            "? 8 : 2)",
            message="maxTokens is too small for summaries of summaryWords words: write at least 2 tokens for each "
            "word, and 8 with reasoning: ChainOfDensity, which writes four summaries",
            holds=lambda generation: (
                generation.summary_words is None
                or generation.max_tokens
                >= 2
                * generation.summary_words
                * (DENSITY_ROUNDS if generation.reasoning is Reasoning.CHAIN_OF_DENSITY else 1)
            ),
            field="maxTokens",
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
    """Ask for reasoning before the answer. `ChainOfDensity`: for Summarization, four summaries, each denser."""
    reasoning_target: ReasoningTarget = ReasoningTarget.ANSWER_ONLY
    """What of it the student learns. `AnswerOnly` needs `signal: Text`."""
    summary_words: Annotated[int, Field(ge=5, le=5000)] | None = None
    """Summarization: about how long a summary is, in words. The teacher is told; more than twice as many are rejected.
    Absent: as long as the prompt asks for."""
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

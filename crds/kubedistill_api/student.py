"""The student: where it starts, and which of its weights are trained."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Model, Name, Word
from kubedistill_api.rules import Rule
from kubedistill_api.teachers import ModelRef


class ChooseLayers(StrEnum):
    """How the layers of a pruned student are chosen."""

    BLOCK_INFLUENCE = "BlockInfluence"
    EVENLY_SPACED = "EvenlySpaced"


class PrunedFrom(Model):
    """A student made of some of a teacher's own layers."""

    teacher: Name
    """The teacher, by its name in `teachers`."""
    layers: Annotated[int, Field(ge=1, le=1024)]
    """Layers that are kept."""
    choose: ChooseLayers = ChooseLayers.BLOCK_INFLUENCE
    """`BlockInfluence` measures on the training prompts which layers change their input least, and drops those."""


class AdapterType(StrEnum):
    """Low-rank adapters, on a base in its own precision or in four bits."""

    LORA = "LoRA"
    QLORA = "QLoRA"


class Adapter(Model):
    """Train low-rank adapters instead of all weights (LoRA, arXiv:2106.09685; QLoRA, arXiv:2305.14314)."""

    type: AdapterType = AdapterType.LORA
    """`QLoRA` holds the frozen linear layers in four bits (NF4) while it trains: a quarter of their memory, and longer
    steps. What is published is merged into the weights as they were."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 64
    """Rank of the two factors."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 128
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    target_modules: Annotated[list[Word], Field(min_length=1, max_length=64)] = ["all-linear"]
    """Names of the modules that get an adapter; `all-linear`: every linear layer but the head."""


class Student(Model):
    """The model that learns."""

    rules: ClassVar = (
        Rule(
            cel="has(self.model) != has(self.prunedFrom)",
            message="write exactly one of model (start from given weights) or prunedFrom (start from a teacher's own "
            "layers)",
            holds=lambda student: (student.model is None) != (student.pruned_from is None),
        ),
    )

    model: ModelRef | None = None
    """Start from these weights."""
    pruned_from: PrunedFrom | None = None
    """Start from some of a teacher's layers."""
    adapter: Adapter | None = None
    """Absent: all weights are trained."""

    @property
    def in_four_bits(self) -> bool:
        """Whether the student's frozen weights are held in four bits while it trains."""
        return self.adapter is not None and self.adapter.type is AdapterType.QLORA

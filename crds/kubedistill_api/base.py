"""The base of every model and the bounded scalar types they are made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from kubedistill_api.rules import Rule

GROUP = "kubedistill.io"
VERSION = "v1alpha1"
KIND = "DistillationJob"
PLURAL = "distillationjobs"


class Model(BaseModel):
    """A frozen value with camelCase keys in documents and no unknown fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """What must hold beyond the schema, once in CEL for the API server and once in Python for everyone else."""


class Tolerant(Model):
    """A model of a document that a newer version may have written: unknown fields are dropped."""

    model_config = ConfigDict(extra="ignore")


DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

Name = Annotated[str, Field(min_length=1, max_length=40, pattern=DNS_LABEL)]
ObjectName = Annotated[str, Field(max_length=253)]
Uri = Annotated[str, Field(min_length=1, max_length=1024)]
Text = Annotated[str, Field(max_length=1024)]
LongText = Annotated[str, Field(max_length=16384)]
Word = Annotated[str, Field(max_length=128)]
Digest = Annotated[str, Field(max_length=80)]
Decimal = Annotated[str, Field(max_length=32)]
"""A decimal number as a string: the API conventions of Kubernetes keep floats out of a status."""
Timestamp = Annotated[str, Field(max_length=40)]
"""RFC 3339, in UTC, to the second."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[int, Field(ge=1, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Task(StrEnum):
    """What kind of question the student learns to answer."""

    CONVERSATION = "Conversation"
    CLASSIFICATION = "Classification"
    QUESTION_ANSWERING = "QuestionAnswering"
    MATH = "Math"
    SUMMARIZATION = "Summarization"


class Stage(StrEnum):
    """The five stages, in the order in which they run."""

    PREPARE = "Prepare"
    GENERATE = "Generate"
    TRAIN = "Train"
    EVALUATE = "Evaluate"
    PUBLISH = "Publish"

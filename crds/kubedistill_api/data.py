"""The prompts: where they are, what their fields are called, and how many bad rows are borne."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Fraction, LongText, Model, Uri, Word
from kubedistill_api.rules import Rule
from kubedistill_api.uris import DATA_SCHEMES, cel_scheme_is, scheme_is


class DataRef(Model):
    """A file, or a folder of files."""

    rules: ClassVar = (
        Rule(
            cel=cel_scheme_is("self.uri", DATA_SCHEMES),
            message="a data URI begins with s3://, pvc://, https:// or file:// (hf-dataset://, gs:// and abfs:// are "
            "not built yet)",
            holds=lambda data: scheme_is(data.uri, DATA_SCHEMES),
            field="uri",
        ),
    )

    uri: Uri
    """JSON lines, a JSON array (also in gzip or zstd), Parquet, or a folder of them; told by content, not suffix."""


class OnInvalidRow(StrEnum):
    """What a broken row does."""

    DROP = "Drop"
    FAIL = "Fail"


class Data(Model):
    """What the teacher is asked."""

    train: DataRef
    """The prompts the student learns from."""
    validation: DataRef | None = None
    """Held-out prompts; absent: `validationFraction` of `train`."""
    validation_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    """The share of `train` that is held out, chosen by a hash of the prompt."""
    columns: Annotated[dict[Word, Word], Field(max_length=16)] = {}
    """Our field name to yours: `{prompt: question, label: answer}`."""
    labels: Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(max_length=1000)] = []
    """Classification: the answers that count."""
    on_invalid_row: OnInvalidRow = OnInvalidRow.DROP
    """`Drop` bears up to `maxInvalidShare`; `Fail` bears none."""
    max_invalid_share: Fraction = 0.1
    """More broken rows than this share of all rows: the job fails before anything expensive starts."""
    system_prompt: LongText = ""
    """Put before rows that bring no system message of their own."""
    max_rows: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Read at most so many training rows."""

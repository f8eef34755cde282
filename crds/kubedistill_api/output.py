"""The output: where the model goes, in which forms, and what may be replaced there."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from kubedistill_api.base import Model, Uri
from kubedistill_api.rules import Rule
from kubedistill_api.uris import STORE_SCHEMES, cel_scheme_is, scheme_is


class Format(StrEnum):
    """Forms of the published model."""

    MERGED = "Merged"
    ADAPTER = "Adapter"
    GGUF = "GGUF"
    ONNX = "ONNX"


class GgufType(StrEnum):
    """Types of a GGUF file's matrices; everything else in it is in 32 bits."""

    BF16 = "BF16"
    F16 = "F16"
    Q8_0 = "Q8_0"


class Overwrite(StrEnum):
    """What may be replaced at the output: nothing, or what this same job wrote."""

    NEVER = "Never"
    IF_OWNED = "IfOwned"


class Output(Model):
    """Where the model goes."""

    rules: ClassVar = (
        Rule(
            cel=cel_scheme_is("self.uri", STORE_SCHEMES),
            message="output.uri begins with s3://, pvc:// or file:// (gs:// and abfs:// are not built yet)",
            holds=lambda output: scheme_is(output.uri, STORE_SCHEMES),
            field="uri",
        ),
    )

    uri: Uri
    """A folder of the model's own; it must be free."""
    formats: Annotated[list[Format], Field(min_length=1, max_length=4)] = [Format.MERGED]
    """`Merged`: a folder as Transformers writes it. `Adapter`: in `adapter/`, needs `student.adapter`. `GGUF`: a
    file in `gguf/`, for llama.cpp and what is built on it. `ONNX`: in `onnx/`, a float32 graph with a cache."""
    gguf_type: GgufType = GgufType.BF16
    """Of `GGUF`. `BF16` is what was trained, bit for bit; `F16` for devices without it; `Q8_0` halves the file."""
    overwrite: Overwrite = Overwrite.NEVER
    """`IfOwned`: replace what a job of this name and namespace published there."""

"""Prepared rows: what the teacher will be asked, as Prepare leaves it for every later stage.

`<prepared>/train.parquet` and `<prepared>/valid.parquet`, one row a prompt; `<prepared>/tokenizer/` is the student's
tokenizer (with the chat template that is trained), `<prepared>/teachers/<name>/` that of a teacher with a model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from kubedistill_trainer.errors import BadData
from kubedistill_trainer.store.tables import table_of
from kubedistill_trainer.store.workspace import Workspace

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")
SCHEMA_VERSION = 1
GROUP = 1 << 16
"""Rows of a row group."""
TOKENIZER = "tokenizer"
TEACHERS = "teachers"

_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", pa.string()),
        ("label", pa.string()),
        ("prompt_hash", pa.string()),
        ("tools", pa.string()),
    ]
)


@dataclass(frozen=True)
class PromptRow:
    """One prompt."""

    row_id: str
    """Hexadecimal digest of the row's content."""
    messages: str
    """JSON of the chat without its final answer. Answers inside it are made anew by Generate, in order."""
    label: str
    """The expected answer; empty: none is known."""
    prompt_hash: str
    """Hexadecimal digest of the whole request; decides split and share of a teacher."""
    tools: str = ""
    """JSON of the tools that the chat may call; empty: none."""

    @property
    def chat(self) -> list[dict[str, Any]]:
        """The messages as values."""
        return list(json.loads(self.messages))

    @property
    def tool_list(self) -> list[dict[str, Any]] | None:
        """The tools as values."""
        return list(json.loads(self.tools)) if self.tools else None


def to_parquet(rows: Iterable[PromptRow]) -> bytes:
    """Rows as the bytes of a Parquet file; the same rows give the same bytes."""
    sink = io.BytesIO()
    write_parquet(sink, rows)
    return sink.getvalue()


def write_parquet(sink: BinaryIO | Path, rows: Iterable[PromptRow]) -> None:
    """Rows as a Parquet file. They are taken one group at a time, so that an iterator need not be held in memory."""
    schema = _SCHEMA.with_metadata({"kubedistill.schema": str(SCHEMA_VERSION)})
    rest = iter(rows)
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        while group := list(islice(rest, GROUP)):
            columns = [[getattr(row, name) for row in group] for name in schema.names]
            writer.write_table(pa.table(columns, schema=schema))


def read_prompts(workspace: Workspace, prepared: str, split: Split) -> list[PromptRow]:
    """The prompts of a split, in the order of the file.

    Raises:
        NotFound: Prepare's output is not there.
        BadData: it is no Parquet file of this version.
    """
    path = f"{prepared}/{split}.parquet"
    try:
        table = table_of(workspace.read_bytes(path))
        return [PromptRow(**row) for row in table.select(_SCHEMA.names).to_pylist()]
    except (pa.ArrowInvalid, KeyError) as error:
        raise BadData("PreparedRowsUnreadable", f"{workspace.uri(path)} is broken: run Prepare again.") from error


def fetch_tokenizer(workspace: Workspace, prepared: str, scratch: Path, teacher: str = "") -> Path:
    """A local folder with the student's tokenizer, or with a teacher's.

    Raises:
        NotFound: Prepare left none (an external teacher without `model` has none).
    """
    rel = f"{prepared}/{TEACHERS}/{teacher}" if teacher else f"{prepared}/{TOKENIZER}"
    local = workspace.local_path(rel)
    if local is not None and local.is_dir():
        return local
    target = scratch / "tokenizers" / (teacher or "student")
    workspace.fetch(rel, target)
    return target

"""Parquet from memory, read so that the process can end at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def table_of(data: bytes, columns: Sequence[str] | None = None) -> Any:
    """The pyarrow table in `data`, or some of its columns.

    Neither `pq.read_table` nor a Python file: with them Arrow's threads need the interpreter's lock when they are done,
    and a process that ends meanwhile is aborted; of those that read a shard last, one in four (apache/arrow#45017).

    Raises pa.ArrowInvalid: this is no Parquet.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    return file.read(columns=None if columns is None else list(columns), use_threads=False)

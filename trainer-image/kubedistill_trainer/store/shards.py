"""Shards: the unit in which a teacher's answers are committed.

`<answers>/shards/<split>-<index>.parquet` holds the accepted answers of one shard; its metadata say how they were made,
what became of every prompt, and which file holds the rejected ones. The shard is created last and by whoever comes
first, so an answer is never counted twice and a shard is never half there.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kubedistill_api.base import Tolerant
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.store import candidates
from kubedistill_trainer.store.manifests import MANIFEST
from kubedistill_trainer.store.rows import Split
from kubedistill_trainer.store.tables import table_of
from kubedistill_trainer.store.workspace import Workspace

SCHEMA_VERSION = 2

_META = b"kubedistill.shard"
_TEXTS = ("row_id", "split", "label", "messages", "text", "finish_reason", "teacher", "written")
_NUMBERS = ("input_ids", "topk_ids", "topk_logprobs", "tail_logprob", "target_logprob")
_ZSTD_LEVEL = 9
"""Level 3 is a third faster and 2 % larger, level 15 takes twice as long for 1 %; reading costs the same."""
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("messages", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("teacher", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("target_mask", pa.list_(pa.bool_())),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float16())),
        ("tail_logprob", pa.list_(pa.float32())),
        ("target_logprob", pa.list_(pa.float32())),
        ("written", pa.string()),
    ]
)


@dataclass(frozen=True)
class Signal:
    """What the teacher thought of each target, in order; N targets, K candidates. Nats, temperature 1."""

    topk_ids_NK: npt.NDArray[np.int32]
    """The likeliest first, then in any order. -1 fills positions with fewer than K candidates."""
    topk_logprobs_NK: npt.NDArray[np.float16]
    tail_logprob_N: npt.NDArray[np.float32]
    """Of all tokens outside the K."""
    target_logprob_N: npt.NDArray[np.float32]
    """Of the token that was written."""


@dataclass(frozen=True)
class AnswerRow:
    """One accepted answer."""

    row_id: str
    sample: int
    """0 .. samplesPerPrompt - 1."""
    split: Split
    label: str
    messages: str
    """JSON of the whole chat, the teacher's answers included."""
    text: str
    """The last answer, as the student learns it."""
    finish_reason: str
    """stop or length."""
    teacher: str
    input_ids: npt.NDArray[np.int32]
    """The whole chat in the student's template, answers included; T tokens."""
    target_mask: npt.NDArray[np.bool_]
    """T; true on the teacher's tokens, the one end of each complete answer included."""
    signal: Signal | None = None
    """None: `signal: Text`."""
    written: str = ""
    """All that the teacher wrote for the last answer, where the student learns only a part; else empty."""

    @property
    def targets(self) -> int:
        return int(self.target_mask.sum())


class ShardMeta(Tolerant):
    """How a shard was made, and what became of its prompts."""

    schema_version: int = SCHEMA_VERSION
    split: str
    index: int
    teacher: str
    k: int = 0
    """Candidates a position; 0: text only."""
    tokenizer_digest: str = ""
    """Of the tokenizer whose ids are stored."""
    sampling: dict[str, Any] = {}
    """Temperature, top_p, max_tokens, seed."""
    accepted: int = 0
    reasons: dict[str, int] = {}
    """Rejected answers by reason."""
    rejected: str = ""
    """Path of the rejected rows' file, relative to the answers' folder; empty: none was rejected."""
    tokens_generated: int = 0


@dataclass(frozen=True)
class RejectedRow:
    """One answer that may not train, and why."""

    row_id: str
    sample: int
    split: Split
    reason: str
    detail: str = ""
    """A few words: an error's text, the label that was expected."""
    text: str = ""
    finish_reason: str = ""
    messages: str = ""
    """JSON of what was asked."""

    def as_json(self) -> str:
        return json.dumps(self.__dict__, ensure_ascii=False)


@dataclass(frozen=True)
class Shard:
    """A shard ready to be committed."""

    meta: ShardMeta
    rows: Sequence[AnswerRow]
    rejected: Sequence[RejectedRow] = field(default=())


def shard_path(answers: str, split: Split, index: int) -> str:
    """Where a shard is, relative to the workspace."""
    return f"{answers}/shards/{split}-{index:05}.parquet"


def commit_shard(workspace: Workspace, answers: str, shard: Shard) -> bool:
    """Make a shard visible. False: another process made it first, and theirs stays.

    The rejected rows go first, under a name of their own content, so that a shard and its rejected rows always belong
    together whoever wins.
    """
    meta = shard.meta
    if shard.rejected:
        lines = "".join(f"{row.as_json()}\n" for row in shard.rejected).encode()
        name = f"rejected/{meta.split}-{meta.index:05}-{_short_hash(lines)}.jsonl"
        workspace.write_bytes(f"{answers}/{name}", lines)
        meta = meta.model_copy(update={"rejected": name})
    split: Split = "valid" if meta.split == "valid" else "train"
    return workspace.create(shard_path(answers, split, meta.index), shard_bytes(meta, shard.rows))


def shard_bytes(meta: ShardMeta, rows: Sequence[AnswerRow]) -> bytes:
    """A shard as a Parquet file that any reader of Parquet reads. Candidates are ordered and rounded: see `candidates`.

    Numbers are split by bytes before zstd, which then finds what little is alike in them; logprobs on few levels are
    better as indices into a dictionary. No statistics: nobody looks for a token id, and those of a text are the text.
    """
    kept = [None if row.signal is None else _kept(row.signal) for row in rows]
    table = pa.table(
        {
            **{name: [getattr(row, name) for row in rows] for name in (*_TEXTS, "sample")},
            "input_ids": _lists([row.input_ids for row in rows], pa.int32()),
            "target_mask": _lists([row.target_mask for row in rows], pa.bool_()),
            "topk_ids": _lists([_flat(signal, "topk_ids_NK") for signal in kept], pa.int32()),
            "topk_logprobs": _lists([_flat(signal, "topk_logprobs_NK") for signal in kept], pa.float16()),
            "tail_logprob": _lists([_flat(signal, "tail_logprob_N") for signal in kept], pa.float32()),
            "target_logprob": _lists([_flat(signal, "target_logprob_N") for signal in kept], pa.float32()),
        },
        schema=_SCHEMA,
    ).replace_schema_metadata({_META: meta.model_dump_json()})
    indexed = ["topk_logprobs"] if _indices_are_bytes(table.column("topk_logprobs")) else []
    split = [name for name in _NUMBERS if name not in indexed]
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        use_dictionary=[*_TEXTS, *(f"{name}.list.element" for name in indexed)],
        column_encoding={f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in split},
        write_statistics=False,
    )
    return sink.getvalue()


def read_shard(data: bytes) -> tuple[ShardMeta, list[AnswerRow]]:
    """The inverse of `shard_bytes`.

    Raises:
        BadData: this is no shard of this version.
    """
    try:
        table = table_of(data)
        meta = ShardMeta.model_validate_json(table.schema.metadata[_META])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise BadData("ShardUnreadable", f"A shard of answers is broken ({error}): remove it and run again.") from error
    if meta.schema_version != SCHEMA_VERSION:
        raise BadData("ShardVersion", f"A shard has schema version {meta.schema_version}, not {SCHEMA_VERSION}.")
    columns = {name: table.column(name).combine_chunks() for name in _SCHEMA.names}
    return meta, [_row(columns, index, meta.k) for index in range(table.num_rows)]


def read_meta(data: bytes) -> ShardMeta:
    """A shard's metadata alone.

    Raises:
        BadData: this is no shard.
    """
    try:
        return ShardMeta.model_validate_json(pq.read_schema(pa.BufferReader(data)).metadata[_META])
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise BadData("ShardUnreadable", f"A shard of answers is broken ({error}): remove it and run again.") from error


def read_answers(workspace: Workspace, folders: Sequence[str], split: Split) -> Iterator[AnswerRow]:
    """The accepted answers of a split, folder by folder, shard by shard, in a fixed order.

    Raises:
        BadData: a folder has no manifest (its Generate has not finished), or a shard is broken.
    """
    for folder in folders:
        if not workspace.exists(f"{folder}/{MANIFEST}"):
            raise BadData(
                "AnswersIncomplete", f"{workspace.uri(folder)} has no manifest: its Generate has not finished."
            )
        for path in workspace.list(f"{folder}/shards"):
            if path.rsplit("/", 1)[-1].startswith(f"{split}-"):
                yield from read_shard(workspace.read_bytes(path))[1]


def _row(columns: dict[str, Any], index: int, k: int) -> AnswerRow:
    def text(name: str) -> str:
        return str(columns[name][index].as_py())

    def values(name: str) -> npt.NDArray[Any]:
        return np.asarray(columns[name][index].values.to_numpy(zero_copy_only=False))

    signal = None
    if k:
        signal = Signal(
            values("topk_ids").reshape(-1, k),
            values("topk_logprobs").reshape(-1, k),
            values("tail_logprob"),
            values("target_logprob"),
        )
    return AnswerRow(
        row_id=text("row_id"),
        sample=int(columns["sample"][index].as_py()),
        split="valid" if text("split") == "valid" else "train",
        label=text("label"),
        messages=text("messages"),
        text=text("text"),
        finish_reason=text("finish_reason"),
        teacher=text("teacher"),
        input_ids=values("input_ids"),
        target_mask=values("target_mask").astype(np.bool_),
        signal=signal,
        written=text("written"),
    )


def _kept(signal: Signal) -> Signal:
    ids_NK, logprobs_NK = candidates.kept(signal.topk_ids_NK, signal.topk_logprobs_NK)
    return replace(signal, topk_ids_NK=ids_NK, topk_logprobs_NK=logprobs_NK)


def _flat(signal: Signal | None, name: str) -> npt.NDArray[Any]:
    return np.zeros(0) if signal is None else getattr(signal, name).reshape(-1)


def _indices_are_bytes(column: Any) -> bool:
    """Whether a dictionary's indices take eight bits: narrower ones are packed across bytes, where zstd is blind."""
    return 128 < len(pc.unique(pc.list_flatten(column))) <= 256


def _lists(arrays: Sequence[npt.NDArray[Any]], kind: Any) -> Any:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    flat = np.concatenate(arrays) if arrays else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(kind.to_pandas_dtype()), type=kind))


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]

"""A teacher's answers for the benchmarks: asked for once, kept as they were given."""

from __future__ import annotations

import argparse
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as pq
from measuring import PROMPTS

from kubedistill_api.identity import digest
from kubedistill_trainer.generation.assembly import Assembler
from kubedistill_trainer.models import end_ids, load_tokenizer
from kubedistill_trainer.store.shards import AnswerRow, ShardMeta, Signal, read_shard, shard_bytes
from kubedistill_trainer.teachers.protocol import Answered, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.transformers import TransformersTeacher


def real_rows(asked: argparse.Namespace) -> list[AnswerRow]:
    """A teacher's answers, none of them rounded; empty: there is no teacher."""
    if not (asked.teacher / "config.json").exists():
        print(f"No teacher in {asked.teacher} (`make demo` fetches one): all is measured on random rows.")
        return []
    kept = kept_at(asked)
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = kept.with_suffix(".part")
        made.write_bytes(plain_bytes(meta_of(asked.k), answered(asked)))
        made.rename(kept)
    return read_shard(kept.read_bytes())[1]


def kept_at(asked: argparse.Namespace) -> Path:
    """Its name is a digest of all that shapes the answers: the teacher's files as they lie there, the prompts, and how
    they are asked.
    """
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(asked.teacher.iterdir())]
    name = digest({"teacher": files, "prompts": lines(asked), "max_tokens": asked.max_tokens, "k": asked.k})
    return Path(asked.answers) / f"{name.removeprefix('sha256:')[:16]}.parquet"


def lines(asked: argparse.Namespace) -> list[Any]:
    """The examples' rows that are asked."""
    return [json.loads(line) for line in PROMPTS.read_text().splitlines()[: asked.prompts]]


def answered(asked: argparse.Namespace) -> list[AnswerRow]:
    """Greedy answers to the examples' prompts, as the quickstart asks for them, in rows as Generate makes them."""
    requests = [Request(digest(line), 0, 0, _messages(line)) for line in lines(asked)]
    sampling = Sampling(temperature=0.0, max_tokens=asked.max_tokens, k=asked.k)
    teacher = TransformersTeacher.load(asked.teacher, "FP32", sampling, batch_size=64)
    work = ListOfWork(list(requests))
    teacher.answer(work, threading.Event())
    tokenizer = load_tokenizer(asked.teacher)
    ends = end_ids(tokenizer, asked.teacher)
    assembler = Assembler(tokenizer, ends, ends, top_k=True)
    return [_row(request, work.outcomes[request.key], assembler) for request in requests]


def _messages(line: dict[str, Any]) -> list[dict[str, Any]]:
    return line.get("messages") or [{"role": "user", "content": line["prompt"]}]


def _row(request: Request, outcome: object, assembler: Assembler) -> AnswerRow:
    if not isinstance(outcome, Answered):
        raise SystemExit(f"The teacher did not answer: {outcome}")
    chat = [*request.messages, {"role": "assistant", "content": outcome.text}]
    row = assembler.assemble(chat, [len(chat) - 1], [outcome])
    return AnswerRow(
        row_id=request.row_id.removeprefix("sha256:"),
        sample=0,
        split="train",
        label="",
        messages=json.dumps(chat, ensure_ascii=False),
        text=outcome.text,
        finish_reason="stop" if outcome.complete else "length",
        teacher="smollm2",
        input_ids=np.asarray(row.tokens.input_ids, dtype=np.int32),
        target_mask=np.asarray(row.tokens.target_mask, dtype=np.bool_),
        signal=row.signal,
    )


def plain_bytes(meta: ShardMeta, rows: Sequence[AnswerRow]) -> bytes:
    """The same shard as a writer of Parquet makes it who knows nothing of signals; candidates as they were given."""
    table = pq.read_table(io.BytesIO(shard_bytes(meta, rows)))
    for name in ("topk_ids", "topk_logprobs"):
        field = table.schema.field(name)
        column = pyarrow.array([getattr(signal_of(row), f"{name}_NK").reshape(-1) for row in rows], field.type)
        table = table.set_column(table.schema.get_field_index(name), field, column)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def signal_of(row: AnswerRow) -> Signal:
    assert row.signal is not None
    return row.signal


def meta_of(k: int) -> ShardMeta:
    return ShardMeta(split="train", index=0, teacher="t", k=k)

"""A shard on disk says what it was given, to a stated precision, and to any reader of Parquet."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kubedistill_trainer.core.floors import LOGPROB_FLOOR
from kubedistill_trainer.core.signals import TopK, top_k
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.store.candidates import kept, rounded
from kubedistill_trainer.store.shards import AnswerRow, ShardMeta, Signal, read_meta, read_shard, shard_bytes

VOCABULARY = 50_000
every_float16 = np.arange(2**16, dtype=np.uint16).view(np.float16)
LOGPROBS = every_float16[(every_float16 <= 0) & (every_float16 >= LOGPROB_FLOOR)]
"""All that can be asked of a shard."""

few = settings(max_examples=25, deadline=None)
drawn = given(
    seed=st.integers(0, 2**16),
    targets=st.lists(st.integers(0, 40), min_size=0, max_size=6),
    k=st.sampled_from([1, 2, 8, 32]),
    spread=st.sampled_from([0.01, 1.0, 4.0, 40.0]),
)


def a_signal(draw: np.random.Generator, targets: int, k: int, spread: float) -> Signal:
    """Of different candidates in no order; some positions have fewer than K."""
    ids_NK = np.stack([draw.choice(VOCABULARY, k, replace=False) for _ in range(targets)] or [np.zeros(k)])[:targets]
    logits_NK = spread * draw.standard_normal((targets, k + 1))
    logprobs_NK = logits_NK - np.log(np.exp(logits_NK).sum(axis=1, keepdims=True))
    absent_NK = (draw.random((targets, k)) < 0.05) & (np.arange(k) > 0)
    return Signal(
        np.where(absent_NK, -1, ids_NK).astype(np.int32),
        np.where(absent_NK, LOGPROB_FLOOR, logprobs_NK[:, :k]).clip(LOGPROB_FLOOR).astype(np.float16),
        logprobs_NK[:, k].astype(np.float32),
        draw.standard_normal(targets).astype(np.float32),
    )


def rows_of(seed: int, targets: list[int], k: int, spread: float) -> list[AnswerRow]:
    draw = np.random.default_rng(seed)
    return [
        AnswerRow(
            row_id=f"{number:04}",
            sample=number % 3,
            split="train",
            label="",
            messages='[{"role": "user", "content": "Ünï?"}]',
            text="Yes.",
            finish_reason="stop",
            teacher="t",
            input_ids=draw.integers(VOCABULARY, size=count + 3).astype(np.int32),
            target_mask=np.arange(count + 3) >= 3,
            signal=a_signal(draw, count, k, spread),
        )
        for number, count in enumerate(targets)
    ]


def meta_of(k: int) -> ShardMeta:
    return ShardMeta(split="train", index=7, teacher="t", k=k)


def by_id(signal: Signal, logprobs_NK: npt.NDArray[Any]) -> list[list[tuple[int, float]]]:
    """The candidates of each position, in an order that does not depend on how they are kept."""
    pairs = zip(signal.topk_ids_NK.tolist(), logprobs_NK.tolist(), strict=True)
    return [sorted(zip(ids, logprobs, strict=True)) for ids, logprobs in pairs]


@few
@drawn
def test_a_shard_read_back_is_the_shard_written(seed: int, targets: list[int], k: int, spread: float) -> None:
    written = rows_of(seed, targets, k, spread)
    meta, read = read_shard(shard_bytes(meta_of(k), written))
    assert meta == meta_of(k)
    assert len(read) == len(written)
    for before, after in zip(written, read, strict=True):
        assert before.signal is not None
        assert after.signal is not None
        assert by_id(after.signal, after.signal.topk_logprobs_NK) == by_id(
            before.signal, rounded(before.signal.topk_logprobs_NK)
        )
        for name in ("tail_logprob_N", "target_logprob_N"):
            assert getattr(after.signal, name).tobytes() == getattr(before.signal, name).tobytes()
        for name in ("input_ids", "target_mask"):
            assert getattr(after, name).tobytes() == getattr(before, name).tobytes()
        rest = {"signal": None, "input_ids": np.zeros(0), "target_mask": np.zeros(0)}
        assert {**after.__dict__, **rest}.keys() == {**before.__dict__, **rest}.keys()
        for name in before.__dict__.keys() - rest.keys():
            assert getattr(after, name) == getattr(before, name), name


@few
@drawn
def test_what_was_read_is_written_as_it_was(seed: int, targets: list[int], k: int, spread: float) -> None:
    data = shard_bytes(meta_of(k), rows_of(seed, targets, k, spread))
    assert shard_bytes(*read_shard(data)) == data


words = st.text(max_size=20)


@few
@given(
    st.lists(
        st.fixed_dictionaries(
            dict.fromkeys(("row_id", "label", "messages", "text", "teacher", "written"), words)
            | {"split": st.sampled_from(["train", "valid"]), "finish_reason": st.sampled_from(["stop", "length"])}
        ),
        max_size=4,
    )
)
def test_whatever_was_said_comes_back_letter_by_letter(said: list[dict[str, str]]) -> None:
    """Zeros, line separators and emoji among others; the label that is none stays empty."""
    (plain,) = rows_of(0, [3], 2, 1.0)
    written = [replace(plain, **texts) for texts in said]
    read = read_shard(shard_bytes(meta_of(2), written))[1]
    assert [{name: getattr(row, name) for name in texts} for row, texts in zip(read, said, strict=True)] == said


@few
@given(
    sampling=st.fixed_dictionaries(
        {
            "temperature": st.floats(0, 2),
            "top_p": st.floats(0.01, 1),
            "max_tokens": st.integers(1, 2**20),
            "seed": st.integers(0, 2**63 - 1),
        }
    ),
    reasons=st.dictionaries(words, st.integers(1, 2**40), max_size=4),
    teacher=words,
)
def test_how_a_shard_was_made_comes_back_exactly(
    sampling: dict[str, Any], reasons: dict[str, int], teacher: str
) -> None:
    made = meta_of(8).model_copy(
        update={"sampling": sampling, "reasons": reasons, "teacher": teacher, "tokenizer_digest": "sha256:1"}
    )
    data = shard_bytes(made, [])
    assert read_shard(data)[0] == read_meta(data) == made


def test_rows_of_text_alone_come_back_without_a_signal() -> None:
    rows = [replace(row, signal=None) for row in rows_of(0, [3, 5], 2, 1.0)]
    assert [row.signal for row in read_shard(shard_bytes(meta_of(0), rows))[1]] == [None, None]


def test_no_logprob_moves_further_than_a_64th_of_itself_or_of_a_nat() -> None:
    exact = LOGPROBS.astype(np.float64)
    assert (np.abs(rounded(LOGPROBS) - exact) <= np.maximum(1, -exact) / 64).all()


def test_levels_are_few_enough_for_indices_of_one_byte_and_end_where_no_mass_begins() -> None:
    levels = np.unique(rounded(LOGPROBS))
    assert 128 < len(levels) <= 256
    assert levels[0] == LOGPROB_FLOOR
    assert levels[-1] == 0
    assert np.array_equal(rounded(levels), levels)


def test_rounding_keeps_the_order() -> None:
    assert (np.diff(rounded(np.sort(LOGPROBS)).astype(np.float32)) >= 0).all()


@few
@drawn
def test_the_likeliest_candidate_stands_first(seed: int, targets: list[int], k: int, spread: float) -> None:
    """`argmax` takes the first of equals: who agrees with the teacher is not a question of rounding."""
    for row in rows_of(seed, targets, k, spread):
        assert row.signal is not None
        exact_NK = row.signal.topk_logprobs_NK
        ids_NK, logprobs_NK = kept(row.signal.topk_ids_NK, exact_NK)
        best_N = exact_NK.argmax(axis=1)
        assert (logprobs_NK.argmax(axis=1) == 0).all()
        assert ids_NK[:, 0].tolist() == row.signal.topk_ids_NK[np.arange(len(best_N)), best_N].tolist()


@few
@given(seed=st.integers(0, 2**16), k=st.sampled_from([1, 8, 32, 128]), spread=st.sampled_from([0.01, 1.0, 3.0, 8.0]))
def test_a_stored_teacher_differs_from_itself_by_less_than_the_bound(seed: int, k: int, spread: float) -> None:
    """Of the K + 1 classes, in both directions; see `store.candidates`. A millionth is the floor of the tail."""
    logits_NV = spread * torch.randn(16, 400, generator=torch.Generator().manual_seed(seed))
    plain = top_k(logits_NV.double(), torch.zeros(16, dtype=torch.long), k)
    ids_NK, logprobs_NK = kept(plain.ids_NK.int().numpy(), plain.logprobs_NK.half().numpy())
    stored = TopK.from_storage(
        torch.from_numpy(ids_NK), torch.from_numpy(logprobs_NK), plain.tail_N.float(), plain.target_N.float()
    )
    places_NK = stored.ids_NK.argsort(-1)
    exact = classes(plain.logprobs_NK.gather(-1, plain.ids_NK.argsort(-1)), plain.tail_N)
    found = classes(stored.logprobs_NK.double().gather(-1, places_NK), stored.tail_N.double())
    bound = (1 + math.log(k + 1) ** 2) / 8192
    for p, q in ((exact, found), (found, exact)):
        divergence_N = (p.exp() * (p - q)).sum(-1)
        assert float(divergence_N.max()) < bound + 2e-6
        assert float(divergence_N.min()) > -1e-6


def classes(logprobs_NK: torch.Tensor, tail_N: torch.Tensor) -> torch.Tensor:
    return torch.cat([logprobs_NK, tail_N[:, None]], dim=-1)


def test_a_shard_by_another_writer_is_read_as_it_stands() -> None:
    """As shards were written before candidates were ordered and rounded, and as others may write them."""
    rows = rows_of(3, [20, 30], 8, 2.0)
    ours = pq.read_table(io.BytesIO(shard_bytes(meta_of(8), rows)))
    signals = [row.signal for row in rows if row.signal is not None]
    columns = {
        "topk_ids": pa.array([signal.topk_ids_NK.reshape(-1) for signal in signals], pa.list_(pa.int32())),
        "topk_logprobs": pa.array([signal.topk_logprobs_NK.reshape(-1) for signal in signals], pa.list_(pa.float16())),
    }
    for name, column in columns.items():
        ours = ours.set_column(ours.schema.get_field_index(name), ours.schema.field(name), column)
    sink = io.BytesIO()
    pq.write_table(ours, sink, compression="snappy")
    for row, signal in zip(read_shard(sink.getvalue())[1], signals, strict=True):
        assert row.signal is not None
        assert np.array_equal(row.signal.topk_ids_NK, signal.topk_ids_NK)
        assert np.array_equal(row.signal.topk_logprobs_NK, signal.topk_logprobs_NK)


def test_candidates_that_are_alike_take_few_bytes() -> None:
    """2,000 targets, K = 32, ids as a language has them (Zipf's law), most often the same."""
    draw = np.random.default_rng(0)
    rows = rows_of(1, [500] * 4, 32, 3.0)
    ids_NK = (np.exp(draw.random((2000, 32)) * math.log(VOCABULARY))).astype(np.int32)
    parts = np.split(ids_NK, 4)
    signals = [
        replace(row.signal, topk_ids_NK=part) for row, part in zip(rows, parts, strict=True) if row.signal is not None
    ]
    data = shard_bytes(meta_of(32), [replace(row, signal=signal) for row, signal in zip(rows, signals, strict=True)])
    assert len(data) / 2000 < 85


def test_another_version_is_refused() -> None:
    data = shard_bytes(meta_of(0).model_copy(update={"schema_version": 1}), [])
    with pytest.raises(BadData, match="schema version 1, not 2"):
        read_shard(data)

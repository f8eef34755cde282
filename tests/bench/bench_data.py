"""What stored signals cost on the way to the student, measured in one run: `make bench`.

1. Storage: bytes that a target takes in a shard, column by column, and how fast shards are written and read; of a real
   teacher's answers to the examples' prompts, and of candidates drawn at random, the worst case. Beside it the same
   signals as any writer of Parquet would store them. And what ordering and rounding do to a divergence.
2. Loading: tokens a second that rows give which are read back from disk and packed, against those that a training step
   takes, of the same rows, in turn.
3. Packing: which share of the positions that a student computes holds tokens, packed and padded, and how evenly a
   step's micro batches are filled.

What a teacher answered is kept in --answers, and not asked for again. Without a teacher (`make demo` fetches one)
everything is measured on random rows. Prints a table and writes a JSON.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from measuring import SMOLLM2, Figure, Options, Spent, medians, report, timed
from real_answers import meta_of, plain_bytes, real_rows, signal_of
from students import STUDENTS, answers, student_of

from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import Example, MicroBatch, pack, pad, split
from kubedistill_trainer.core.losses import forward_kl_bucket
from kubedistill_trainer.core.order import DataOrder
from kubedistill_trainer.core.signals import Text, TopK
from kubedistill_trainer.distiller import Distiller
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.shards import AnswerRow, Signal, read_shard, shard_bytes

WARM_UP = 2
MICRO, GLOBAL = 4, 16
"""Rows of a micro batch and of a step."""
WORLDS = (1, 2, 4)


def main() -> int:
    asked = _asked()
    with report(asked, show, figures) as found:
        found["k"] = asked.k
        real = real_rows(asked)
        drawn = answers(replace(STUDENTS["cpu"], vocabulary=128_256, rows=asked.random_rows), asked.k)
        rows = real or drawn
        found["rows_are"] = "a teacher's answers" if real else "random"
        found["storage"] = {
            **({"real": storage(real, asked)} if real else {}),
            "random": storage(drawn, asked),
        }
        found["loading"] = loading(rows, asked)
        found["packing"] = packing([len(row.input_ids) for row in rows])
    return 0


def _asked() -> argparse.Namespace:
    options = Options(__doc__, "bench-data.json")
    options.path("teacher", SMOLLM2, "a model's folder")
    options.path("answers", Path("build/bench-answers"), "a folder of what teachers answered")
    options.number("prompts", 64, "of the examples")
    options.number("max-tokens", 64, "of an answer")
    options.number("random-rows", 512, "of 96 targets")
    options.device()
    options.number("k", 32, "teacher's candidates a position")
    options.number("steps", 8, "training steps")
    options.number("repeats", 5, "of writing and reading")
    return options.parse_args()


def figures(found: dict[str, Any]) -> list[Figure]:
    """What stored signals promise."""
    most = {"real": 85, "random": 120}
    stored = found["storage"].items()
    ranks = max(found["packing"]["worlds"], key=int)
    return [
        *(
            Figure(f"bytes a target, {name} rows", one["bytes_a_target"], "B", at_most=most[name])
            for name, one in stored
        ),
        *(
            Figure(
                f"most that storing moves a teacher, {name} rows", max(one["moved"].values()), "nats", at_most=1.6e-3
            )
            for name, one in stored
        ),
        Figure("tokens a second, loaded / trained", found["loading"]["ratio"], "x", at_least=20),
        Figure(
            "positions computed that hold tokens, packed",
            found["loading"]["share_of_real_tokens_computed"],
            "share",
            at_least=1,
        ),
        Figure(
            f"a step's time in which none of {ranks} ranks waits, by tokens",
            found["packing"]["worlds"][ranks]["even_turns"],
            "share",
            at_least=0.9,
        ),
    ]


# --- 1. Storage --------------------------------------------------------------------------------------------------


def storage(rows: Sequence[AnswerRow], asked: argparse.Namespace) -> dict[str, Any]:
    """Bytes and seconds of a shard of these rows."""
    meta, targets = meta_of(asked.k), sum(row.targets for row in rows)
    data, plain = shard_bytes(meta, rows), plain_bytes(meta, rows)
    seconds = {
        "write": timed(lambda: shard_bytes(meta, rows), asked.repeats),
        "read": timed(lambda: read_shard(data), asked.repeats),
    }
    return {
        "targets": targets,
        "rows": len(rows),
        "bytes_a_target": len(data) / targets,
        "bytes_a_target_plain": len(plain) / targets,
        "bytes_a_target_uncompressed": asked.k * (4 + 2) + 4 + 4,
        "bytes_a_target_by_column": {name: size / targets for name, size in by_column(data).items()},
        **{name: {**spent, "targets_a_second": targets / spent["cpu_seconds"]} for name, spent in seconds.items()},
        "moved": moved(rows, read_shard(data)[1]),
    }


def by_column(data: bytes) -> dict[str, int]:
    """Compressed bytes of each column; `footer` is what the file has besides."""
    found: dict[str, int] = {}
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            name = column.path_in_schema.split(".")[0]
            found[name] = found.get(name, 0) + column.total_compressed_size
    return found | {"footer": len(data) - sum(found.values())}


def moved(before: Sequence[AnswerRow], after: Sequence[AnswerRow]) -> dict[str, float]:
    """Nats between the teacher as it was given and as it is stored, a target; K + 1 classes, in both directions."""
    exact, kept = (TopK.concatenate([_as_read(signal_of(row)) for row in rows]) for rows in (before, after))
    p, q = (
        torch.cat([signal.logprobs_NK.gather(-1, signal.ids_NK.argsort(-1)), signal.tail_N[:, None]], -1).double()
        for signal in (exact, kept)
    )
    forward_N, reverse_N = (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1)
    return {
        "forward_kl_mean": float(forward_N.mean()),
        "forward_kl_max": float(forward_N.max()),
        "reverse_kl_mean": float(reverse_N.mean()),
        "reverse_kl_max": float(reverse_N.max()),
    }


def _as_read(signal: Signal) -> TopK:
    return TopK.from_storage(
        torch.tensor(signal.topk_ids_NK),
        torch.tensor(signal.topk_logprobs_NK),
        torch.tensor(signal.tail_logprob_N),
        torch.tensor(signal.target_logprob_N),
    )


# --- 2. Loading --------------------------------------------------------------------------------------------------


def loading(rows: Sequence[AnswerRow], asked: argparse.Namespace) -> dict[str, Any]:
    """Loading and training of the same steps in turn; batches are made as `stages.train_rank` makes them."""
    largest = max(int(ids.max()) for row in rows for ids in (row.input_ids, signal_of(row).topk_ids_NK))
    plain = STUDENTS[asked.device]
    longest = max(len(row.input_ids) for row in rows)
    size = replace(plain, vocabulary=max(largest + 1, plain.vocabulary), length=longest)
    model = student_of(size).to(asked.device)
    model.set_attn_implementation(attention.install())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    distiller = Distiller(model, forward_kl_bucket, size.vocabulary)
    computed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, __, out: computed.append(out.shape[:-1].numel()))
    loads, trainings, tokens = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        stored = read_shard(shard_bytes(meta_of(asked.k), rows))[1]
        examples = Examples.write(Path(folder), stored, signals=True)
        order = DataOrder(len(examples), GLOBAL, seed=0)
        for step in range(asked.steps + WARM_UP):
            started = Spent.now()
            batches, counted, length = load(examples, order.rows_of_step(step))
            loads.append(started.since())
            started = Spent.now()
            for batch in batches:
                with torch.autocast(asked.device, torch.bfloat16, enabled=asked.device == "cuda"):
                    loss, _ = distiller(batch.to(asked.device))
                (loss / counted).backward()
            optimizer.step()
            optimizer.zero_grad()
            trainings.append(started.since())
            tokens += length
        each = tokens / (asked.steps + WARM_UP)
    load_s, train_s = medians(loads[WARM_UP:]), medians(trainings[WARM_UP:])
    return {
        "parameters": model.num_parameters(),
        "vocabulary": size.vocabulary,
        "rows_a_step": GLOBAL,
        "rows_a_micro_batch": MICRO,
        "tokens_a_step": each,
        "steps": asked.steps,
        "load": load_s,
        "train": train_s,
        "loaded_tokens_a_second": each / load_s["seconds"],
        "trained_tokens_a_second": each / train_s["seconds"],
        "ratio": train_s["seconds"] / load_s["seconds"],
        "cpu_ratio": train_s["cpu_seconds"] / load_s["cpu_seconds"],
        "share_of_real_tokens_computed": tokens / sum(computed),
    }


def load(examples: Examples, rows: Sequence[int]) -> tuple[list[MicroBatch], int, int]:
    """The micro batches of a step, its targets and its tokens."""
    targets = int(examples.targets[list(rows)].sum())
    lengths = [int(examples.lengths[row]) for row in rows]
    turns = split(lengths, 1, MICRO)[0]
    return [pack([examples[rows[index]] for index in turn]) for turn in turns], targets, sum(lengths)


# --- 3. Packing --------------------------------------------------------------------------------------------------


def packing(lengths: Sequence[int], epochs: int = 4) -> dict[str, Any]:
    """How full the micro batches of some epochs are.

    `even_turns`: mean over the ranks of a turn's tokens, over the most of any: the share of a step in which no rank
    waits for another, if time goes by tokens and they wait in every turn. `even_steps`: the same if they wait once a
    step. `even_batches`: over all micro batches of a step.
    """
    order = DataOrder(len(lengths), GLOBAL, seed=0)
    steps = [[lengths[row] for row in order.rows_of_step(step)] for step in range(order.steps(epochs))]
    return {
        "rows": len(lengths),
        "tokens_a_row": {"least": min(lengths), "median": statistics.median(lengths), "most": max(lengths)},
        "rows_a_step": GLOBAL,
        "rows_a_micro_batch": MICRO,
        "worlds": {str(world): _dealt(steps, world) for world in WORLDS},
    }


def _dealt(steps: Sequence[Sequence[int]], world: int) -> dict[str, float]:
    packed = padded = real = 0
    even_turns, even_steps, even_batches = [], [], []
    for step in steps:
        ranks = [[[step[row] for row in turn] for turn in rank] for rank in split(step, world, MICRO)]
        turns = [[sum(turn) for turn in rank] for rank in ranks]
        filled = [tokens for rank in turns for tokens in rank]
        real += sum(step)
        packed += sum(positions(turn, packed=True) for rank in ranks for turn in rank)
        padded += sum(positions(turn, packed=False) for rank in ranks for turn in rank)
        even_turns.append(sum(step) / world / sum(max(turn) for turn in zip(*turns, strict=True)))
        even_steps.append(sum(step) / world / max(map(sum, turns)))
        even_batches.append(statistics.mean(filled) / max(filled))
    return {
        "packed": real / packed,
        "padded": real / padded,
        "even_turns": statistics.mean(even_turns),
        "even_steps": statistics.mean(even_steps),
        "even_batches": statistics.mean(even_batches),
    }


def positions(lengths: Sequence[int], *, packed: bool) -> int:
    """What a student computes of a micro batch of rows of these lengths, as the trainer makes it."""
    examples = [
        Example(str(length), torch.zeros(length, dtype=torch.long), torch.arange(length) > 0, Text())
        for length in lengths
    ]
    return (pack(examples) if packed else pad(examples, pad_id=0)).tokens


# --- The table ---------------------------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    load, full = found["loading"], found["packing"]
    print(f"{'bytes a target, K=' + str(found['k']):34}{'stored':>10}{'plain zstd':>12}{'raw':>8}")
    for name, one in found["storage"].items():
        what = f"{name}, {one['targets']:,} targets"
        stored, plain, raw = (one[f"bytes_a_target{kind}"] for kind in ("", "_plain", "_uncompressed"))
        print(f"{what:34}{stored:>10.1f}{plain:>12.1f}{raw:>8}")
        columns = {name: size for name, size in one["bytes_a_target_by_column"].items() if size >= 0.1}
        print("  " + ", ".join(f"{name} {size:.1f}" for name, size in columns.items()))
        rates = (f"{way} {one[way]['targets_a_second']:,.0f}" for way in ("write", "read"))
        print("  targets a second of CPU: " + ", ".join(rates))
        print("  moved by: " + ", ".join(f"{way} {nats:.1e} nats" for way, nats in one["moved"].items()))
    model = f"{load['parameters'] / 1e6:.0f} M parameters"
    print(f"\n{load['tokens_a_step']:,.0f} tokens a step ({found['rows_are']}), {model}")
    print(f"{'loaded and packed':20}{load['loaded_tokens_a_second']:>12,.0f} tokens a second")
    print(f"{'trained':20}{load['trained_tokens_a_second']:>12,.0f} tokens a second")
    print(f"{'ratio':20}{load['ratio']:>12,.0f}{load['cpu_ratio']:>12,.0f} of CPU")
    print(f"{'real of computed':20}{load['share_of_real_tokens_computed']:>12.3f}\n")
    print(f"{'ranks':8}{'packed':>10}{'padded':>10}{'even turns':>12}{'even steps':>12}{'even batches':>14}")
    for world, one in full["worlds"].items():
        shares = f"{one['packed']:>10.3f}{one['padded']:>10.3f}"
        print(f"{world:8}{shares}{one['even_turns']:>12.3f}{one['even_steps']:>12.3f}{one['even_batches']:>14.3f}")


if __name__ == "__main__":
    sys.exit(main())

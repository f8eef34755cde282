"""What the losses cost, measured in one run: `make bench`.

1. Memory and time of the chunked top-K ForwardKL against the plain one, which holds [N, V] logits. Each in a process of
   its own, since a process keeps its peak; both must give the same loss and the same gradients.
2. Time of an optimizer step on stored top-K logprobs against cross-entropy, of the same small Llama on the same rows,
   one step of each in turn, so that both meet the same machine.

On a GPU (`--device cuda`) hidden states and head are bfloat16, the student is of the size of Qwen2.5-0.5B, memory is
that of the device, and the loss is timed with several sizes of its logits buffer.

Prints a table and writes a JSON. Exit code 1: the two losses differ; 75: there is not enough memory for the plain one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from kubedistill_api.exits import Exit
from kubedistill_trainer.core import attention
from kubedistill_trainer.core.batching import pack
from kubedistill_trainer.core.chunked import CHUNK_BYTES, chunked_loss
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import cross_entropy, forward_kl_bucket
from kubedistill_trainer.core.signals import Logprobs, Supervision, TopK
from kubedistill_trainer.distiller import Distiller
from kubedistill_trainer.store.examples import Examples
from kubedistill_trainer.store.shards import AnswerRow, ShardMeta, Signal, read_shard, shard_bytes

MIB = 2**20
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}
"""Relative, of the loss. Gradients are compared by their norms, to ten times that: float32 sums in another order. On a
GPU both losses read logits that were rounded to bfloat16, in products of other shapes."""
BUFFERS_MIB = (128, 512, 1024, 2048, 4096)


def main() -> int:
    asked = _asked()
    if asked.only:
        print(json.dumps(measure(asked)))
        return 0
    needed = plain_bytes(asked.tokens, asked.vocabulary)
    if (free := available_bytes(asked.device)) < needed:
        print(
            f"The plain loss needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} are available: ask for fewer --tokens."
        )
        return int(Exit.TRANSIENT)
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", "tests/bench/bench_loss.py", *sys.argv[1:]]),
        "machine": machine(asked.device),
        "load_average_before": list(os.getloadavg()),
        "loss": compare_losses(asked),
        **({"buffers": buffers(asked)} if asked.device == "cuda" else {}),
        "step": steps(asked.steps, asked.k, STUDENTS[asked.device], asked.device),
        "load_average_after": list(os.getloadavg()),
    }
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    print(f"\n{asked.output}")
    return 0 if found["loss"]["equal"] else 1


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=8192, help="positions of the loss (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=128_256, help="that of Llama 3 (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--hidden", type=int, default=256, help="size of the hidden states (default: %(default)s)")
    parser.add_argument("--k", type=int, default=32, help="teacher's candidates a position (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of each loss; the median counts (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps of each loss (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), help="default: %(default)s")
    parser.add_argument("--only", choices=["chunked", "plain"], help=argparse.SUPPRESS)
    return parser.parse_args()


# --- 1. The loss alone -------------------------------------------------------------------------------------------


def compare_losses(asked: argparse.Namespace) -> dict[str, Any]:
    """Both losses, each in a process of its own, one after the other."""
    sizes = {name: getattr(asked, name) for name in ("tokens", "vocabulary", "hidden", "k", "repeats", "device")}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    found = {}
    for name in ("chunked", "plain"):
        command = [sys.executable, __file__, f"--only={name}", *flags]
        found[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    chunked, plain = found["chunked"], found["plain"]
    gap = abs(chunked["loss"] - plain["loss"]) / abs(plain["loss"])
    gaps = [
        abs(ours - theirs) / theirs
        for ours, theirs in zip(chunked["gradient_norms"], plain["gradient_norms"], strict=True)
    ]
    return {
        **sizes,
        **found,
        "relative_difference": gap,
        "relative_differences_of_gradient_norms": gaps,
        "equal": gap <= TOLERANCE[asked.device] and max(gaps) <= 10 * TOLERANCE[asked.device],
        "memory_ratio": plain["loss_mib"] / chunked["loss_mib"],
        "cpu_ratio": plain["cpu_seconds"] / chunked["cpu_seconds"],
    }


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward pass of one loss in this process."""
    # Should memory run out although there was enough, this process goes, and none of those beside it.
    Path("/proc/self/oom_score_adj").write_text("1000")
    hidden_NH, weight_VH, supervision = inputs(asked)
    losses: dict[str, Callable[[Tensor, Tensor, Supervision], Tensor]] = {"chunked": chunked, "plain": plain}
    loss = losses[asked.only]
    warm = slice(0, 64)
    loss(hidden_NH[warm], weight_VH, supervision[warm]).backward()
    seconds: list[Spent] = []
    if asked.device == "cuda":
        hidden_NH.grad = weight_VH.grad = None
        torch.cuda.reset_peak_memory_stats()
    before = peak_mib(asked.device) if asked.device == "cpu" else torch.cuda.memory_allocated() / MIB
    for _ in range(asked.repeats):
        hidden_NH.grad = weight_VH.grad = None
        started = Spent.now()
        value = loss(hidden_NH, weight_VH, supervision)
        value.backward()
        seconds.append(started.since())
    assert hidden_NH.grad is not None
    assert weight_VH.grad is not None
    return {
        "loss": value.item(),
        "gradient_norms": [hidden_NH.grad.norm().item(), weight_VH.grad.norm().item()],
        **medians(seconds),
        "peak_mib": peak_mib(asked.device),
        "loss_mib": peak_mib(asked.device) - before,
        "threads": torch.get_num_threads(),
    }


def chunked(hidden_NH: Tensor, weight_VH: Tensor, supervision: Supervision, chunk_bytes: int | None = None) -> Tensor:
    """As a training computes it."""
    size = {} if chunk_bytes is None else {"chunk_bytes": chunk_bytes}
    return chunked_loss(hidden_NH, Head(weight_VH), supervision, forward_kl_bucket, **size).mean_over(len(supervision))


def plain(hidden_NH: Tensor, weight_VH: Tensor, supervision: Supervision) -> Tensor:
    """As a few lines of torch compute it: logits, log-softmax, gather. Logits are freed as soon as they can be."""
    logprobs_NV = (hidden_NH @ weight_VH.T).float().log_softmax(-1)
    topk_NK = logprobs_NV.gather(-1, supervision.candidates)
    tail_N = (-topk_NK.logsumexp(-1).expm1()).log()
    student = Logprobs(topk_NK, tail_N, target_N=tail_N)  # nobody asks for the target's
    return forward_kl_bucket(student, supervision).mean_over(len(supervision))


def inputs(asked: argparse.Namespace) -> tuple[Tensor, Tensor, Supervision]:
    """Hidden states, head and teacher, the same for both. No [N, V] tensor is made here: it would be the peak."""
    draw = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(asked.tokens, asked.hidden, generator=draw)
    weight_VH = torch.randn(asked.vocabulary, asked.hidden, generator=draw) / asked.hidden**0.5
    first_N = torch.randint(asked.vocabulary, (asked.tokens,), generator=draw)
    apart = asked.vocabulary // asked.k  # so that the candidates of a position are K different ones
    ids_NK = (first_N[:, None] + apart * torch.arange(asked.k)) % asked.vocabulary
    classes = (3 * torch.randn(asked.tokens, asked.k + 1, generator=draw)).log_softmax(-1)
    teacher = TopK(ids_NK, classes[:, :-1].contiguous(), classes[:, -1].contiguous(), classes[:, 0].contiguous())
    dtype = torch.float32 if asked.device == "cpu" else torch.bfloat16
    hidden_NH, weight_VH = (each.to(asked.device, dtype).requires_grad_() for each in (hidden_NH, weight_VH))
    return hidden_NH, weight_VH, Supervision(ids_NK[:, 0].contiguous(), teacher).to(asked.device)


def buffers(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and memory of the chunked loss by the size of its logits buffer."""
    hidden_NH, weight_VH, supervision = inputs(asked)
    found = []
    for size in BUFFERS_MIB:
        seconds = []
        for turn in range(asked.repeats + 2):
            hidden_NH.grad = weight_VH.grad = None
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated() / MIB
            started = Spent.now()
            chunked(hidden_NH, weight_VH, supervision, size * MIB).backward()
            spent = started.since()
            if turn >= 2:
                seconds.append(spent)
        found.append({"buffer_mib": size, "loss_mib": peak_mib("cuda") - held, **medians(seconds)})
    return found


def plain_bytes(tokens: int, vocabulary: int) -> int:
    """What the plain loss holds at its worst: three float32 [N, V] tensors (the logprobs, and the gradients by them and
    by the logits), and 2 GiB for the rest of the process.
    """
    return 3 * 4 * tokens * vocabulary + 2 * 2**30


# --- 2. A step ---------------------------------------------------------------------------------------------------

ROWS, LENGTH, ASKED = 8, 128, 32
"""Of a shard: rows, tokens of each, tokens of its prompt."""


@dataclass(frozen=True)
class Size:
    """A student and its micro batch. Without tied embeddings, which Llama has not by default."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    rows: int = ROWS
    length: int = LENGTH
    asked: int = ASKED


STUDENTS = {
    "cpu": Size(256, 768, 6, 8, 4, 32_000),
    "cuda": Size(896, 4864, 24, 14, 2, 151_936, rows=16, length=1024, asked=256),
}


def steps(count: int, k: int, size: Size, device: str) -> dict[str, Any]:
    """Optimizer steps with either loss in turn, rows read back from a shard as a training reads them."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.keys,
        max_position_embeddings=size.length,
    )
    model = transformers.LlamaForCausalLM(config).to(device)
    model.set_attn_implementation(attention.install())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = read_shard(shard_bytes(ShardMeta(split="train", index=0, teacher="t", k=k), answers(size, k)))[1]
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"ForwardKL": (forward_kl_bucket, True), "CrossEntropy": (cross_entropy, False)}
        makers = {
            name: (Distiller(model, loss, size.vocabulary), Examples.write(Path(folder) / name, rows, signals=signals))
            for name, (loss, signals) in kinds.items()
        }
        seconds: dict[str, list[Spent]] = {name: [] for name in makers}
        for _ in range(count + 3):
            for name, (distiller, examples) in makers.items():
                started = Spent.now()
                batch = pack([examples[row] for row in range(size.rows)]).to(device)
                with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                    total, _ = distiller(batch)
                (total / len(batch.supervision)).backward()
                optimizer.step()
                optimizer.zero_grad()
                seconds[name].append(started.since())
    found = {name: medians(times[3:]) for name, times in seconds.items()}  # the first three warm up
    return {
        "model": {
            "parameters": model.num_parameters(),
            **{name: config.to_dict()[name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")},
        },
        "rows": size.rows,
        "tokens_a_row": size.length,
        "targets_a_row": size.length - size.asked,
        "k": k,
        "steps": count,
        **found,
        "ratio": found["ForwardKL"]["seconds"] / found["CrossEntropy"]["seconds"],
        "cpu_ratio": found["ForwardKL"]["cpu_seconds"] / found["CrossEntropy"]["cpu_seconds"],
    }


def answers(size: Size, k: int) -> list[AnswerRow]:
    """Rows as Generate stores them, with candidates that are not alike: the worst that a compressor can meet."""
    draw = np.random.default_rng(0)
    return [_answer(number, size, k, draw) for number in range(size.rows)]


def _answer(number: int, size: Size, k: int, draw: np.random.Generator) -> AnswerRow:
    targets, vocabulary = size.length - size.asked, size.vocabulary
    apart = vocabulary // k  # so that the candidates of a position are K different ones
    ids_NK = draw.integers(apart, size=(targets, k)) + apart * draw.permuted(
        np.tile(np.arange(k), (targets, 1)), axis=1
    )
    ids_NK = ids_NK.astype(np.int32)
    logits = np.sort(3 * draw.standard_normal((targets, k + 1)), axis=-1)[:, ::-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    signal = Signal(
        ids_NK,
        logprobs[:, :k].astype(np.float16),
        logprobs[:, k].astype(np.float32),
        logprobs[:, 0].astype(np.float32),
    )
    prompt = draw.integers(vocabulary, size=size.asked)
    text = " ".join(f"word{token}" for token in ids_NK[:, 0] % 1000)
    return AnswerRow(
        row_id=f"{number:064x}",
        sample=0,
        split="train",
        label="",
        messages=json.dumps([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]),
        text=text,
        finish_reason="stop",
        teacher="t",
        input_ids=np.concatenate([prompt, ids_NK[:, 0]]).astype(np.int32),
        target_mask=np.arange(size.length) >= size.asked,
        signal=signal,
    )


# --- What it was measured on, and the table ----------------------------------------------------------------------


@dataclass(frozen=True)
class Spent:
    """Seconds of the clock, and of all threads of this process: the second hardly sees what else a machine does."""

    clock: float
    cpu: float

    @staticmethod
    def now() -> Spent:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return Spent(time.perf_counter(), time.process_time())

    def since(self) -> Spent:
        now = Spent.now()
        return Spent(now.clock - self.clock, now.cpu - self.cpu)


def medians(spent: list[Spent]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(each.clock for each in spent),
        "cpu_seconds": statistics.median(each.cpu for each in spent),
        "all_seconds": [each.clock for each in spent],
    }


def peak_mib(device: str) -> float:
    """The most memory that this process ever held; on a GPU since it was last asked to forget."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def available_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def machine(device: str) -> dict[str, Any]:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "chunk_mib": CHUNK_BYTES[device] / MIB,
    }


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    machine, loss, step = (found[name] for name in ("machine", "loss", "step"))
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}\n")
    print("ForwardKL of {tokens} tokens x vocabulary {vocabulary}, K={k}, hidden size {hidden}".format(**loss))
    print(f"{'':10}{'peak of the process':>22}{'of the loss alone':>20}{'clock':>10}{'CPU':>10}{'loss':>14}")
    for name in ("chunked", "plain"):
        row = loss[name]
        memory = f"{row['peak_mib']:>18,.0f} MiB{row['loss_mib']:>16,.0f} MiB"
        print(f"{name:10}{memory}{row['seconds']:>8.3f} s{row['cpu_seconds']:>8.3f} s{row['loss']:>14.7f}")
    ratios = f"{'':22}{loss['memory_ratio']:>18.1f} x{'':10}{loss['cpu_ratio']:>8.2f} x"
    print(f"{'plain is':10}{ratios}{loss['relative_difference']:>8.1e} apart\n")
    for row in found.get("buffers", []):
        print(f"a buffer of {row['buffer_mib']:>5} MiB{row['loss_mib']:>10,.0f} MiB{row['seconds'] * 1000:>8.1f} ms")
    size = f"{step['model']['parameters'] / 1e6:.0f} M parameters"
    print(
        f"A step of a Llama of {size}, {step['rows']} rows of {step['tokens_a_row']} tokens, medians of {step['steps']}"
    )
    for name in ("ForwardKL", "CrossEntropy"):
        row = step[name]
        print(f"{name:14}{row['seconds'] * 1000:>8.0f} ms by the clock{row['cpu_seconds'] * 1000:>8.0f} ms of CPU")
    print(f"{'ratio':14}{step['ratio']:>8.2f}{'':16}{step['cpu_ratio']:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())

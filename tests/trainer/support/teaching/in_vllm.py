"""Holds a teacher in vLLM, asks it, and writes what it answered: in a process of its own, which vLLM changes for good
(its threads, its random numbers, its memory binding).

Standard input: pickled (folder, samplings, requests, precision). The output file that the argument names: the outcomes
of each sampling.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from kubedistill_api.teachers import Batch
from kubedistill_trainer.teachers.protocol import ListOfWork, Outcome, Request, Sampling
from kubedistill_trainer.teachers.vllm import VllmTeacher

AT_ONCE = 3


def ask(
    folder: Path, out: Path, samplings: Sequence[Sampling], requests: Sequence[Request], precision: str = "FP32"
) -> list[dict[str, Outcome]]:
    """The outcomes of the same requests by each way of sampling, from one engine."""
    command = [sys.executable, __file__, str(out)]
    asked = (folder, list(samplings), list(requests), precision)
    subprocess.run(command, input=pickle.dumps(asked), check=True)
    found: list[dict[str, Outcome]] = pickle.loads(out.read_bytes())
    return found


def main() -> None:
    folder, samplings, requests, precision = pickle.load(sys.stdin.buffer)
    batch = Batch.model_validate({"engine": "VLLM", "gpus": 0, "batchSize": AT_ONCE, "precision": precision})
    first = VllmTeacher.load(folder, batch, max(samplings, key=lambda sampling: sampling.k))
    outcomes = []
    for sampling in samplings:
        work = ListOfWork(list(requests))
        teacher = VllmTeacher(first._engine, first._tokenizer, first.ends, sampling, AT_ONCE)
        teacher.answer(work, threading.Event())
        outcomes.append(work.outcomes)
    first.close()
    Path(sys.argv[1]).write_bytes(pickle.dumps(outcomes))


if __name__ == "__main__":
    main()

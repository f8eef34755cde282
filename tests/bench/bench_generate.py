"""Asking a teacher, measured in one run with a real vLLM: `make bench`.

1. Our client against vLLM's own benchmark client (`vllm bench serve`): the same server, prompts, answers and number of
   requests under way, text alone.
2. K = 32: the engine in the stage's process (`batch: {engine: VLLM}`) against the server, which is asked twice for each
   answer and says its scores in JSON.

Both sides of each take turns, so that they meet the same machine.

The teacher is SmolLM2-135M-Instruct (`examples/models/fetch_smollm2.py`) in float32, on CPUs. Prints a table and writes
a JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from measuring import PROMPTS, SMOLLM2, Figure, Options, report

from kubedistill_api.teachers import Batch
from kubedistill_trainer.models import end_ids, load_tokenizer
from kubedistill_trainer.teachers.http import HttpTeacher
from kubedistill_trainer.teachers.protocol import Answered, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.servers import Server

K = 32
TURNS = 3
START_SECONDS = 600
SAID = "said: "
"""Begins a line of the engine's process that is meant for us."""
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""`vllm bench serve`. The command itself wants the metadata of a package named vllm; the build for CPUs has another."""
FLAGS = ["--dtype=float32", "--enforce-eager", "--max-model-len=1024", "--generation-config=vllm"]


def main() -> int:
    asked = _asked()
    if asked.only:
        answer_in_turns(asked)
        return 0
    with report(asked, show, figures) as found, tempfile.TemporaryDirectory() as folder:
        found |= {"rows": asked.rows, "tokens": asked.tokens, "concurrency": asked.concurrency, "k": K}
        with server(asked, Path(folder)) as url:
            over_http(asked, url, 0)  # warms the server
            found["text"] = in_turns(
                asked.turns, lambda: over_http(asked, url, 0), lambda: vllms_own(asked, url, Path(folder))
            )
            with engine(asked) as in_process:
                found["scores"] = in_turns(asked.turns, in_process, lambda: over_http(asked, url, K))
    return 0


def _asked() -> argparse.Namespace:
    options = Options(__doc__, "bench-generate.json")
    options.number("rows", 64, "prompts")
    options.number("tokens", 64, "of an answer, at most")
    options.number("concurrency", 16, "requests under way")
    options.number("turns", TURNS, "of both sides")
    options.path("model", SMOLLM2, "the teacher's folder")
    options.part("engine")
    return options.parse_args()


def in_turns(turns: int, ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, Any]:
    """Medians of the tokens a second of both sides, one turn of each after the other, and their ratio."""
    found = [(ours(), theirs()) for _ in range(turns)]
    one, other = (statistics.median(side) for side in zip(*found, strict=True))
    return {"ours": one, "theirs": other, "ratio": one / other, "all": found}


def figures(found: dict[str, Any]) -> list[Figure]:
    """What asking a teacher promises."""
    text, scores = found["text"], found["scores"]
    return [
        Figure("tokens a second, our client / vllm bench serve", text["ratio"], "x", at_least=0.9),
        Figure("tokens a second, our client", text["ours"], "/s"),
        Figure(f"tokens a second at K = {K}, in process / served", scores["ratio"], "x", at_least=2),
        Figure(f"tokens a second at K = {K}, in process", scores["ours"], "/s"),
    ]


@contextmanager
def server(asked: argparse.Namespace, folder: Path) -> Iterator[str]:
    """A vLLM of our own, ready to answer; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={asked.model}", f"--port={port}"]
    command += [f"--max-num-seqs={asked.concurrency}", f"--max-logprobs={K}", "--served-model-name=teacher", *FLAGS]
    told = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **told}, stdout=file, stderr=file)
        try:
            _wait_until_it_answers(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"vLLM did not start:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.5)


def requests_of(asked: argparse.Namespace) -> list[Request]:
    """The first prompts of the example data, as chats."""
    lines = PROMPTS.read_text().splitlines()[: asked.rows]
    rows = [json.loads(line) for line in lines]
    chats = [row.get("messages") or [{"role": "user", "content": row["prompt"]}] for row in rows]
    return [Request(str(number), 0, 0, [chat[0]], seed=number) for number, chat in enumerate(chats)]


def over_http(asked: argparse.Namespace, url: str, k: int) -> float:
    """Tokens a second that our client gets."""
    tokenizer = load_tokenizer(asked.model)
    place = Server(f"{url}/v1", "teacher", token_ids=True, concurrency=asked.concurrency)
    sampling = Sampling(temperature=0, max_tokens=asked.tokens, k=k)
    return rate(HttpTeacher(place, sampling, tokenizer, end_ids(tokenizer, asked.model)), requests_of(asked))


@contextmanager
def engine(asked: argparse.Namespace) -> Iterator[Callable[[], float]]:
    """The engine in a process of its own, ready; each call asks it all prompts and gives tokens a second.

    Between two turns it waits for a line: it computes nothing while the others do.
    """
    flags = [f"--{name}={getattr(asked, name)}" for name in ("rows", "tokens", "concurrency", "model")]
    command = [sys.executable, __file__, "--only=engine", *flags]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    questions, answers = process.stdin, process.stdout

    def heard() -> str:
        for line in answers:
            if line.startswith(SAID):  # else it is vLLM's
                return line.removeprefix(SAID)
        raise RuntimeError(f"the engine ended, exit code {process.wait()}")

    def ask() -> float:
        questions.write("\n")
        questions.flush()
        return float(heard())

    try:
        heard()
        yield ask
    finally:
        with suppress(BrokenPipeError):
            questions.close()
        process.wait(60)
        answers.close()


def answer_in_turns(asked: argparse.Namespace) -> None:
    """The other end of `engine`: says that it is ready, and then tokens a second, with scores, for each line."""
    from kubedistill_trainer.teachers.vllm import VllmTeacher

    batch = {"engine": "VLLM", "gpus": 0, "batchSize": asked.concurrency, "precision": "FP32"}
    sampling = Sampling(temperature=0, max_tokens=asked.tokens, k=K)
    teacher = VllmTeacher.load(asked.model, Batch.model_validate(batch), sampling)
    rate(teacher, requests_of(asked)[: asked.concurrency])  # warms it
    print(f"{SAID}ready", flush=True)
    for _ in sys.stdin:
        print(f"{SAID}{rate(teacher, requests_of(asked))}", flush=True)
    teacher.close()


def rate(teacher: Any, requests: list[Request]) -> float:
    """Tokens a second that a teacher answers."""
    work = ListOfWork(requests)
    started = time.perf_counter()
    teacher.answer(work, threading.Event())
    spent = time.perf_counter() - started
    answers = [outcome for outcome in work.outcomes.values() if isinstance(outcome, Answered)]
    assert len(answers) == len(requests), work.outcomes
    return sum(len(answer.token_ids or ()) for answer in answers) / spent


def vllms_own(asked: argparse.Namespace, url: str, folder: Path) -> float:
    """Tokens a second by vLLM's benchmark client, with the same prompts."""
    tokenizer = load_tokenizer(asked.model)
    data = folder / "prompts.jsonl"
    with data.open("w") as file:
        for request in requests_of(asked):
            text = tokenizer.apply_chat_template(request.messages, add_generation_prompt=True, tokenize=False)
            file.write(json.dumps({"prompt": text}) + "\n")
    result = folder / "result.json"
    command = [sys.executable, "-c", BENCH_SERVE, "--backend=openai"]
    command += [f"--base-url={url}", "--model=teacher", f"--tokenizer={asked.model}", "--dataset-name=custom"]
    command += [f"--dataset-path={data}", f"--custom-output-len={asked.tokens}", "--skip-chat-template"]
    command += [f"--num-prompts={asked.rows}", f"--max-concurrency={asked.concurrency}", "--temperature=0"]
    command += ["--save-result", f"--result-dir={folder}", f"--result-filename={result.name}", "--disable-tqdm"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(json.loads(result.read_text())["output_throughput"])


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    print(
        "{rows} prompts, answers of at most {tokens} tokens, {concurrency} under way; tokens a second".format(**found)
    )
    sides = {
        "text": ("our client, text", "vllm bench serve, text"),
        "scores": (f"engine in process, K = {K}", f"our client, K = {K}"),
    }
    for what, (ours, theirs) in sides.items():
        one = found[what]
        print(f"\n{ours:36}{one['ours']:>8.1f}\n{theirs:36}{one['theirs']:>8.1f}\n{'ratio':36}{one['ratio']:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())

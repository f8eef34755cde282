"""Asking a teacher, measured in one run with a real vLLM: `make bench`.

1. Our client against vLLM's own benchmark client (`vllm bench serve`): the same server, prompts, answers and number of
   requests under way, text alone. They take turns, so that both meet the same machine.
2. K = 32: the engine in the stage's process (`batch: {engine: VLLM}`) against the server, which is asked twice for each
   answer and says its scores in JSON.

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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from bench_loss import machine

from kubedistill_api.teachers import Batch
from kubedistill_trainer.models import end_ids, load_tokenizer
from kubedistill_trainer.teachers.http import HttpTeacher
from kubedistill_trainer.teachers.protocol import Answered, ListOfWork, Request, Sampling
from kubedistill_trainer.teachers.servers import Server

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / ".kubedistill" / "models" / "SmolLM2-135M-Instruct"
PROMPTS = REPOSITORY / "examples" / "data" / "support-train.jsonl"
K = 32
TURNS = 3
START_SECONDS = 600
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
        print(json.dumps(in_process(asked)))
        return 0
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join(["python", "tests/bench/bench_generate.py", *sys.argv[1:]]),
        "machine": machine("cpu"),
        "load_average_before": list(os.getloadavg()),
        "rows": asked.rows,
        "tokens": asked.tokens,
        "concurrency": asked.concurrency,
        "k": K,
    }
    with tempfile.TemporaryDirectory() as folder, server(asked, Path(folder)) as url:
        over_http(asked, url, 0)  # warms the server
        turns = [(over_http(asked, url, 0), vllms_own(asked, url, Path(folder))) for _ in range(asked.turns)]
        found["client"] = {
            "ours": statistics.median(ours for ours, _ in turns),
            "vllm_bench_serve": statistics.median(theirs for _, theirs in turns),
            "all": turns,
        }
        found["http_topk"] = over_http(asked, url, K)
    flags = [f"--{name}={getattr(asked, name)}" for name in ("rows", "tokens", "concurrency", "model")]
    done = subprocess.run([sys.executable, __file__, "--only", *flags], check=True, stdout=subprocess.PIPE, text=True)
    found["engine_topk"] = json.loads(done.stdout.splitlines()[-1])
    found["client"]["ratio"] = found["client"]["ours"] / found["client"]["vllm_bench_serve"]
    found["topk_ratio"] = found["engine_topk"] / found["http_topk"]
    found["load_average_after"] = list(os.getloadavg())
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    asked.output.write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    print(f"\n{asked.output}")
    return 0


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64, help="prompts (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=TURNS, help="of both clients (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=MODEL, help="the teacher's folder (default: SmolLM2)")
    parser.add_argument("--output", type=Path, default=Path("build/bench-generate.json"), help="default: %(default)s")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


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
    return _rate(HttpTeacher(place, sampling, tokenizer, end_ids(tokenizer, asked.model)), requests_of(asked))


def in_process(asked: argparse.Namespace) -> float:
    """Tokens a second of the engine in this process, with scores."""
    from kubedistill_trainer.teachers.vllm import VllmTeacher

    batch = {"engine": "VLLM", "gpus": 0, "batchSize": asked.concurrency, "precision": "FP32"}
    sampling = Sampling(temperature=0, max_tokens=asked.tokens, k=K)
    teacher = VllmTeacher.load(asked.model, Batch.model_validate(batch), sampling)
    _rate(teacher, requests_of(asked)[: asked.concurrency])  # warms it
    rate = _rate(teacher, requests_of(asked))
    teacher.close()
    return rate


def _rate(teacher: Any, requests: list[Request]) -> float:
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
    client = found["client"]
    print(
        "{rows} prompts, answers of at most {tokens} tokens, {concurrency} under way; tokens a second\n".format(**found)
    )
    print(f"{'our client, text':36}{client['ours']:>8.1f}")
    print(f"{'vllm bench serve, text':36}{client['vllm_bench_serve']:>8.1f}")
    print(f"{'ratio':36}{client['ratio']:>8.2f}\n")
    print(f"{f'our client, K = {K}':36}{found['http_topk']:>8.1f}")
    print(f"{f'engine in process, K = {K}':36}{found['engine_topk']:>8.1f}")
    print(f"{'ratio':36}{found['topk_ratio']:>8.2f}")


if __name__ == "__main__":
    sys.exit(main())

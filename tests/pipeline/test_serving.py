"""A job whose teacher is served: the local runner starts a real vLLM, and its scores are those of the model itself.

Then the same token ids by three ways, in two precisions: vLLM over HTTP, vLLM in process, and Transformers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from teaching.in_vllm import ask
from teaching.models import broad_llama, byte_tokenizer
from teaching.scores import ROUNDED, apart, check_candidates, in_common
from transformers import AutoModelForCausalLM

from kubedistill_api.generation import Generation
from kubedistill_api.teachers import Serving, Teacher
from kubedistill_operator.manifests.teacher import vllm_arguments
from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.models import load_tokenizer
from kubedistill_trainer.store.shards import AnswerRow, Signal, read_shard
from kubedistill_trainer.teachers.http import HttpTeacher
from kubedistill_trainer.teachers.protocol import Answered, ListOfWork, Outcome, Request, Sampling
from kubedistill_trainer.teachers.servers import Server
from kubedistill_trainer.teachers.transformers import TransformersTeacher

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

SERVING = {
    "gpusPerNode": 0,
    "maxModelLen": 512,
    "extraArgs": ["--enforce-eager", "--dtype=float32", "--max-num-seqs=16", "--max-num-batched-tokens=8192"],
    "startupTimeoutSeconds": 900,
}
STORED = 0.02
"""Another order of the same sums, and half precision of the store where it is exact."""
K = 8
GREEDY = Sampling(temperature=0, max_tokens=32, k=K)
BF16_MOST, BF16_MEAN = 0.125, 0.01
"""In nats, or of a logprob beyond one nat; measured 0.030 and 0.0034. Of a logit of 16, bfloat16's last bit is 1/16."""


@pytest.fixture(scope="module")
def served(make_job: Callable[[str], Any]) -> Any:
    """The small job, with the same teacher behind vLLM."""
    job = make_job("served")
    document = yaml.safe_load((job.folder / "job.yaml").read_text())
    teacher = document["spec"]["teachers"][0]
    del teacher["batch"]
    teacher["serving"] = SERVING
    (job.folder / "job.yaml").write_text(yaml.safe_dump(document))
    job.run()
    return job


def answers(job: Any) -> dict[str, AnswerRow]:
    """The accepted answers by their prompts."""
    rows = [row for path in job.shards() for row in read_shard(path.read_bytes())[1]]
    return {f"{row.split}/{row.row_id}": row for row in rows}


def test_the_server_was_vllm_and_is_gone(served: Any) -> None:
    assert "vllm" in served.log("teacher").lower()
    assert served.processes() == []


def test_a_model_comes_out(served: Any) -> None:
    assert AutoModelForCausalLM.from_pretrained(served.output).config.num_hidden_layers == 2


def test_the_stored_scores_are_those_of_the_model(served: Any, toy: Path) -> None:
    """Each candidate's logprob is the model's own of this id, at this place."""
    model = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32).eval()
    for row in answers(served).values():
        ids_T = torch.tensor(row.input_ids).long()
        at_N = torch.tensor(row.target_mask).nonzero().flatten()
        with torch.no_grad():
            logits_NV = model(ids_T[None]).logits[0, at_N - 1]
        truth = top_k(logits_NV, ids_T[at_N], K)
        assert row.signal is not None
        check_candidates(row.signal, logits_NV.log_softmax(-1), STORED, ROUNDED)
        np.testing.assert_allclose(row.signal.tail_logprob_N, truth.tail_N.numpy(), atol=5 * STORED)
        np.testing.assert_allclose(row.signal.target_logprob_N, truth.target_N.numpy(), atol=STORED)


def test_both_engines_give_the_same_greedy_answers(served: Any, whole: Any) -> None:
    """All but a few: where two tokens are alike to the last bit, either may come first."""
    here, there = answers(served), answers(whole)
    assert set(here) == set(there)
    same = [np.array_equal(here[key].input_ids, there[key].input_ids) for key in here]
    assert np.mean(same) >= 0.9


# The same token ids by three ways

Scored = dict[str, tuple[tuple[int, ...], Signal]]
"""An answer's tokens and their scores, by its prompt."""


@pytest.fixture(scope="module")
def requests(whole: Any) -> list[Request]:
    """The prompts of the job."""
    chats = {key: json.loads(row.messages)[:-1] for key, row in sorted(answers(whole).items())}
    return [Request(key, 0, 0, chat, seed=number) for number, (key, chat) in enumerate(chats.items())]


def test_three_ways_give_the_same_scores(
    served: Any, whole: Any, toy: Path, requests: list[Request], tmp_path: Path
) -> None:
    """From the shards of the two jobs, and from the engine itself; all in float32."""
    (outcomes,) = ask(toy, tmp_path / "outcomes", [GREEDY], requests)
    ways = {"HTTP": of_rows(served), "vLLM": of_outcomes(outcomes), "Transformers": of_rows(whole)}
    far, positions, same = compared(ways)
    assert far.max() <= 2 * ROUNDED + 0.005
    assert same >= 0.8 * len(requests)
    assert positions > 1.5 * len(requests), "an answer and its end; this teacher is terse"


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that seldom finds an end: its answers are as long as they may be."""
    folder = tmp_path_factory.mktemp("talker")
    tokenizer = byte_tokenizer()
    broad_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_three_ways_give_the_same_scores_in_bfloat16(talker: Path, tmp_path: Path) -> None:
    """As long as all write the same: of tokens that are alike to rounding, either may be drawn."""
    texts = ["Hi", "Why is the sky blue?", "Name three rivers.", "?", "How? " * 20, "Write a poem about rain."]
    chats: list[list[dict[str, Any]]] = [[{"role": "user", "content": text}] for text in texts]
    requests = [Request(str(n), 0, 0, chat, seed=n) for n, chat in enumerate(chats)]
    engine = TransformersTeacher.load(talker, "BF16", GREEDY, batch_size=4)
    with vllm_server(talker, tmp_path / "server.log") as url:
        client = HttpTeacher(Server(url, "teacher", token_ids=True), GREEDY, load_tokenizer(talker), engine.ends)
        served, here = asked(client, requests), asked(engine, requests)
    (outcomes,) = ask(talker, tmp_path / "outcomes", [GREEDY], requests, "BF16")
    ways = {"HTTP": served, "vLLM": of_outcomes(outcomes), "Transformers": here}
    assert set(served) == set(here) == set(ways["vLLM"]) == {str(n) for n in range(len(texts))}
    far, positions, _ = compared(ways)
    assert far.max() <= BF16_MOST
    assert far.mean() <= BF16_MEAN
    assert positions >= 15 * len(requests)


def compared(ways: Mapping[str, Scored]) -> tuple[npt.NDArray[np.float64], int, int]:
    """How far any two of the ways are apart, for as long as all of them wrote the same tokens; how many tokens these
    are, and how many whole answers.

    The token at which they part was drawn from the same context, so its candidates are compared as well.
    """
    far: list[float] = []
    same = positions = 0
    first = next(iter(ways.values()))
    for key in first:
        tokens = [scored[key][0] for scored in ways.values()]
        together = in_common(*tokens)
        same += all(each == tokens[0] for each in tokens)
        positions += together
        for one, other in combinations(ways.values(), 2):
            far += apart(one[key][1], other[key][1], together)
    return np.array(far), positions, same


def of_rows(job: Any) -> Scored:
    return {
        key: (tuple(row.input_ids[row.target_mask].tolist()), row.signal)
        for key, row in answers(job).items()
        if row.signal is not None
    }


def of_outcomes(outcomes: Mapping[str, Outcome]) -> Scored:
    return {
        key.removesuffix("/0/0"): (outcome.token_ids, outcome.signal)
        for key, outcome in outcomes.items()
        if isinstance(outcome, Answered) and outcome.token_ids is not None and outcome.signal is not None
    }


def asked(teacher: HttpTeacher | TransformersTeacher, requests: list[Request]) -> Scored:
    work = ListOfWork(list(requests))
    teacher.answer(work, threading.Event())
    return of_outcomes(work.outcomes)


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """vLLM with the command line of the operator, in bfloat16; its URL, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [*SERVING["extraArgs"], "--dtype=bfloat16", f"--port={port}"]
    serving = Serving.model_validate({**SERVING, "extraArgs": flags})
    teacher = Teacher.model_validate({"name": "toy", "model": {"uri": model.as_uri()}, "serving": serving})
    arguments = vllm_arguments(teacher, serving, Generation(top_k=K))
    told = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**os.environ, **told}, stdout=file, stderr=file)
    try:
        end = time.monotonic() + float(SERVING["startupTimeoutSeconds"])
        while not is_healthy(port):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def is_healthy(port: int) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).is_success
    return False

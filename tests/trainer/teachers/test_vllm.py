"""A teacher in vLLM: what it is told, what it says of its failures, and that its scores are those of the model."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teaching.in_vllm import ask
from teaching.scores import check_candidates

from kubedistill_api.exits import Exit
from kubedistill_api.teachers import Batch
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.store.shards import Signal
from kubedistill_trainer.teachers.logprobs import of_vocabulary, signal_of
from kubedistill_trainer.teachers.opening import check_engine
from kubedistill_trainer.teachers.protocol import Answered, Failed, ListOfWork, Outcome, Request, Sampling, encode
from kubedistill_trainer.teachers.transformers import TransformersTeacher
from kubedistill_trainer.teachers.vllm import ENVIRONMENT, devices_differing, engine_arguments, failure_of

K, LIMIT = 8, 40
GREEDY = Sampling(temperature=0, max_tokens=LIMIT, k=K)
DRAWN = Sampling(temperature=0.7, top_p=0.9, max_tokens=LIMIT, k=K)
TEXT = Sampling(temperature=0, max_tokens=LIMIT)
ROUNDED = 0.02
"""Half precision of the store at a logprob of -20."""


def batch(**more: Any) -> Batch:
    return Batch.model_validate({"engine": "VLLM", **more})


def test_the_engine_is_told_what_the_spec_says() -> None:
    told = engine_arguments(Path("/m"), batch(gpus=4, batchSize=256, precision="FP16"), Sampling(k=32))
    assert (told["tensor_parallel_size"], told["max_num_seqs"], told["dtype"]) == (4, 256, "float16")
    assert (told["max_logprobs"], told["logprobs_mode"], told["generation_config"]) == (32, "raw_logprobs", "vllm")
    assert "enforce_eager" not in told


def test_without_a_gpu_no_prompt_is_read_in_parts() -> None:
    told = engine_arguments(Path("/m"), batch(gpus=0), Sampling())
    assert told["tensor_parallel_size"] == 1
    assert told["enable_chunked_prefill"] is False


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


FAILURES: dict[str, tuple[Exception, int, Exit, str]] = {
    "weights": (OutOfMemoryError("CUDA out of memory. Tried to"), 1, Exit.DEVICE_OUT_OF_MEMORY, "raise batch.gpus"),
    "of-a-rank": (RuntimeError("worker died: CUDA out of memory"), 8, Exit.DEVICE_OUT_OF_MEMORY, "does not fit 8 GPUs"),
    "cache": (
        ValueError("No available memory for the cache blocks."),
        1,
        Exit.DEVICE_OUT_OF_MEMORY,
        "raise batch.gpus",
    ),
    "of-a-cpu": (ValueError("less than requested: Cannot auto-fit"), 0, Exit.DEVICE_OUT_OF_MEMORY, "stage Generate"),
    "weights-missing": (RuntimeError("Cannot find any model weights with `/m`"), 1, Exit.NOT_FOUND, "cannot read"),
    "config-missing": (OSError("/m has no config.json"), 1, Exit.NOT_FOUND, "cannot read"),
    "architecture": (ValueError("['X'] are not supported"), 1, Exit.BAD_CONFIGURATION, "write engine: Transformers"),
}


@pytest.mark.parametrize(("error", "gpus", "code", "words"), FAILURES.values(), ids=FAILURES)
def test_an_engine_that_does_not_start_says_what_to_write(error: Exception, gpus: int, code: Exit, words: str) -> None:
    failure = failure_of(error, batch(gpus=gpus))
    assert failure is not None
    assert failure.exit_code == code
    assert words in failure.message


DEVICES: dict[str, tuple[int, bool, int, str]] = {
    "no GPU of a vLLM for GPUs": (0, False, 8, "write gpus: 1, or more"),
    "GPUs of a vLLM for CPUs": (2, True, 8, "write gpus: 0, or change the image"),
    "more than are seen": (8, False, 4, "4 are seen here: write that many"),
}


@pytest.mark.parametrize(("gpus", "on_cpus", "seen", "words"), DEVICES.values(), ids=DEVICES)
def test_devices_that_are_not_there_are_told_with_what_to_write(
    gpus: int, on_cpus: bool, seen: int, words: str
) -> None:
    differing = devices_differing(gpus, on_cpus=on_cpus, seen=seen)
    assert differing is not None
    assert (differing.exit_code, differing.reason) == (Exit.BAD_CONFIGURATION, "DevicesDiffer")
    assert words in differing.message


@pytest.mark.parametrize(("gpus", "on_cpus", "seen"), [(0, True, 0), (0, True, 4), (1, False, 1), (4, False, 8)])
def test_devices_that_are_there_are_taken(gpus: int, on_cpus: bool, seen: int) -> None:
    assert devices_differing(gpus, on_cpus=on_cpus, seen=seen) is None


def test_a_python_without_vllm_is_refused_with_what_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # it sets them itself, and here they are to go again
    monkeypatch.setitem(sys.modules, "vllm", None)  # type: ignore[arg-type] # as Python marks what it lacks
    with pytest.raises(
        BadConfiguration, match=r"trainer-image/vllm\.Dockerfile, named in .*trainerVllm\.image"
    ) as told:
        check_engine(batch(gpus=0))
    assert told.value.reason == "VllmMissing"


def test_a_failure_that_nobody_foresaw_is_told_as_it_is() -> None:
    assert failure_of(RuntimeError("the driver is too old"), batch()) is None


# With a real vLLM


@pytest.fixture(scope="module")
def requests(tiny_tokenizer: Any) -> list[Request]:
    texts = ["Hi", "Why is the sky blue?", "a" * 60, "Name three rivers.", "?", "How?" * 200]
    return [Request(str(i), 0, 0, [{"role": "user", "content": text}], seed=2**40 + i) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def answered(
    broad_folder: Path, requests: list[Request], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Outcome]]:
    """Outcomes of `GREEDY`, `DRAWN` twice and `TEXT`."""
    out = tmp_path_factory.mktemp("vllm") / "outcomes"
    return ask(broad_folder, out, [GREEDY, DRAWN, DRAWN, TEXT], requests)


@pytest.mark.vllm
@pytest.mark.slow
def test_greedy_answers_are_those_of_the_other_engine(
    answered: list[dict[str, Outcome]], broad_model: Any, tiny_tokenizer: Any, requests: list[Request]
) -> None:
    work = ListOfWork(list(requests))
    TransformersTeacher(broad_model, tiny_tokenizer, [0], GREEDY, 3).answer(work, threading.Event())
    for key, theirs in work.outcomes.items():
        ours, text = answered[0][key], answered[3][key]
        if isinstance(theirs, Failed):
            assert ours == text == theirs  # the prompt that is too long, in the same words
            continue
        assert isinstance(ours, Answered)
        assert isinstance(text, Answered)
        assert (ours.text, ours.token_ids, ours.complete) == (theirs.text, theirs.token_ids, theirs.complete)
        assert (text.text, text.token_ids, text.signal) == (theirs.text, theirs.token_ids, None)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("way", [0, 1], ids=["greedy", "drawn, at another temperature and cut"])
def test_the_scores_are_those_of_the_model_at_temperature_one(
    answered: list[dict[str, Outcome]], broad_model: Any, tiny_tokenizer: Any, requests: list[Request], way: int
) -> None:
    compared = padded = 0
    for request in requests:
        outcome = answered[way][request.key]
        if not isinstance(outcome, Answered):
            continue
        assert outcome.token_ids is not None
        assert outcome.signal is not None
        prompt, answer_N = encode(tiny_tokenizer, request), torch.tensor(outcome.token_ids)
        with torch.no_grad():
            logits_NV = broad_model(torch.tensor([[*prompt, *outcome.token_ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs_NV = logits_NV.log_softmax(-1)
        truth = truth_of(logprobs_NV, answer_N.tolist(), len(tiny_tokenizer))
        check_candidates(outcome.signal, without_padding(logprobs_NV, len(tiny_tokenizer)), ROUNDED)
        np.testing.assert_allclose(outcome.signal.tail_logprob_N, truth.tail_logprob_N, atol=5 * ROUNDED)
        np.testing.assert_allclose(outcome.signal.target_logprob_N, truth.target_logprob_N, atol=1e-3)
        compared += len(answer_N)
        padded += int((outcome.signal.topk_ids_NK == -1).sum())
    assert compared > LIMIT
    assert padded, "what pads the vocabulary was among the likeliest"


def without_padding(logprobs_NV: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """The tokens' logprobs after what pads the vocabulary among the K likeliest was left out."""
    best = logprobs_NV.topk(K)
    padding_N = torch.where(best.indices >= vocabulary, best.values.exp(), 0.0).sum(-1)
    return logprobs_NV[:, :vocabulary] - torch.log1p(-padding_N)[:, None]


def truth_of(logprobs_NV: torch.Tensor, written: list[int], vocabulary: int) -> Signal:
    """What a server would say that names the K likeliest, padding and all."""
    named, own = [], []
    for logprobs_V, token in zip(logprobs_NV, written, strict=True):
        best = logprobs_V.topk(K)
        row = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        named.append(of_vocabulary(row, vocabulary))
        own.append(of_vocabulary({**row, token: float(logprobs_V[token])}, vocabulary)[token])
    return signal_of(named, own, K)


@pytest.mark.vllm
@pytest.mark.slow
def test_the_same_seeds_draw_the_same_answers(answered: list[dict[str, Outcome]]) -> None:
    first, second = (
        {key: outcome.token_ids for key, outcome in each.items() if isinstance(outcome, Answered)}
        for each in answered[1:3]
    )
    assert first == second
    assert first != {key: outcome.token_ids for key, outcome in answered[0].items() if isinstance(outcome, Answered)}

"""A job whose teacher is served: the local runner starts a real vLLM, and its scores are those of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.store.shards import AnswerRow, read_shard

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

SERVING = {
    "gpusPerNode": 0,
    "maxModelLen": 512,
    "extraArgs": ["--enforce-eager", "--dtype=float32", "--max-num-seqs=16", "--max-num-batched-tokens=8192"],
    "startupTimeoutSeconds": 900,
}
STORED = 0.02
"""Another order of the same sums, and half precision of the store where it is exact."""
ROUNDED = 1 / 64
"""Of a candidate's logprob, or of a nat: how far the store rounds it (`store/candidates.py`)."""


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
    model = AutoModelForCausalLM.from_pretrained(toy, dtype=torch.float32).eval()
    for row in answers(served).values():
        ids_T = torch.tensor(row.input_ids).long()
        at_N = torch.tensor(row.target_mask).nonzero().flatten()
        with torch.no_grad():
            logits_NV = model(ids_T[None]).logits[0, at_N - 1]
        truth = top_k(logits_NV, ids_T[at_N], 8)
        assert row.signal is not None
        stored_NK = -np.sort(-row.signal.topk_logprobs_NK.astype(np.float32))  # the likeliest first, as the truth is
        moved_NK = np.abs(stored_NK - truth.logprobs_NK.numpy())
        assert (moved_NK <= ROUNDED * np.maximum(1, -truth.logprobs_NK.numpy()) + STORED).all()
        np.testing.assert_allclose(row.signal.tail_logprob_N, truth.tail_N.numpy(), atol=5 * STORED)
        np.testing.assert_allclose(row.signal.target_logprob_N, truth.target_N.numpy(), atol=STORED)


def test_both_engines_give_the_same_greedy_answers(served: Any, whole: Any) -> None:
    """All but a few: where two tokens are alike to the last bit, either may come first."""
    here, there = answers(served), answers(whole)
    assert set(here) == set(there)
    same = [np.array_equal(here[key].input_ids, there[key].input_ids) for key in here]
    assert np.mean(same) >= 0.9

"""A teacher small enough for milliseconds (a Llama with two layers, a tokenizer of bytes), and a bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from teaching.models import broad_llama, byte_tokenizer, llama
from torch import Tensor

from kubedistill_trainer.core.signals import Logprobs, Supervision


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """One token a byte, and two that begin and end a message."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """Three query heads for each key head, six logits more than the tokenizer has tokens."""
    return llama(264, heads=(6, 2), hidden=48, spread=0.4)


PADDING = 24
"""Rows of a model's vocabulary that are no tokens."""


@pytest.fixture(scope="session")
def broad_model(tiny_tokenizer: Any) -> Any:
    """For vLLM. The rows that pad its vocabulary are often the likeliest."""
    model = broad_llama(len(tiny_tokenizer) + PADDING)
    with torch.no_grad():
        model.lm_head.weight[-PADDING:] *= 2
    return model


@pytest.fixture(scope="session")
def broad_folder(broad_model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in a folder."""
    folder = tmp_path_factory.mktemp("broad")
    broad_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder that loads like any other."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def s3_bucket(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a bucket on a real S3 server, which the environment points to."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(endpoint_url=s3_server.endpoint, skip_instance_cache=True).mkdirs("models", exist_ok=True)
    return "s3://models"


@pytest.fixture
def plain_logprobs() -> Callable[[Tensor, Supervision], Logprobs]:
    """The student as a loss sees it, read off a full log-softmax."""

    def of(logits_NV: Tensor, supervision: Supervision) -> Logprobs:
        all_NV = logits_NV.log_softmax(-1)
        ids_NK = supervision.candidates
        absent_NK = ids_NK < 0
        topk_NK = all_NV.gather(-1, ids_NK.clamp(min=0)).masked_fill(absent_NK, -torch.inf)
        inside_NV = torch.zeros_like(all_NV, dtype=torch.bool)
        for row, ids in enumerate(ids_NK.tolist()):
            inside_NV[row, [i for i in ids if i >= 0]] = True
        tail_N = all_NV.masked_fill(inside_NV, -torch.inf).logsumexp(-1)
        return Logprobs(topk_NK, tail_N, all_NV.gather(-1, supervision.target_ids_N[:, None]).squeeze(-1))

    return of

"""The students that the benchmarks train, and rows for them: random weights, random candidates."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from kubedistill_trainer.store.shards import AnswerRow, Signal

ROWS, LENGTH, ASKED = 8, 128, 32
"""Of a shard: rows, tokens of each, tokens of its prompt."""


@dataclass(frozen=True)
class Size:
    """A student and its micro batch. Without tied embeddings, which Llama has not by default."""

    hidden: int
    inner: int
    layers: int
    heads: int
    keys: int
    vocabulary: int
    rows: int = ROWS
    length: int = LENGTH
    asked: int = ASKED


STUDENTS = {
    "cpu": Size(256, 768, 6, 8, 4, 32_000),
    "cuda": Size(896, 4864, 24, 14, 2, 151_936, rows=16, length=1024, asked=256),
}


def student_of(size: Size) -> Any:
    """A Llama with random weights, the same each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.keys,
        max_position_embeddings=size.length,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def answers(size: Size, k: int) -> list[AnswerRow]:
    """Rows as Generate stores them, with candidates that are not alike: the worst that a compressor can meet."""
    draw = np.random.default_rng(0)
    return [_answer(number, size, k, draw) for number in range(size.rows)]


def _answer(number: int, size: Size, k: int, draw: np.random.Generator) -> AnswerRow:
    targets, vocabulary = size.length - size.asked, size.vocabulary
    apart = vocabulary // k  # so that the candidates of a position are K different ones
    ids_NK = draw.integers(apart, size=(targets, k)) + apart * draw.permuted(
        np.tile(np.arange(k), (targets, 1)), axis=1
    )
    ids_NK = ids_NK.astype(np.int32)
    logits = np.sort(3 * draw.standard_normal((targets, k + 1)), axis=-1)[:, ::-1]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    signal = Signal(
        ids_NK,
        logprobs[:, :k].astype(np.float16),
        logprobs[:, k].astype(np.float32),
        logprobs[:, 0].astype(np.float32),
    )
    prompt = draw.integers(vocabulary, size=size.asked)
    text = " ".join(f"word{token}" for token in ids_NK[:, 0] % 1000)
    return AnswerRow(
        row_id=f"{number:064x}",
        sample=0,
        split="train",
        label="",
        messages=json.dumps([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": text}]),
        text=text,
        finish_reason="stop",
        teacher="t",
        input_ids=np.concatenate([prompt, ids_NK[:, 0]]).astype(np.int32),
        target_mask=np.arange(size.length) >= size.asked,
        signal=signal,
    )

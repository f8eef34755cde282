"""Teachers small enough for milliseconds: random Llamas over a tokenizer of bytes."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def byte_tokenizer() -> Any:
    """One token a byte, and two that begin and end a message."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, "<s>": 1} | {letter: i for i, letter in enumerate(alphabet, start=2)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>", bos_token="<s>", pad_token="</s>")
    fast.chat_template = CHATML
    return fast


def llama(vocabulary: int, *, heads: tuple[int, int], hidden: int, spread: float) -> Any:
    """Two layers of random weights; `heads` are those of queries and of keys."""
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        max_position_embeddings=512,
        initializer_range=spread,
        eos_token_id=0,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def broad_llama(vocabulary: int) -> Any:
    """For vLLM: on CPUs its kernels begin at a head size of 32."""
    return llama(vocabulary, heads=(2, 1), hidden=64, spread=0.2)

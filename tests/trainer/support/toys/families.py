"""Small models of the families that are written in other formats: random weights, and a tokenizer with real merges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kubedistill_trainer.formats.texts import HARD_TEXTS

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
SHAPE = {
    "vocab_size": 520,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONG = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
"""One layer sees fewer tokens than most texts of a test have."""
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=32, rope_parameters=LONG)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=32)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, **WINDOWS, head_dim=32)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, sliding_window=8)),
}


def bpe(splitter: Any, *, whole_words_first: bool = False) -> Any:
    """A byte-level BPE of 512 tokens that splits texts as `splitter` does. Seven rows of the models have no token."""
    plain = Tokenizer(models.BPE(ignore_merges=whole_words_first))
    plain.pre_tokenizer = splitter
    plain.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain.train_from_iterator([*HARD_TEXTS, *HARD_TEXTS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<think>"])
    fast.chat_template = TEMPLATE
    return fast


def save(family: str, folder: Path) -> Path:
    """A model of a family in a folder, as Train exports it; the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = FAMILIES[family]()
        for name, weight in model.named_parameters():
            if weight.ndim == 1:  # norms of 1 and biases of 0 would hide where they went
                torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    model.bfloat16().save_pretrained(folder)
    bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)).save_pretrained(folder)
    return folder

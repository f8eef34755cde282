"""A tokenizer gets the name of llama.cpp's rule that splits texts as it does, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from toys.families import SHAPE, bpe
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from kubedistill_trainer.formats import gguf_file, gguf_vocabulary
from kubedistill_trainer.formats.parity import NotTheModel

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression: str) -> Any:
    """As the `tokenizer.json` of such a model says it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


NAMED = {
    "gpt-2": bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": bpe(digits()),
    "qwen2": bpe(split(PRETOKENIZE_REGEX)),
    "llama-bpe": bpe(split(LLAMA3), whole_words_first=True),
    "dbrx": bpe(split(LLAMA3)),
}


@pytest.mark.parametrize(("name", "tokenizer"), NAMED.items(), ids=NAMED.keys())
def test_each_family_gets_its_name_and_is_read_back(name: str, tokenizer: Any, tmp_path: Path) -> None:
    assert gguf_vocabulary.objection(tokenizer) == ""
    assert gguf_vocabulary.rule_name(tokenizer) == name
    gguf_file.rehearse(tmp_path / "file.gguf", LlamaConfig(**SHAPE), tokenizer)


def test_a_wrong_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_vocabulary, "rule_name", lambda _: "gpt-2")
    with pytest.raises(NotTheModel, match=r"its tokenizer makes \[.*\] of '.*[0-9].*', the model's \["):
        gguf_file.rehearse(tmp_path / "file.gguf", LlamaConfig(**SHAPE), NAMED["smollm"])


def test_a_lost_merge_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = gguf_vocabulary.GGUFWriter.add_token_merges
    monkeypatch.setattr(gguf_vocabulary.GGUFWriter, "add_token_merges", lambda self, merges: write(self, merges[1:]))
    with pytest.raises(NotTheModel, match="its tokenizer makes"):
        gguf_file.rehearse(tmp_path / "file.gguf", LlamaConfig(**SHAPE), NAMED["gpt-2"])


def sentencepiece() -> Any:
    plain = Tokenizer(models.BPE(vocab={"▁": 0, "a": 1, "<0x00>": 2}, merges=[], byte_fallback=True))
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="a")


def lower_case() -> Any:
    tokenizer = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def greedy_token() -> Any:
    from tokenizers import AddedToken

    tokenizer = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("<|end|>", rstrip=True)])
    return tokenizer


REFUSED = {
    "sentencepiece": (sentencepiece, "no byte-level BPE"),
    "changes texts": (lower_case, r"changes texts first \(Lowercase\)"),
    "takes spaces": (greedy_token, r"'<\|end\|>' takes spaces beside it away"),
    "unknown rule": (lambda: bpe(split(r"\p{L}+|\p{N}{1,2}|\s+|[^\s\p{L}\p{N}]+")), "none of llama.cpp's rules"),
    "prefix space": (lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)), "none of llama.cpp's rules"),
}


@pytest.mark.parametrize(("make", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_would_read_otherwise_is_refused_with_a_reason(make: Callable[[], Any], why: str) -> None:
    import re

    assert re.search(why, gguf_vocabulary.objection(make()))


def test_rows_without_a_token_are_unused_and_added_tokens_keep_their_kind() -> None:
    import json

    tokenizer = NAMED["gpt-2"]
    tokens, types = gguf_vocabulary.token_list(json.loads(tokenizer.backend_tokenizer.to_str()), 520)
    assert (tokens[:3], types[:3]) == (["<pad>", "<s>", "</s>"], [TokenType.CONTROL] * 3)
    assert (tokens[512], types[512]) == ("<think>", TokenType.USER_DEFINED)
    assert (tokens[513], types[513]) == ("[PAD513]", TokenType.UNUSED)
    assert len(tokens) == 520
    assert types[100] == TokenType.NORMAL


def test_a_token_that_every_text_begins_with_is_added_by_llama_cpp_too(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from tokenizers.processors import TemplateProcessing

    tokenizer = bpe(pre_tokenizers.ByteLevel(add_prefix_space=False))
    read = {}
    for begins in (False, True):
        if begins:
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
            )
        file = tmp_path / f"{begins}.gguf"
        gguf_file.rehearse(file, LlamaConfig(**SHAPE), tokenizer)
        read[begins] = GGUFReader(file).get_field("tokenizer.ggml.add_bos_token").contents()
    assert read == {False: False, True: True}


def test_the_file_tells_where_an_answer_ends(tmp_path: Path) -> None:
    gguf_file.rehearse(tmp_path / "file.gguf", LlamaConfig(**SHAPE), NAMED["gpt-2"])
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="file.gguf")
    assert (read.eos_token, read.bos_token, read.pad_token) == ("</s>", "<s>", "<pad>")
    assert read.chat_template == NAMED["gpt-2"].chat_template

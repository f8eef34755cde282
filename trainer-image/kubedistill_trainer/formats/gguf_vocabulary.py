"""A tokenizer as a GGUF file holds it: byte-level BPE, and the name of the rule that splits a text before it is merged.

A GGUF file does not hold that rule, only a name, and llama.cpp has the rule in its code. A wrong name gives a model
that answers, and answers worse. So the name is not guessed from the family: a tokenizer gets a name if it splits texts
as llama.cpp does under it, tried on texts that tell the rules apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Regex, pre_tokenizers

from kubedistill_trainer.formats.texts import HARD_TEXTS
from kubedistill_trainer.models import end_ids


@dataclass(frozen=True)
class Rule:
    """How llama.cpp splits and looks up under one name (`llama-vocab.cpp`)."""

    expressions: tuple[str, ...]
    """Applied one after the other; what each finds stands alone."""
    whole_words_first: bool = False
    """A piece that is a token is that token, whatever the merges say (`ignore_merges`)."""


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _CONTRACTIONS + _WORDS + r"\p{N}" + _REST
_LLAMA3 = _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST

RULES = {
    "gpt-2": Rule((_GPT2,)),
    "smollm": Rule((r"\p{N}", _GPT2)),
    "qwen2": Rule((_QWEN2,)),
    "llama-bpe": Rule((_LLAMA3,), whole_words_first=True),
    "dbrx": Rule((_LLAMA3,)),
}
"""By `tokenizer.ggml.pre`."""


def objection(tokenizer: Any) -> str:
    """Why this tokenizer cannot be written as GGUF; empty if it can."""
    if not getattr(tokenizer, "is_fast", False):
        return "its tokenizer has no tokenizer.json"
    state = _state(tokenizer)
    model, normalizer = state["model"], state["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback") or (state["decoder"] or {}).get("type") != "ByteLevel":
        return "its tokenizer is no byte-level BPE (SentencePiece cannot be written)"
    if not model["merges"]:
        return "its tokenizer merges nothing"
    if normalizer is not None and normalizer["type"] != "NFC":
        return f"its tokenizer changes texts first ({normalizer['type']}), which llama.cpp does not"
    for token in state["added_tokens"]:
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            return f"its token {token['content']!r} takes spaces beside it away, which llama.cpp does not"
    if rule_name(tokenizer) is None:
        return f"its tokenizer splits texts as none of llama.cpp's rules that are known here ({', '.join(RULES)})"
    return ""


def rule_name(tokenizer: Any) -> str | None:
    """The name of the rule by which this tokenizer splits texts; None: of no known one."""
    own = tokenizer.backend_tokenizer.pre_tokenizer
    if own is None:
        return None
    pieces = [[piece for piece, _ in own.pre_tokenize_str(text)] for text in HARD_TEXTS]
    first = bool(_state(tokenizer)["model"].get("ignore_merges"))
    for name, rule in RULES.items():
        splitter = splitter_of(name)
        if rule.whole_words_first == first and pieces == [
            [piece for piece, _ in splitter.pre_tokenize_str(text)] for text in HARD_TEXTS
        ]:
            return name
    return None


@cache
def splitter_of(name: str) -> Any:
    """A rule as the `tokenizers` package runs it."""
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in RULES[name].expressions]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def describe(writer: GGUFWriter, tokenizer: Any, rows: int) -> None:
    """Write a tokenizer whose model has so many token rows. The caller saw to it that there is no `objection`."""
    state = _state(tokenizer)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(str(rule_name(tokenizer)))
    tokens, types = token_list(state, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([_merge(pair) for pair in state["model"]["merges"]])
    for add, token_id in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_eot_token_id, next(iter(end_ids(tokenizer)), None)),
    ):
        if token_id is not None:
            add(token_id)
    ids = tokenizer.encode("x")
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def token_list(state: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of every row's token; rows without one are unused."""
    texts = {index: text for text, index in state["model"]["vocab"].items()}
    added = {token["id"]: token for token in state["added_tokens"]}
    tokens, types = [], []
    for index in range(rows):
        if index in added:
            tokens.append(added[index]["content"])
            types.append(TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED)
        elif index in texts:
            tokens.append(texts[index])
            types.append(TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{index}]")
            types.append(TokenType.UNUSED)
    return tokens, types


def _merge(pair: list[str] | str) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _state(tokenizer: Any) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return state

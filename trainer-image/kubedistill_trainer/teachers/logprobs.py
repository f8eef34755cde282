"""What a server's logprobs say, in the form in which they are stored. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kubedistill_trainer.core.signals import tail_logprob
from kubedistill_trainer.store.shards import NO_LOGPROB, Signal


def signal_of(rows: Sequence[Mapping[int, float]], answer: Sequence[int], k: int) -> Signal:
    """Stored form of a server's logprobs: the K likeliest of each position, and the token that was written.

    Servers add the written token where it is not among the K; it is no candidate then. Some give fewer than K.
    """
    ids_NK = np.full((len(answer), k), -1, dtype=np.int32)
    logprobs_NK = np.full((len(answer), k), NO_LOGPROB, dtype=np.float16)
    tail_N = np.zeros(len(answer), dtype=np.float32)
    target_N = np.zeros(len(answer), dtype=np.float32)
    for position, (row, token) in enumerate(zip(rows, answer, strict=True)):
        best = sorted(row.items(), key=lambda item: -item[1])[:k]
        ids_NK[position, : len(best)] = [each for each, _ in best]
        logprobs_NK[position, : len(best)] = [max(logprob, NO_LOGPROB) for _, logprob in best]
        tail_N[position] = tail_logprob([logprob for _, logprob in best])
        target_N[position] = max(row[token], NO_LOGPROB)
    return Signal(ids_NK, logprobs_NK, tail_N, target_N)


def token_id(tokenizer: Any, text: str, octets: Sequence[int] | None) -> int | None:
    """The one token of a tokenizer that stands for a text (or for bytes that are no text); None if none does."""
    added = tokenizer.get_added_vocab().get(text)
    if added is not None:
        return int(added)
    candidates = tokenizer.encode(text, add_special_tokens=False)
    if len(candidates) == 1 and tokenizer.decode(candidates) == text:
        return int(candidates[0])
    if octets is not None:
        letters = "".join(_BYTE_LETTERS[octet] for octet in octets)
        found = tokenizer.convert_tokens_to_ids(letters)
        if found is not None and found != tokenizer.unk_token_id:
            return int(found)
    return None


def _byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {octet: chr(octet) for octet in plain}
    others = (octet for octet in range(256) if octet not in letters)
    return [letter for _, letter in sorted((letters | {o: chr(256 + n) for n, o in enumerate(others)}).items())]


_BYTE_LETTERS = _byte_letters()

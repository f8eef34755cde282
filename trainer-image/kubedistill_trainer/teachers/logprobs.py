"""What a server's logprobs say, in the form in which they are stored. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kubedistill_trainer.core.floors import LOGPROB_FLOOR
from kubedistill_trainer.core.signals import tail_logprob
from kubedistill_trainer.store.shards import Signal


def candidates_of(row: Mapping[int, float], written: int, k: int) -> dict[int, float]:
    """The candidates in a row of vLLM, which adds the written token where it is not among the K likeliest."""
    return {token: logprob for token, logprob in row.items() if len(row) <= k or token != written}


def of_vocabulary(row: Mapping[int, float], vocabulary: int) -> dict[int, float]:
    """A position's logprobs without the rows that models pad their vocabulary with, the others brought back to a sum of
    one: the student has no such tokens. What of the padding is in the tail cannot be known, and is next to nothing.
    """
    inside = {token: logprob for token, logprob in row.items() if token < vocabulary}
    if len(inside) == len(row):
        return inside
    padding = math.fsum(math.exp(logprob) for token, logprob in row.items() if token >= vocabulary)
    whole = math.log(max(1.0 - padding, math.exp(LOGPROB_FLOOR)))
    return {token: min(logprob - whole, 0.0) for token, logprob in inside.items()}


def signal_of(rows: Sequence[Mapping[int, float]], written_N: Sequence[float], k: int) -> Signal:
    """Stored form of a server's logprobs: the K likeliest of each position, and the token that was written.

    `rows`: for each position, the candidates that the server named; some name fewer than K. The written token is none
    of them for being written: a candidate that was chosen by the draw would bias the sampled tail.
    `written_N`: the written tokens' own logprobs.
    """
    count = len(written_N)
    ids_NK = np.full((count, k), -1, dtype=np.int32)
    logprobs_NK = np.full((count, k), LOGPROB_FLOOR, dtype=np.float16)
    tail_N = np.zeros(count, dtype=np.float32)
    target_N = np.zeros(count, dtype=np.float32)
    for position, (row, written) in enumerate(zip(rows, written_N, strict=True)):
        best = sorted(row.items(), key=lambda item: -item[1])[:k]
        ids_NK[position, : len(best)] = [each for each, _ in best]
        logprobs_NK[position, : len(best)] = [max(logprob, LOGPROB_FLOOR) for _, logprob in best]
        tail_N[position] = tail_logprob([logprob for _, logprob in best])
        target_N[position] = max(written, LOGPROB_FLOOR)
    return Signal(ids_NK, logprobs_NK, tail_N, target_N)


def signal_of_flat(
    token_ids: Sequence[int], logprobs: Sequence[float], written_N: Sequence[int], k: int, vocabulary: int
) -> Signal:
    """Stored form of the flat logprobs that vLLM gives in process: K + 1 for each of N positions, in one list.

    The written token comes first, whether or not it is among the K likeliest, which follow from the likeliest down.
    Tokens from `vocabulary` on are padding: see `of_vocabulary`.

    Raises:
        ValueError: these are not the scores of these tokens.
    """
    count = len(written_N)
    ids: npt.NDArray[np.int32] = np.asarray(token_ids, dtype=np.int32)
    if len(ids) != count * (k + 1) or len(logprobs) != len(ids):
        raise ValueError(f"{len(ids)} scores for {count} tokens: {k + 1} for each are expected")
    ids_NK1 = ids.reshape(count, k + 1)
    if ids_NK1[:, 0].tolist() != list(written_N):
        raise ValueError("the scores belong to other tokens than those that were written")
    logprobs_NK1 = np.maximum(np.asarray(logprobs, dtype=np.float64).reshape(count, k + 1), LOGPROB_FLOOR)
    padding_NK = ids_NK1[:, 1:] >= vocabulary
    mass_NK = np.exp(logprobs_NK1[:, 1:])
    whole_N = np.log(np.maximum(1.0 - np.where(padding_NK, mass_NK, 0.0).sum(-1), np.exp(LOGPROB_FLOOR)))
    left_N = 1.0 - mass_NK.sum(-1)
    tail_N = np.log(np.maximum(left_N, np.exp(LOGPROB_FLOOR)))  # as `tail_logprob`
    scaled_NK1 = np.clip(logprobs_NK1 - whole_N[:, None], LOGPROB_FLOOR, 0.0)
    return Signal(
        np.where(padding_NK, -1, ids_NK1[:, 1:]).astype(np.int32),
        np.where(padding_NK, LOGPROB_FLOOR, scaled_NK1[:, 1:]).astype(np.float16),
        np.clip(tail_N - whole_N, LOGPROB_FLOOR, 0.0).astype(np.float32),
        scaled_NK1[:, 0].astype(np.float32),
    )


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

"""A text as its words, in any alphabet."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

_ALONE = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Scripts that put no spaces between words. Each of their letters counts as a word."""


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits, blind to case and to how characters are composed."""
    return "".join(map(_spaced, unicodedata.normalize("NFKC", text).casefold())).split()


@lru_cache(maxsize=4096)
def _spaced(letter: str) -> str:
    if unicodedata.category(letter)[0] not in "LMN":
        return " "
    return f" {letter} " if unicodedata.name(letter, "").startswith(_ALONE) else letter

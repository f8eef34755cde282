"""What a form is tried on: token ids of real prompts, and texts that tokenizers like to disagree about."""

from __future__ import annotations

HARD_TEXTS = (
    "Hello, how's it going? I'll see; they'VE been here, WE'D say.",
    "In 1984 there were 1234567 of them, 3.14159 and 2,718,281.",
    "def f(x):\n    return x ** 2  # squared\n\n\n\tprint(f(12))\r\n",
    "  leading,  double   triple and trailing spaces   ",
    "Ünïcödé naïve façade, déjà vu; Ελληνικά; русский текст; 東京都は日本の首都です。한국어 عربى हिन्दी",
    "🤖 emoji 👩‍👩‍👧 and symbols: ©®™ → ∑ (a+b)² ½ Ⅷ ٣٤٥",
    "https://example.org/path?query=1&x=%20#top user@example.com C:\\temp\\new",
    "\"quoted\" 'single' `code` ... --- *** ___ ~~~ <tag attr='v'/> {json: [1, 2]}",
    "A\u00a0non-breaking space, a zero\u200bwidth one, and a line\u2028separator",
    "x",
    " ",
    "\n",
    "",
    "'s",
    "!!!!",
    "100",
    " 7",
)
"""Contractions, runs of digits, white space of all kinds, scripts without spaces, marks that combine, symbols."""

"""Prompts as the student sees them: how many tokens, and whether they hold what means something to the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kubedistill_trainer.chats import TemplateRefused, prompt_text
from kubedistill_trainer.core.rows import Row


class Lengths:
    """Tokens of each row's prompt. They are remembered, not measured again."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, int] = {}

    def __call__(self, row: Row) -> int:
        """Of a row that was measured."""
        return self._known[row.row_id]

    def measured(self, rows: Sequence[Row]) -> list[int | str]:
        """The tokens of each prompt; of one that the chat template refuses, its words."""
        try:
            found: list[int | str] = list(self._tokens(rows))
        except TemplateRefused:  # one of them: ask for each
            found = [self._tokens_or_refusal(row) for row in rows]
        self._known |= {row.row_id: n for row, n in zip(rows, found, strict=True) if isinstance(n, int)}
        return found

    def _tokens_or_refusal(self, row: Row) -> int | str:
        try:
            return self._tokens([row])[0]
        except TemplateRefused as error:
            return str(error)

    def _tokens(self, rows: Sequence[Row]) -> list[int]:
        texts = [
            prompt_text(self._tokenizer, [message.as_dict() for message in row.messages], row.tools) for row in rows
        ]
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
        return [len(ids) for ids in encoded["input_ids"]]


def with_special_tokens(rows: Iterable[Row], tokenizer: Any) -> int:
    """Rows in whose text a special token stands, such as <|im_end|>: to a model it would be one."""
    special = [re.escape(token) for token in tokenizer.all_special_tokens if len(token) > 2]
    pattern = re.compile("|".join(special))
    return sum(any(pattern.search(message.content) for message in row.messages) for row in rows) if special else 0

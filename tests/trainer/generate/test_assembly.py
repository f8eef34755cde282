"""Answers under the student's template: every token of the teacher once, whatever the two put at the beginning."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from kubedistill_trainer.generation.assembly import Assembler
from kubedistill_trainer.store.shards import Signal
from kubedistill_trainer.teachers.protocol import Answered

BOS, END = 1, 0
WITHOUT = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}[assistant]"
WITH = "<s>" + WITHOUT


def tokenizer_with(plain: Any, template: str, *, adds: bool) -> Any:
    """The same tokens; `adds`: its encoder begins every text with a BOS, as Llama's does."""
    tokens = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    if adds:
        tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = template
    return fast


def answered(tokenizer: Any, text: str) -> Answered:
    ids = [*tokenizer.encode(text, add_special_tokens=False), END]
    count = len(ids)
    ranks_N = np.arange(count, dtype=np.float32)
    signal = Signal(
        np.stack([ids, [BOS] * count], axis=1).astype(np.int32),
        np.stack([-ranks_N / 8, -ranks_N - 1], axis=1).astype(np.float16),
        -ranks_N - 2,
        -ranks_N / 8,
    )
    return Answered(text, True, tuple(ids), signal, count)


@pytest.mark.parametrize("adds", [False, True], ids=["plain encoder", "encoder adds BOS"])
@pytest.mark.parametrize("template", [WITH, WITHOUT], ids=["template with BOS", "template without"])
@given(texts=st.lists(st.text(min_size=1, max_size=12).filter(lambda text: "<" not in text), min_size=1, max_size=3))
def test_a_bos_on_one_side_moves_no_token_and_no_score(
    tiny_tokenizer: Any, template: str, adds: bool, texts: list[str]
) -> None:
    student = tokenizer_with(tiny_tokenizer, template, adds=adds)
    answers = [answered(tiny_tokenizer, text) for text in texts]  # the teacher's own encoder adds nothing
    history: list[dict[str, str]] = []
    for text in texts:
        history += [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": text}]
    places = list(range(1, len(history), 2))
    row = Assembler(student, [END], [END], top_k=True).assemble(history, places, answers)

    ids = np.array(row.tokens.input_ids)
    mask = np.array(row.tokens.target_mask)
    written = [token for answer in answers for token in answer.token_ids or ()]
    assert ids[mask].tolist() == written, "each token of the teacher, once, in order"
    assert row.signal is not None
    assert row.signal.topk_ids_NK[:, 0].tolist() == written, "its scores beside it"
    assert (ids == BOS).sum() == (template is WITH), "as often as the student's template says, not its encoder"
    assert student.decode(ids[mask & (ids != END)]) == "".join(texts)

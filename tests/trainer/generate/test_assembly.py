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


def answered(tokenizer: Any, text: str, complete: bool = True) -> Answered:
    ids = [*tokenizer.encode(text, add_special_tokens=False), *([END] if complete else [])]
    count = len(ids)
    ranks_N = np.arange(count, dtype=np.float32)
    signal = Signal(
        np.stack([ids, [BOS] * count], axis=1).astype(np.int32),
        np.stack([-ranks_N / 8, -ranks_N - 1], axis=1).astype(np.float16),
        -ranks_N - 2,
        -ranks_N / 8,
    )
    return Answered(text, complete, tuple(ids), signal, count)


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


@pytest.mark.parametrize("complete", [True, False], ids=["ended", "cut off"])
@pytest.mark.parametrize("top_k", [True, False], ids=["scores", "text"])
def test_an_end_stands_after_every_earlier_answer_and_is_a_target_where_the_teacher_wrote_it(
    tiny_tokenizer: Any, top_k: bool, complete: bool
) -> None:
    """The student's template writes it there either way, and so it is what the student will see."""
    student = tokenizer_with(tiny_tokenizer, WITHOUT, adds=False)
    answers = [answered(tiny_tokenizer, "One", complete), answered(tiny_tokenizer, "Two")]
    history = [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "One"},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "Two"},
    ]
    row = Assembler(student, [END], [END], top_k=top_k).assemble(history, [1, 3], answers)
    ids, mask = np.array(row.tokens.input_ids), np.array(row.tokens.target_mask)
    assert student.decode(ids) == "[user]1?</s>[assistant]One</s>[user]2?</s>[assistant]Two</s>"
    assert student.decode(ids[mask]) == ("One</s>Two</s>" if complete else "OneTwo</s>")

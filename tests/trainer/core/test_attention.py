"""The attention over packed rows, also where it is not used for packing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kubedistill_trainer.core.attention import packed_attention
from kubedistill_trainer.core.batching import pack


def test_packed_rows_get_the_numbers_of_a_block_diagonal_mask(tiny_llama, some_examples):
    model, batch = tiny_llama(), pack(some_examples((7, 2, 12)))
    ours = model.model(**batch.model_inputs()).last_hidden_state
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, model.model(**batch.model_inputs()).last_hidden_state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("left_padding", [0, 3])
def test_generation_is_that_of_sdpa(left_padding, tiny_llama):
    model = tiny_llama()
    ids = torch.randint(2, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :left_padding] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    ours = model.generate(ids, **options)
    model.set_attn_implementation("sdpa")
    assert ours.tolist() == model.generate(ids, **options).tolist()


def test_a_token_sees_as_many_as_its_window_holds_itself_included():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, 10, 4, generator=draw) for _ in range(3))
    borders = {"cu_seq_lens_q": torch.tensor([0, 4, 10]), "max_length_q": 6, "sliding_window": 3}
    mixed, _ = packed_attention(SimpleNamespace(), query, key, value, None, **borders)
    last = slice(7, 10)
    seen = (query[:, :, 9:] @ key[:, :, last].transpose(2, 3) / 2).softmax(-1) @ value[:, :, last]
    torch.testing.assert_close(mixed[:, 9], seen[:, :, 0])


def test_attention_sinks_are_refused_rather_than_left_out():
    heads = torch.zeros(1, 2, 10, 4)
    with pytest.raises(ValueError, match="attention sinks are not built"):
        packed_attention(SimpleNamespace(), heads, heads, heads, None, s_aux=torch.zeros(2))

"""Tokens of a row resemble each other as they do to the teacher: causal, row by row, block by block."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM

from kubedistill_trainer.core.batching import pack, pad
from kubedistill_trainer.core.inside import Asked, attention_projections, look_inside, spans
from kubedistill_trainer.core.losses.attention_relations import Span, Vectors, attention_relations, relation_heads

ROWS = [Span(0, 6, torch.arange(2, 6)), Span(6, 15, torch.tensor([3, 5, 8]))]
COUNTED = 7


def vectors(widths: tuple[int, int, int], seed: int, positions: int = 15) -> Vectors:
    draw = torch.Generator().manual_seed(seed)
    return Vectors(*(torch.randn(positions, width, generator=draw, dtype=torch.float64) for width in widths))


def by_hand(student: Vectors, teacher: Vectors, rows: list[Span], heads: int) -> float:
    """The definition, one row, head and position at a time."""
    total = 0.0
    for row in rows:
        for ours, theirs in zip(student, teacher, strict=True):
            for head in range(heads):
                for position in row.counted_n.tolist():
                    p, q = (relation(each[row.start : row.stop], heads, head, position) for each in (theirs, ours))
                    total += float((p * (p.log() - q.log())).sum()) / heads / 3
    return total


def relation(row_TD: Tensor, heads: int, head: int, position: int) -> Tensor:
    size = row_TD.shape[1] // heads
    part_Td = row_TD[: position + 1, head * size : (head + 1) * size]
    return (part_Td @ part_Td[position] / math.sqrt(size)).softmax(-1)


@pytest.mark.parametrize("block_elements", [1, 40, 2**24], ids=["one-by-one", "few", "all-at-once"])
def test_the_loss_is_the_definition_whatever_the_blocks_and_widths(block_elements):
    student, teacher = vectors((8, 4, 4), seed=1), vectors((12, 8, 8), seed=2)
    loss = attention_relations(student, teacher, ROWS, 4, block_elements=block_elements)
    assert float(loss.total) == pytest.approx(by_hand(student, teacher, ROWS, 4), rel=1e-10)
    assert loss.count == COUNTED
    assert float(loss.total) > 0


def test_a_teacher_against_itself_is_zero_and_so_is_any_turn_of_its_heads():
    """Relations know only how tokens stand to each other."""
    teacher = vectors((8, 4, 4), seed=3)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    turned = Vectors(*((each.view(15, -1, 2) @ turn).flatten(1) for each in teacher))
    for student in (teacher, turned):
        assert abs(float(attention_relations(student, teacher, ROWS, 2).total)) < 1e-10


def test_what_lies_ahead_and_other_rows_change_nothing():
    student, teacher = vectors((8, 4, 4), seed=4), vectors((8, 4, 4), seed=5)
    before = attention_relations(student, teacher, [Span(0, 6, torch.tensor([3]))], 4).total
    for each in (*student, *teacher):
        each[4:] = torch.nan
    torch.testing.assert_close(attention_relations(student, teacher, [Span(0, 4, torch.tensor([3]))], 4).total, before)
    for each in (*student, *teacher):
        each[4:] = 100.0
    torch.testing.assert_close(attention_relations(student, teacher, [Span(0, 6, torch.tensor([3]))], 4).total, before)


@pytest.mark.parametrize("block_elements", [1, 2**24], ids=["one-by-one", "all-at-once"])
def test_the_gradient_is_that_of_the_returned_loss_by_finite_differences(block_elements):
    teacher = vectors((4, 2, 2), seed=6)
    leaves = [each.requires_grad_() for each in vectors((4, 2, 2), seed=7)]
    assert torch.autograd.gradcheck(
        lambda *each: attention_relations(Vectors(*each), teacher, ROWS, 2, block_elements=block_elements).total, leaves
    )


def test_large_vectors_give_finite_gradients():
    leaves = [(1e3 * each).float().requires_grad_() for each in vectors((8, 4, 4), seed=8)]
    teacher = Vectors(*((1e3 * each).float() for each in vectors((8, 4, 4), seed=9)))
    attention_relations(Vectors(*leaves), teacher, ROWS, 4).total.backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)


@pytest.mark.parametrize(
    ("student", "teacher", "at_most", "heads"),
    [
        pytest.param((576, 192, 192), (576, 192, 192), 9, 8, id="three heads for nine"),
        pytest.param((2048, 512, 512), (4096, 1024, 1024), 32, 32, id="llama 1B and 8B"),
        pytest.param((96, 96, 96), (64, 64, 64), 3, 2, id="uneven"),
        pytest.param((7, 7, 7), (8, 8, 8), 4, 1, id="nothing in common"),
    ],
)
def test_relation_heads_cut_all_widths_evenly(student, teacher, at_most, heads):
    assert relation_heads(student, teacher, at_most) == heads


@pytest.mark.parametrize("layout", [pack, lambda examples: pad(examples, pad_id=1)], ids=["packed", "padded"])
def test_the_vectors_of_a_row_are_those_it_has_alone_and_its_counted_positions_are_found(
    layout, tiny_llama, some_examples
):
    model, examples = tiny_llama(), some_examples((17, 3, 30))
    batch = layout(examples)
    together = look_inside(model, batch, Asked(vectors=True)).vectors
    for example, span in zip(examples, spans(batch), strict=True):
        alone = look_inside(model, pack([example]), Asked(vectors=True)).vectors
        length = len(example.input_ids_T)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[span.start : span.start + length], theirs, rtol=1e-4, atol=1e-5)
        assert torch.equal(span.counted_n, example.target_mask_T[1:].nonzero().squeeze(-1))


def test_an_architecture_that_makes_all_three_in_one_is_refused_with_its_name():
    fused = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            pad_token_id=0,
        )
    )
    with pytest.raises(ValueError, match="last layer of Phi3ForCausalLM has no q_proj, k_proj, v_proj"):
        attention_projections(fused)

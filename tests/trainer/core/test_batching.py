"""Micro batches: whatever the split and the layout, the same rows, the same loss, the same gradient."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kubedistill_api.training import Objective
from kubedistill_trainer.core.batching import Example, MicroBatch, pack, pad, split
from kubedistill_trainer.core.chunked import chunked_loss
from kubedistill_trainer.core.head import Head
from kubedistill_trainer.core.losses import Loss, loss_of
from kubedistill_trainer.core.order import DataOrder
from kubedistill_trainer.core.signals import LossSum

LENGTHS = (17, 3, 30, 8, 25, 4, 12, 9)
LOSS = loss_of(Objective(type="ForwardKL", soft_weight=0.6), sampled_tail=True)
HARD = loss_of(Objective(type="CrossEntropy"), sampled_tail=False)
END = 1
LOSSES = {
    "cross-entropy": HARD,
    "forward-bucket": loss_of(Objective(type="ForwardKL", soft_weight=1.0), sampled_tail=False),
    "forward-sampled": LOSS,
    "reverse": loss_of(Objective(type="ReverseKL", soft_weight=1.0), sampled_tail=False),
    "js-bucket": loss_of(Objective(type="JensenShannon", soft_weight=1.0, beta=0.9), sampled_tail=False),
    "js-sampled": loss_of(Objective(type="JensenShannon", soft_weight=0.6), sampled_tail=True),
    "skew-bucket": loss_of(Objective(type="SkewKL", soft_weight=1.0), sampled_tail=False),
    "skew-sampled": loss_of(Objective(type="SkewKL", soft_weight=0.6, beta=0.3), sampled_tail=True),
}


def loss_on(model, batch: MicroBatch, chunk_bytes: int = 2**20, loss: Loss = LOSS) -> LossSum:
    hidden = model.model(**batch.model_inputs()).last_hidden_state
    return chunked_loss(batch.counted(hidden), Head.of(model, 61), batch.supervision, loss, chunk_bytes=chunk_bytes)


def step(
    model, examples: list[Example], world: int, micro: int, layout, chunk_bytes: int = 2**20, loss: Loss = LOSS
) -> list[Tensor]:
    """One optimizer step by hand: every rank's gradients, added up; the loss in front."""
    model.zero_grad()
    targets = sum(example.targets for example in examples)
    total = torch.zeros(())
    for turns in split([len(example.input_ids_T) for example in examples], world, micro):
        for turn in turns:
            batch = layout([examples[index] for index in turn])
            part = loss_on(model, batch, chunk_bytes, loss).mean_over(targets)
            part.backward()
            total = total + part.detach()
    return [total, *(parameter.grad.clone() for parameter in model.parameters())]


def padded(examples: list[Example]) -> MicroBatch:
    return pad(examples, pad_id=1)


SPLITS = {
    "one-by-one": (1, 1, pack, 2**20),
    "in-pairs": (1, 2, pack, 2**20),
    "two-ranks": (2, 1, pack, 2**20),
    "two-ranks-of-four": (2, 4, pack, 2**20),
    "eight-ranks": (8, 1, pack, 2**20),
    "padded": (1, 8, padded, 2**20),
    "padded-in-pairs-on-two-ranks": (2, 2, padded, 2**20),
    "tiny-chunks": (1, 8, pack, 61 * 4 * 3),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(("world", "micro", "layout", "chunk_bytes"), SPLITS.values(), ids=SPLITS)
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_split(
    world, micro, layout, chunk_bytes, loss, tiny_llama, some_examples
):
    model, examples = tiny_llama(), some_examples(LENGTHS)
    whole = step(model, examples, 1, len(examples), pack, loss=loss)
    parts = step(model, examples, world, micro, layout, chunk_bytes, loss)
    for part, wanted in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, wanted, rtol=1e-5, atol=2e-6)


def test_every_target_weighs_the_same_whatever_the_length_of_its_row(tiny_llama, some_examples):
    """Mean of means would weigh a short answer's tokens more."""
    model, examples = tiny_llama(), some_examples(LENGTHS)
    rows = [loss_on(model, pack([example])) for example in examples]
    targets = sum(example.targets for example in examples)
    total = sum(row.total.item() for row in rows) / targets
    assert step(model, examples, 2, 2, pack)[0].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("layout", [pack, padded], ids=["packed", "padded"])
def test_a_row_is_seen_as_if_it_were_alone(layout, tiny_llama, some_examples):
    model, examples = tiny_llama(), some_examples(LENGTHS)
    batch = layout(examples)
    together = batch.counted(model.model(**batch.model_inputs()).last_hidden_state)
    alone = [model.model(input_ids=example.input_ids_T[None]).last_hidden_state[0, :-1] for example in examples]
    wanted = [states[example.target_mask_T[1:]] for states, example in zip(alone, examples, strict=True)]
    torch.testing.assert_close(together, torch.cat(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [pack, padded], ids=["packed", "padded"])
def test_another_rows_tokens_change_nothing(layout, tiny_llama, some_examples):
    model, examples = tiny_llama(), some_examples(LENGTHS)
    before = loss_on(model, layout(examples[:1] + examples[2:3]))
    foreign = replace(examples[2], input_ids_T=examples[2].input_ids_T.flip(0))
    mine, other = loss_on(model, pack(examples[:1])), loss_on(model, pack([foreign]))
    after = loss_on(model, layout([examples[0], foreign]))
    assert after.total.item() == pytest.approx(mine.total.item() + other.total.item(), rel=1e-5)
    assert after.total.item() != pytest.approx(before.total.item(), rel=1e-3)


def test_what_stands_in_the_padding_changes_neither_loss_nor_gradient(tiny_llama, some_examples):
    model, examples = tiny_llama(), some_examples(LENGTHS)
    first, *others = (step(model, examples, 1, 8, lambda rows, fill=fill: pad(rows, fill)) for fill in (0, 1, 60))
    for other in others:
        for part, wanted in zip(other, first, strict=True):
            assert torch.equal(part, wanted)


@pytest.mark.parametrize("layout", [pack, lambda rows: pad(rows, pad_id=END)], ids=["packed", "padded"])
def test_an_end_token_that_also_pads_is_a_target_once_a_row(layout, some_examples):
    """Most tokenizers without a padding token pad with their end; who masks by id never teaches a student to stop."""
    examples = [
        replace(example, input_ids_T=torch.cat([example.input_ids_T[:-1], torch.tensor([END])]))
        for example in some_examples(LENGTHS)
    ]
    batch = layout(examples)
    assert batch.supervision.target_ids_N.tolist().count(END) == len(examples)
    assert len(batch.supervision) == sum(example.targets for example in examples)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 8), (2, 2)], ids=["one-by-one", "at-once", "two-ranks"])
def test_the_soft_loss_keeps_its_share_of_the_gradient_in_any_batch(world, micro, loss, tiny_llama, some_examples):
    """A divisor too many for one of the terms would show as a ratio that falls with the batch."""
    model, [example] = tiny_llama(), some_examples((17,))

    def ratio(copies: int, world: int, micro: int) -> float:
        soft, hard = (step(model, [example] * copies, world, micro, pack, loss=each)[1:] for each in (loss, HARD))
        return norm(soft) / norm(hard)

    assert ratio(8, world, micro) == pytest.approx(ratio(1, 1, 1), rel=1e-5)


def norm(gradients: list[Tensor]) -> float:
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def test_the_teachers_rows_reach_the_gradient(tiny_llama, some_examples):
    model, examples = tiny_llama(), some_examples(LENGTHS)
    with_teacher = step(model, examples, 1, 8, pack)
    flattened = [
        replace(e, teacher=replace(e.teacher, logprobs_NK=torch.full_like(e.teacher.logprobs_NK, -2.0)))
        for e in examples
    ]
    without = step(model, flattened, 1, 8, pack)
    assert not torch.allclose(with_teacher[1], without[1], rtol=1e-2)


def test_through_two_shuffled_epochs_on_two_ranks_each_row_meets_its_own_signal(some_examples):
    examples = some_examples((5, 9, 4, 7, 11, 6, 8, 10, 12, 3, 5))
    order, seen = DataOrder(len(examples), 8, seed=3), []
    for number in range(order.steps(2)):
        chosen = [examples[row] for row in order.rows_of_step(number)]
        for turns in split([len(example.input_ids_T) for example in chosen], world_size=2, micro_batch=1):
            assert len(turns) == 4
            for turn in turns:
                batch = pack([chosen[index] for index in turn])
                own = next(example for example in examples if example.row_id == batch.row_ids[0])
                assert torch.equal(batch.supervision.target_ids_N, own.input_ids_T[own.target_mask_T])
                assert torch.equal(batch.supervision.teacher.tail_N, own.teacher.tail_N)
                seen += batch.row_ids
    assert min(seen.count(example.row_id) for example in examples) >= 2


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 4), (2, 2), (4, 1), (4, 2)])
def test_a_split_deals_each_row_once_and_gives_all_ranks_as_many_turns(world, micro):
    ranks = split(LENGTHS, world, micro)
    assert len(ranks) == world
    assert {len(turns) for turns in ranks} == {8 // (world * micro)}
    assert {len(turn) for turns in ranks for turn in turns} == {micro}
    assert sorted(chain.from_iterable(chain.from_iterable(ranks))) == list(range(8))


@st.composite
def steps_of_a_training(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Lengths, world size and micro batch."""
    world, micro = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    rows = world * micro * draw(st.integers(1, 4))
    return draw(st.lists(st.integers(1, 4096), min_size=rows, max_size=rows)), world, micro


@given(steps_of_a_training())
def test_ranks_differ_by_no_more_tokens_than_two_rows_of_a_turn(dealt: tuple[list[int], int, int]):
    """In any turn, for those who wait for each other in it, and over the step, for those who wait at its end."""
    lengths, world, micro = dealt
    ranks = split(lengths, world, micro)
    assert sorted(chain.from_iterable(chain.from_iterable(ranks))) == list(range(len(lengths)))
    assert {len(turn) for turns in ranks for turn in turns} == {micro}
    gaps = []
    for turn in zip(*ranks, strict=True):
        tokens = [sum(lengths[row] for row in rows) for rows in turn]
        held = [lengths[row] for rows in turn for row in rows]
        gaps.append(max(tokens) - min(tokens))
        assert gaps[-1] <= max(held) - min(held)
    tokens = [sum(lengths[row] for row in chain.from_iterable(turns)) for turns in ranks]
    assert max(tokens) - min(tokens) <= max(gaps)


@pytest.mark.parametrize("turn", range(4))
def test_what_a_turn_holds_depends_on_its_size_alone(turn: int):
    """So that a resume with twice the ranks and half the micro batch takes the same rows at the same time."""
    held = [
        sorted(chain.from_iterable(turns[turn] for turns in split(LENGTHS * 2, world, 4 // world)))
        for world in (1, 2, 4)
    ]
    assert held[0] == held[1] == held[2]


def test_rows_of_one_turn_are_alike_and_the_longest_come_first():
    (turns,) = split(LENGTHS, 1, 2)
    assert [tuple(LENGTHS[row] for row in turn) for turn in turns] == [(30, 25), (17, 12), (9, 8), (4, 3)]


@pytest.mark.parametrize("lengths", [(), (3, 4, 5)], ids=["none", "three"])
def test_rows_that_do_not_fill_the_micro_batches_are_an_error(lengths):
    with pytest.raises(ValueError, match="do not fill micro batches of 2 on 2 ranks"):
        split(lengths, 2, 2)


def test_packing_computes_no_padding_and_restarts_positions(some_examples):
    batch = pack(some_examples((3, 5, 2)))
    assert batch.tokens == 10
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0, 1]]
    assert batch.cu_seqlens.tolist() == [0, 3, 8, 10]
    assert batch.longest == 5


def test_text_only_rows_pack_without_a_signal(some_examples):
    batch = pack(some_examples((3, 5), k=0))
    assert batch.supervision.candidates.shape == (len(batch.supervision), 0)


def test_rows_with_and_without_a_signal_do_not_mix(some_examples):
    with pytest.raises(ValueError, match="a batch has one signal"):
        pack([*some_examples((5,)), *some_examples((5,), k=0)])

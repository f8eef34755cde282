"""Hidden states are compared by where they point, through a projection that is learned and left behind."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from kubedistill_api.training import HiddenLayers
from kubedistill_trainer.core.batching import pack
from kubedistill_trainer.core.inside import Asked, look_inside
from kubedistill_trainer.core.losses.hidden_states import HiddenStateMatching, LayerPair, layer_pairs


def states(positions: int, width: int, seed: int) -> Tensor:
    return torch.randn(positions, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("layers", "student", "teacher", "pairs"),
    [
        pytest.param(HiddenLayers.LAST, 2, 30, [(2, 30)], id="last"),
        pytest.param(HiddenLayers.EVENLY_SPACED, 20, 30, [(5, 8), (10, 15), (15, 23), (20, 30)], id="quarters"),
        pytest.param(HiddenLayers.EVENLY_SPACED, 3, 30, [(1, 10), (2, 20), (3, 30)], id="fewer than four"),
        pytest.param(HiddenLayers.EVENLY_SPACED, 1, 4, [(1, 4)], id="one"),
        pytest.param(HiddenLayers.EVENLY_SPACED, 8, 4, [(2, 1), (4, 2), (6, 3), (8, 4)], id="deeper than its teacher"),
    ],
)
def test_layers_meet_at_the_same_depth_and_the_last_ones_always(layers, student, teacher, pairs):
    assert layer_pairs(layers, student, teacher) == tuple(LayerPair(*pair) for pair in pairs)


def test_a_projection_that_turns_one_into_the_other_leaves_nothing_whatever_the_lengths():
    matching = HiddenStateMatching(1, 6, 9).double()
    student = states(5, 6, seed=1)
    turned = matching.projections[0](student).detach()
    loss = matching([student], [turned * torch.linspace(0.01, 100, 5, dtype=torch.float64)[:, None]])
    assert abs(loss.total.item()) < 1e-9
    assert loss.count == 5


def test_equal_widths_begin_with_the_states_as_they_are():
    same = [states(5, 8, seed=2).float(), states(5, 8, seed=3).float()]
    assert abs(HiddenStateMatching(2, 8, 8)(same, same).total.item()) < 1e-5


def test_the_loss_is_half_the_squared_distance_of_states_of_one_length_and_at_most_two():
    matching = HiddenStateMatching(1, 7, 7).double()
    student, teacher = states(20, 7, seed=4), states(20, 7, seed=5)
    one_length = [each / each.norm(dim=-1, keepdim=True) for each in (student, teacher)]
    expected = (one_length[0] - one_length[1]).square().sum() / 2
    torch.testing.assert_close(matching([student], [teacher]).total, expected)
    torch.testing.assert_close(matching([student], [-student]).total.item(), 2.0 * 20)


def test_it_is_a_mean_over_pairs_and_a_sum_over_positions():
    matching = HiddenStateMatching(2, 6, 9).double()
    student, teacher = ([states(8, width, seed) for seed in (6, 7)] for width in (6, 9))
    whole = matching(student, teacher)
    parts = [matching([s[rows] for s in student], [t[rows] for t in teacher]) for rows in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(parts[0].total + parts[1].total, whole.total)
    assert whole.count == parts[0].count + parts[1].count == 8
    alone = HiddenStateMatching(1, 6, 9).double()
    alone.projections[0].load_state_dict(matching.projections[1].state_dict())
    first = HiddenStateMatching(1, 6, 9).double()
    first.projections[0].load_state_dict(matching.projections[0].state_dict())
    mean = (first(student[:1], teacher[:1]).total + alone(student[1:], teacher[1:]).total) / 2
    torch.testing.assert_close(whole.total, mean)


def test_the_gradient_is_that_of_the_returned_loss_by_finite_differences():
    matching = HiddenStateMatching(2, 4, 5).double()
    student = [states(3, 4, seed).requires_grad_() for seed in (8, 9)]
    teacher = [states(3, 5, seed) for seed in (10, 11)]
    leaves = (*student, *matching.parameters())
    assert torch.autograd.gradcheck(lambda *_: matching(student, teacher).total, leaves)


def test_a_state_of_nothing_gives_finite_gradients():
    student = torch.zeros(2, 6, requires_grad=True)
    HiddenStateMatching(1, 6, 6)([student], [torch.zeros(2, 6)]).total.backward()
    assert torch.isfinite(student.grad).all()


def test_the_last_state_is_the_one_that_the_vocabulary_projection_gets(tiny_llama, some_examples):
    batch = pack(some_examples((17, 9)))
    inside = look_inside(tiny_llama(layers=3), batch, Asked(layers=[3]))
    torch.testing.assert_close(inside.states[0], batch.counted(inside.last_BTH))


def test_states_are_those_that_transformers_gives_and_gradients_reach_them(tiny_llama, some_examples):
    batch = pack(some_examples((17, 9)))
    model = tiny_llama(layers=3)
    inside = look_inside(model, batch, Asked(layers=[3, 0, 2]))
    theirs = model.get_decoder()(**batch.model_inputs(), output_hidden_states=True).hidden_states
    for state, layer in zip(inside.states, (3, 0, 2), strict=True):
        torch.testing.assert_close(state, batch.counted(theirs[layer]))
    inside.states[2].sum().backward()
    layers = model.get_decoder().layers
    assert layers[1].mlp.up_proj.weight.grad is not None, "a state after two layers comes through the second"
    assert layers[2].mlp.up_proj.weight.grad is None


def test_a_look_keeps_no_more_states_than_were_asked_for(tiny_llama, some_examples):
    model, alive, kept = tiny_llama(layers=4), [], []
    layers = model.get_decoder().layers
    for layer in layers:
        layer.register_forward_hook(lambda _, __, output: alive.append(weakref.ref(output)))
    layers[-1].register_forward_hook(lambda *_: kept.extend(state() is not None for state in alive))
    with torch.no_grad():
        look_inside(model, pack(some_examples((17, 9))), Asked(layers=[1]))
    assert kept == [True, False, True, True], "the one asked for, and what the last layer is at work on"
    assert not any(state() is not None for state in alive)

"""Which layers a student keeps, and the model that they make."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kubedistill_trainer.core.pruning import (
    BlockInfluence,
    block_influence,
    decoder_layers,
    evenly_spaced,
    most_influential,
    prune,
)


def test_a_block_that_only_scales_has_no_influence_and_one_that_turns_round_has_two():
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block_influence(states, 3 * states), torch.zeros(2, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(block_influence(states, -states), 2 * torch.ones(2, 3))


def test_streamed_influence_equals_that_of_the_hidden_states_at_once(tiny_llama):
    model = tiny_llama(layers=4)
    ids = torch.randint(2, 61, (3, 10), generator=torch.Generator().manual_seed(0))
    count = torch.arange(10).expand(3, 10) < torch.tensor([[4], [10], [1]])
    with torch.no_grad(), BlockInfluence(model) as influence:
        for row in range(3):
            influence.count_BT = count[row : row + 1]
            model(ids[row : row + 1])
    with torch.no_grad():
        states = [model.model.embed_tokens(ids)]
        for layer in model.model.layers:
            places = torch.arange(10)[None]
            states.append(layer(states[-1], position_embeddings=model.model.rotary_emb(states[-1], places)))
    wanted = [block_influence(a, b)[count].mean().item() for a, b in pairwise(states)]
    assert influence.scores == pytest.approx(wanted, rel=1e-4)


def test_the_hooks_are_gone_after_measuring(tiny_llama):
    model = tiny_llama()
    with BlockInfluence(model) as influence, torch.no_grad():
        model(torch.tensor([[2, 3]]))
    before = influence.scores
    with torch.no_grad():
        model(torch.tensor([[9, 8, 7]]))
    assert influence.scores == before


def test_influence_of_no_token_is_an_error_not_a_number(tiny_llama):
    with BlockInfluence(tiny_llama()) as influence, pytest.raises(ValueError, match="no token was seen"):
        _ = influence.scores


@pytest.mark.parametrize(
    ("scores", "keep", "kept"),
    [
        ((0.9, 0.1, 0.2, 0.05, 0.8), 3, (0, 2, 4)),
        ((0.5, 0.5, 0.5), 2, (0, 1)),
        ((0.1, 0.2), 2, (0, 1)),
    ],
    ids=["the-weakest-go", "of-equals-the-earlier-stays", "all"],
)
def test_the_most_influential_layers_are_kept_in_their_order(scores, keep, kept):
    assert most_influential(scores, keep) == kept


@pytest.mark.parametrize(
    ("layers", "keep", "kept"),
    [(30, 4, (0, 10, 19, 29)), (5, 5, (0, 1, 2, 3, 4)), (7, 1, (0,)), (4, 2, (0, 3))],
)
def test_evenly_spaced_layers_reach_from_the_first_to_the_last(layers, keep, kept):
    assert evenly_spaced(layers, keep) == kept


CHOICES = {
    "most-influential": lambda keep: most_influential((1.0, 2.0), keep),
    "evenly-spaced": lambda keep: evenly_spaced(2, keep),
}


@pytest.mark.parametrize("choose", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("keep", [0, 3])
def test_a_number_of_layers_that_cannot_be_kept_is_an_error(choose, keep):
    with pytest.raises(ValueError, match=f"cannot keep {keep} of 2 layers"):
        choose(keep)


def test_a_pruned_model_is_the_teacher_without_the_other_layers(tiny_llama, tmp_path):
    teacher, student = tiny_llama(layers=4), prune(tiny_llama(layers=4), (0, 2, 3))
    kept = [teacher.model.layers[index].state_dict() for index in (0, 2, 3)]
    for layer, wanted in zip(student.model.layers, kept, strict=True):
        torch.testing.assert_close(layer.state_dict(), wanted)
    assert student.config.num_hidden_layers == 3
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]
    assert not any("layers.3" in name for name in student.state_dict())


def test_a_pruned_model_generates_with_its_cache_what_it_generates_without(tiny_llama):
    student = prune(tiny_llama(layers=4), (1, 3))
    ids = torch.tensor([[2, 3, 4, 5]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert student.generate(ids, **options).tolist() == student.generate(ids, use_cache=False, **options).tolist()


def test_a_pruned_model_can_be_saved_and_loaded_as_any_other(tiny_llama, tmp_path):
    student = prune(tiny_llama(layers=4), (0, 3))
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    ids = torch.tensor([[2, 3, 4, 5]])
    torch.testing.assert_close(again(ids).logits, student(ids).logits)


@pytest.mark.parametrize("keep", [(), (2, 1), (1, 1), (0, 4), (-1, 2)], ids=str)
def test_layers_that_are_not_there_or_out_of_order_are_refused(keep, tiny_llama):
    with pytest.raises(ValueError, match="name each once, in order"):
        prune(tiny_llama(layers=4), keep)


def test_a_model_without_one_stack_of_layers_is_refused(tiny_llama):
    model = tiny_llama()
    model.config.num_hidden_layers = 17
    with pytest.raises(ValueError, match="0 stacks of 17 layers"):
        decoder_layers(model)

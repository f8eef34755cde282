"""What the student is asked to predict, and that it is asked once."""

from __future__ import annotations

import pytest
import torch

from kubedistill_trainer.core.targets import Tokens, Turn, ends, shift, supervise

END, TEXT_END = 90, 91
ENDS = (END, TEXT_END)

CASES = {
    "complete-with-its-end": (Turn([1, 2], [5, 6, END], complete=True), [5, 6, END]),
    "complete-but-the-server-stripped-the-end": (Turn([1, 2], [5, 6], complete=True), [5, 6, END]),
    "ended-by-the-other-end-token": (Turn([1, 2], [5, TEXT_END], complete=True), [5, TEXT_END]),
    "cut-off": (Turn([1, 2], [5, 6], complete=False), [5, 6]),
    "ran-on-past-its-end": (Turn([1, 2], [5, END, 7, END, 8], complete=False), [5, END]),
    "two-ends-in-a-row": (Turn([1, 2], [5, END, TEXT_END], complete=True), [5, END]),
    "empty": (Turn([1, 2], [], complete=True), [END]),
}


@pytest.mark.parametrize(("turn", "targets"), CASES.values(), ids=CASES)
def test_an_answers_end_is_a_target_once_if_complete_and_never_if_cut_off(turn, targets):
    tokens = supervise([turn], ENDS)
    assert tokens.input_ids == (1, 2, *targets)
    assert tokens.target_mask == (False, False, *[True] * len(targets))
    assert tokens.targets == len(targets)


def test_an_end_token_of_the_context_is_no_target():
    """Templates end the user's turn with the same token."""
    tokens = supervise([Turn([1, END], [5, END], complete=True)], ENDS)
    assert ends(tokens, ENDS) == 1
    assert tokens.target_mask == (False, False, True, True)


def test_each_answer_of_a_conversation_ends_once_and_contexts_are_never_targets():
    turns = [Turn([1, 2], [5, END], complete=True), Turn([3, 4], [6, 7, END], complete=True)]
    tokens = supervise(turns, ENDS)
    assert tokens == Tokens((1, 2, 5, END, 3, 4, 6, 7, END), (False, False, True, True, False, False, True, True, True))
    assert ends(tokens, ENDS) == 2


def test_the_logits_before_a_target_predict_it():
    shifted = shift(torch.tensor([10, 11, 12, 13, 14]), torch.tensor([False, False, True, False, True]))
    assert shifted.positions_N.tolist() == [1, 3]
    assert shifted.target_ids_N.tolist() == [12, 14]


def test_nothing_to_predict_is_no_error():
    shifted = shift(torch.tensor([10, 11]), torch.tensor([False, False]))
    assert len(shifted.positions_N) == len(shifted.target_ids_N) == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [([True, False], "the first token cannot be a target"), ([False], "2 tokens but 1 mask entries")],
    ids=["nothing-precedes-it", "another-length"],
)
def test_a_mask_that_makes_no_sense_is_an_error(mask, message):
    with pytest.raises(ValueError, match=message):
        shift(torch.tensor([10, 11]), torch.tensor(mask))


def test_a_deterministic_teacher_is_met_without_an_off_by_one():
    """The teacher says token + 1 always; logits that say so at each position must predict every target."""
    ids = torch.arange(8)
    logits_TV = torch.nn.functional.one_hot(ids + 1, 10).float()
    shifted = shift(ids, ids >= 3)
    assert logits_TV[shifted.positions_N].argmax(-1).tolist() == shifted.target_ids_N.tolist()

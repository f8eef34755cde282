"""What a server's logprobs say, in the form in which they are stored."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_trainer.teachers.logprobs import candidates_of, of_vocabulary, signal_of, signal_of_flat

HALF, QUARTER, EIGHTH = (math.log(1 / 2**n) for n in (1, 2, 3))
ROWS = {
    "written-among-the-k": ({7: HALF, 8: QUARTER}, 8, {7: HALF, 8: QUARTER}),
    "written-beyond-the-k": ({9: EIGHTH, 7: HALF, 8: QUARTER}, 9, {7: HALF, 8: QUARTER}),
    "written-as-likely-as-the-last": ({9: QUARTER, 7: HALF, 8: QUARTER}, 9, {7: HALF, 8: QUARTER}),
}


@pytest.mark.parametrize(("row", "written", "named"), ROWS.values(), ids=ROWS)
def test_a_token_that_was_only_added_for_being_written_is_no_candidate(row, written, named):
    assert candidates_of(row, written, k=2) == named


def test_where_fewer_than_k_are_named_the_written_token_does_not_fill_up():
    signal = signal_of([{7: HALF}], [EIGHTH], k=3)
    assert signal.topk_ids_NK.tolist() == [[7, -1, -1]]
    assert signal.tail_logprob_N.tolist() == pytest.approx([HALF])
    assert signal.target_logprob_N.tolist() == pytest.approx([EIGHTH])


def test_flat_logprobs_are_cut_into_the_written_token_and_the_k_likeliest():
    ids = [7, 7, 8, 9, 7, 8]  # the first was the likeliest; the second, 9, is beyond the two
    logprobs = [HALF, HALF, QUARTER, EIGHTH, HALF, QUARTER]
    signal = signal_of_flat(ids, logprobs, [7, 9], k=2, vocabulary=10)
    assert signal.topk_ids_NK.tolist() == [[7, 8], [7, 8]]
    assert signal.topk_logprobs_NK.tolist() == [pytest.approx([HALF, QUARTER], abs=1e-3)] * 2
    assert signal.tail_logprob_N.tolist() == pytest.approx([QUARTER, QUARTER])
    assert signal.target_logprob_N.tolist() == pytest.approx([HALF, EIGHTH])
    assert [each.dtype.name for each in vars(signal).values()] == ["int32", "float16", "float32", "float32"]


def test_flat_logprobs_say_the_same_as_rows_do():
    rows = [{3: -0.1, 4: -3.0}, {5: -1e-9, 6: -40.0}, {1: -200.0, 2: -200.0}]
    written = [4, 5, 1]
    flat = [[(token, row[token]), *row.items()] for row, token in zip(rows, written, strict=True)]
    ids, logprobs = zip(*(item for row in flat for item in row), strict=True)
    one = signal_of_flat(ids, logprobs, written, k=2, vocabulary=10)
    other = signal_of(rows, [row[token] for row, token in zip(rows, written, strict=True)], k=2)
    for name, values in vars(one).items():
        np.testing.assert_allclose(values, getattr(other, name), rtol=1e-5, err_msg=name)


@given(
    logits=st.lists(st.floats(-8, 8), min_size=6, max_size=6, unique=True),
    written=st.integers(0, 3),
    k=st.integers(1, 5),
)
def test_rows_that_pad_the_vocabulary_are_no_candidates_and_take_no_mass(
    logits: list[float], written: int, k: int
) -> None:
    """Two of six tokens are padding. Where all of it is named, what is stored is the distribution without it."""
    whole = np.array(logits) - np.logaddexp.reduce(logits)
    order = np.argsort(-whole).tolist()
    best = order[:k]
    row = {token: float(whole[token]) for token in {*best, written}}
    flat = [written, *best]
    one = signal_of_flat(flat, [float(whole[token]) for token in flat], [written], k, 4)
    named = of_vocabulary(candidates_of(row, written, k), 4)
    other = signal_of([named], [of_vocabulary(row, 4)[written]], k)
    assert sorted(one.topk_ids_NK[0]) == sorted(other.topk_ids_NK[0])
    assert set(one.topk_ids_NK[0]) <= {-1, 0, 1, 2, 3}
    for ours, theirs in ((one.tail_logprob_N, other.tail_logprob_N), (one.target_logprob_N, other.target_logprob_N)):
        np.testing.assert_allclose(np.exp(ours), np.exp(theirs), atol=1e-5)
    inside = np.array(logits[:4]) - np.logaddexp.reduce(logits[:4])
    if {4, 5} <= set(best):
        assert one.target_logprob_N[0] == pytest.approx(inside[written], abs=1e-3)
        kept = [token for token in best if token < 4]
        left = 1 - np.exp(inside[kept]).sum()
        assert np.exp(one.tail_logprob_N[0]) == pytest.approx(left, abs=1e-4)


FOREIGN = {"of-too-few-tokens": [7], "of-too-many": [7, 9, 9], "of-others": [7, 8]}


@pytest.mark.parametrize("written", FOREIGN.values(), ids=FOREIGN)
def test_scores_of_other_tokens_are_never_stored(written):
    with pytest.raises(ValueError, match="scores"):
        signal_of_flat([7, 7, 8, 9, 7, 8], [HALF, HALF, QUARTER, EIGHTH, HALF, QUARTER], written, k=2, vocabulary=10)

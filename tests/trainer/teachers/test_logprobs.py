"""What a server's logprobs say, in the form in which they are stored."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kubedistill_trainer.teachers.logprobs import candidates_of, signal_of, signal_of_flat

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
    signal = signal_of_flat(ids, logprobs, [7, 9], k=2)
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
    one = signal_of_flat(ids, logprobs, written, k=2)
    other = signal_of(rows, [row[token] for row, token in zip(rows, written, strict=True)], k=2)
    for name, values in vars(one).items():
        np.testing.assert_allclose(values, getattr(other, name), rtol=1e-5, err_msg=name)


FOREIGN = {"of-too-few-tokens": [7], "of-too-many": [7, 9, 9], "of-others": [7, 8]}


@pytest.mark.parametrize("written", FOREIGN.values(), ids=FOREIGN)
def test_scores_of_other_tokens_are_never_stored(written):
    with pytest.raises(ValueError, match="scores"):
        signal_of_flat([7, 7, 8, 9, 7, 8], [HALF, HALF, QUARTER, EIGHTH, HALF, QUARTER], written, k=2)

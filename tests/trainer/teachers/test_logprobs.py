"""What a server's logprobs say, in the form in which they are stored."""

from __future__ import annotations

import math

import pytest

from kubedistill_trainer.teachers.logprobs import candidates_of, signal_of

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

"""The fence: nobody writes after the lease may have run out."""

from __future__ import annotations

import pytest

from kubedistill_operator.cluster.errors import LeadershipLostError
from kubedistill_operator.handlers.leadership import Fence


def test_nobody_leads_before_the_first_renewal() -> None:
    fence = Fence(10, clock=lambda: 0.0)
    assert not fence.held
    with pytest.raises(LeadershipLostError):
        fence.check()


@pytest.mark.parametrize(("now", "held"), [(100.0, True), (109.9, True), (110.0, False), (500.0, False)])
def test_the_lease_counts_from_when_its_renewal_was_sent(now: float, held: bool) -> None:
    fence = Fence(10, clock=lambda: now)
    fence.renewed(sent_at=100.0)
    assert fence.held is held

"""The plan over a job's life, on the cluster in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kubedistill_api.status import Phase
from kubedistill_operator.core.settings import Settings

Kit = Mapping[str, Any]


async def test_a_job_runs_from_nothing_to_a_model(kit: Kit, settings: Settings) -> None:
    cluster = kit["MemoryCluster"](kit["a_job"]())
    status = await kit["until"](cluster, settings)
    assert status.phase is Phase.SUCCEEDED
    assert status.result is not None
    assert status.result.model_uri == "s3://acme/models/small"
    assert cluster.made == [
        "small-prepare-1",
        "small-generate-big-1",
        "small-train-1",
        "small-evaluate-1",
        "small-publish-1",
    ]

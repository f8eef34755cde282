"""The provisioner's decision: which volumes to make and which to remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rig import provisioner
from rig.provisioner import plan, volume_for

ROOT = Path("/volumes")


def a_claim(*, storage_class: str = "standard", node: str | None = "n1", volume: str = "") -> dict[str, Any]:
    """A claim of 5Gi as the scheduler leaves it."""
    annotations = {"volume.kubernetes.io/selected-node": node} if node else {}
    return {
        "metadata": {"name": "data", "namespace": "here", "uid": "u1", "annotations": annotations},
        "spec": {
            "storageClassName": storage_class,
            "volumeName": volume,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "5Gi"}},
        },
    }


def a_volume(phase: str, *, by: str = provisioner.NAME) -> dict[str, Any]:
    """The volume of `a_claim` in some phase of its life."""
    volume = volume_for(a_claim(), ROOT)
    volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"] = by
    return {**volume, "status": {"phase": phase}}


def test_a_claim_that_has_a_node_gets_a_volume_of_its_size_on_it() -> None:
    [volume] = plan([a_claim()], [], ROOT).create
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}
    assert volume["spec"]["local"] == {"path": "/volumes/pvc-u1"}
    assert volume["spec"]["claimRef"]["uid"] == "u1"
    [term] = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"]
    assert term["matchExpressions"][0]["values"] == ["n1"]


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(a_claim(node=None), id="no node chosen yet"),
        pytest.param(a_claim(storage_class="other"), id="another class"),
        pytest.param(a_claim(volume="pvc-u1"), id="bound already"),
    ],
)
def test_a_claim_gets_nothing(claim: dict[str, Any]) -> None:
    assert plan([claim], [], ROOT).create == []


def test_a_volume_is_made_once() -> None:
    assert plan([a_claim()], [a_volume("Available")], ROOT).create == []


@pytest.mark.parametrize(
    ("volume", "count"),
    [
        pytest.param(a_volume("Released"), 1, id="released"),
        pytest.param(a_volume("Bound"), 0, id="in use"),
        pytest.param(a_volume("Released", by="somebody"), 0, id="somebody else's"),
    ],
)
def test_only_our_own_released_volumes_are_deleted(volume: dict[str, Any], count: int) -> None:
    assert len(plan([], [volume], ROOT).delete) == count

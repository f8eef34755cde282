"""What keeps a child from being made: its name is taken, or the API server refuses it. Told, and tried again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from kubedistill_operator.core.conditions import Reason
from kubedistill_operator.core.plans import Manifest
from kubedistill_operator.core.retries import backoff
from kubedistill_operator.core.seen import Refusal
from kubedistill_operator.core.times import since
from kubedistill_operator.core.world import World

NAME_TAKEN_PATIENCE = timedelta(seconds=30)


@dataclass(frozen=True)
class Obstacle:
    """Why a child is not asked for now."""

    reason: str
    message: str
    again: timedelta
    """When to look again."""
    overdue: bool = False
    """It has stood for longer than `runPolicy.pendingDeadlineSeconds`."""


def obstacle(world: World, manifests: Iterable[Manifest]) -> Obstacle | None:
    """What stands in the way of these children; None: ask for them (again)."""
    names = [f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in manifests]
    taken = next((name for name in names if name in world.seen.foreign), None)
    if taken is not None:
        text = f"{taken} exists and belongs to somebody else: delete it, or give this DistillationJob another name."
        return Obstacle(Reason.NAME_TAKEN, text, NAME_TAKEN_PATIENCE)
    return next((found for r in world.seen.refused if r.child in names and (found := _refusal(world, r))), None)


def reason_of_refusal(sentence: str) -> Reason:
    """A full quota passes when something else ends; it has a reason of its own, since people wait for it."""
    return Reason.QUOTA_EXCEEDED if "exceeded quota" in sentence else Reason.REFUSED


def refused_pods(whose: str, sentence: str) -> str:
    """What to tell of pods that a controller asks for again and again."""
    return f"The API server refuses the pods of {whose} and is asked again: {sentence}"


def _refusal(world: World, refusal: Refusal) -> Obstacle | None:
    """It stands until the next try is due, and then until the API server has answered that."""
    limit = world.job.spec.run_policy.pending_deadline_seconds
    overdue = limit is not None and since(refusal.since, world.now) > timedelta(seconds=limit)
    ahead = refusal.last + backoff(world.settings, refusal.times - 1) - world.now
    if ahead <= timedelta(0) and not overdue:
        return None
    how = "too long (runPolicy.pendingDeadlineSeconds)" if overdue else "and is asked again"
    text = f"The API server refuses {refusal.child} {how}: {refusal.message}"
    return Obstacle(reason_of_refusal(refusal.message), text, ahead, overdue)

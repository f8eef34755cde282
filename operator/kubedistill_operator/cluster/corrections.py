"""What the watches missed and an audit found: objects as they were read, until a watch brings something newer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from kubedistill_operator.cluster.kinds import Raw, version


class Corrections:
    """By kind and uid; None stands for an object that is gone, and uids never come back."""

    def __init__(self) -> None:
        self._noted: dict[str, dict[str, Raw | None]] = {}

    def note(self, kind: str, uid: str, raw: Raw | None) -> None:
        """The object was read so; None: it was not there."""
        self._noted.setdefault(kind, {})[uid] = raw

    def forget(self, kind: str, uid: str) -> None:
        """A watch has told of its end."""
        self._noted.get(kind, {}).pop(uid, None)

    def applied(self, kind: str, copies: Iterable[Raw], wanted: Callable[[Raw], bool]) -> list[Raw]:
        """These copies as they ought to be, and those that are `wanted` and never came."""
        found = {raw["metadata"]["uid"]: raw for raw in copies}
        for uid, raw in self._noted.get(kind, {}).items():
            if raw is None:
                found.pop(uid, None)
            elif wanted(raw) and (uid not in found or version(found[uid]) < version(raw)):
                found[uid] = raw
        return list(found.values())

    def settle(self, kind: str, versions: Mapping[str, int]) -> None:
        """Drop what the copies, of these versions by uid, have caught up with."""
        self._noted[kind] = {
            uid: raw
            for uid, raw in self._noted.get(kind, {}).items()
            if (uid in versions if raw is None else versions.get(uid, -1) < version(raw))
        }

"""Ports, chosen once per rig: the usual number where it is free, any free one where it is not."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping

from rig.paths import Layout


def choose(layout: Layout, usual: Mapping[str, int]) -> dict[str, int]:
    """The port of each purpose; the same answer for the life of the rig. Usual number 0: any."""
    record = layout.root / "ports.json"
    chosen: dict[str, int] = json.loads(record.read_text()) if record.exists() else {}
    missing = {purpose: number for purpose, number in usual.items() if purpose not in chosen}
    if missing:
        chosen |= free(missing)
        record.write_text(json.dumps(chosen))
    return chosen


def free(usual: Mapping[str, int]) -> dict[str, int]:
    """A free port for each purpose. All are held open until the last is found, so no two are equal."""
    held: list[socket.socket] = []
    try:
        chosen = {}
        for purpose, number in usual.items():
            held.append(_bind(number) or _bind_any())
            chosen[purpose] = int(held[-1].getsockname()[1])
        return chosen
    finally:
        for one in held:
            one.close()


def _bind(number: int) -> socket.socket | None:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        one.bind(("0.0.0.0", number))
    except OSError:
        one.close()
        return None
    return one


def _bind_any() -> socket.socket:
    one = _bind(0)
    if one is None:
        raise OSError("this machine has no free port")
    return one

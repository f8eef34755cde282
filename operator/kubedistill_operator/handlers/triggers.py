"""kopf at its low level: watches, indices, and a key into the queue for every event. Nothing is decided or written.

kopf's indices are the copies that the passes read. Handlers run only after every index is filled, so the first pass
after a start sees all that is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from kubedistill_api.base import GROUP, KIND, PLURAL, VERSION
from kubedistill_api.identity import LABEL_JOB, LABEL_JOB_UID
from kubedistill_operator.cluster.corrections import Corrections
from kubedistill_operator.cluster.kinds import Raw, labels, version
from kubedistill_operator.handlers.passes import Key
from kubedistill_operator.handlers.watches import session

CHILDREN: Mapping[str, tuple[str, str, str]] = {
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
    "Deployment": ("apps", "v1", "deployments"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
}
"""As in `cluster.caches.WATCHED`: group, version, plural."""

LOGIN_PAUSE_SECONDS = 5.0
JOBS_INDEX = "distillation_jobs"


class IndexCaches:
    """`cluster.caches.Caches` on kopf's indices, corrected by what an audit found that they lack."""

    def __init__(self) -> None:
        self._indices: Mapping[str, Mapping[Any, Iterable[Raw]]] = {}
        self._corrections = Corrections()
        self.full = False
        """Whether the watches have brought all that was there when they began: kopf calls no handler before."""

    def bind(self, indices: Mapping[str, Mapping[Any, Iterable[Raw]]]) -> None:
        """Read from these, by the index's name."""
        self._indices = indices

    def job(self, namespace: str, name: str) -> Raw | None:
        """The DistillationJob, or None where there is none."""

        def is_it(raw: Raw) -> bool:
            return bool(raw["metadata"]["namespace"] == namespace and raw["metadata"]["name"] == name)

        found = self._corrections.applied(KIND, self._of(JOBS_INDEX, (namespace, name)), is_it)
        # Two where the end of the first, of the same name, was missed.
        return max(found, key=version, default=None)

    def jobs(self) -> Iterable[Raw]:
        """All DistillationJobs."""
        return self.known(KIND).values()

    def children(self, kind: str, job_uid: str) -> Iterable[Raw]:
        """The children of one kind that carry the uid of this DistillationJob."""
        return self._corrections.applied(
            kind, self._of(kind, job_uid), lambda raw: labels(raw).get(LABEL_JOB_UID) == job_uid
        )

    def versions(self, kind: str) -> dict[str, int]:
        """The resourceVersion of every copy of one kind that the watches brought, by uid."""
        return {raw["metadata"]["uid"]: version(raw) for raw in self._all(kind)}

    def known(self, kind: str) -> dict[str, Raw]:
        """Every object of one kind, by uid, corrected."""
        found = self._corrections.applied(kind, self._all(kind), lambda raw: True)
        return {raw["metadata"]["uid"]: raw for raw in found}

    def newest(self, index: str, key: Any, raw: Raw) -> Raw:
        """The object, or our copy of it: a watch that begins anew may tell once more what was before."""
        same = [known for known in self._of(index, key) if known["metadata"]["uid"] == raw["metadata"]["uid"]]
        return max([raw, *same], key=version)

    def correct(self, kind: str, uid: str, raw: Raw | None) -> None:
        """The object was read so; None: it was not there."""
        self._corrections.note(kind, uid, raw)

    def ended(self, kind: str, uid: str) -> None:
        """A watch has told of the object's end."""
        self._corrections.forget(kind, uid)

    def settle(self, kind: str) -> None:
        """Drop corrections that are needed no more."""
        self._corrections.settle(kind, self.versions(kind))

    def _all(self, kind: str) -> list[Raw]:
        index = self._indices.get(JOBS_INDEX if kind == KIND else kind, {})
        return [raw for key in list(index) for raw in index[key]]

    def _of(self, index: str, key: Any) -> Iterable[Raw]:
        return self._indices.get(index, {}).get(key, ())


def registry(
    caches: IndexCaches, enqueue: Callable[[Key], None], configuration: Configuration, forget: Callable[[str], None]
) -> kopf.OperatorRegistry:
    """Every handler we have."""
    found = kopf.OperatorRegistry()

    async def configure(settings: kopf.OperatorSettings, **indices: Any) -> None:
        _configure(settings)
        caches.bind({name: indices[name] for name in (JOBS_INDEX, *CHILDREN)})

    asked = float("-inf")

    async def login(**_: Any) -> kopf.AiohttpSession:
        """Asked again after each 401; a credential that stays refused must not be tried without pause."""
        nonlocal asked
        await asyncio.sleep(max(0.0, asked + LOGIN_PAUSE_SECONDS - time.monotonic()))
        asked = time.monotonic()
        return await session(configuration)

    def index_job(body: kopf.Body, namespace: str, name: str, **_: Any) -> dict[tuple[str, str], Raw]:
        return {(namespace, name): caches.newest(JOBS_INDEX, (namespace, name), dict(body))}

    def job_changed(event: Mapping[str, Any], namespace: str, name: str, uid: str, **_: Any) -> None:
        caches.full = True
        if event["type"] == "DELETED":
            caches.ended(KIND, uid)
            forget(uid)
        enqueue(Key(namespace, name))

    def index_of(kind: str) -> Callable[..., dict[str, Raw]]:
        def index_child(body: kopf.Body, **_: Any) -> dict[str, Raw]:
            raw = dict(body)
            job_uid = labels(raw)[LABEL_JOB_UID]
            return {job_uid: caches.newest(kind, job_uid, raw)}

        return index_child

    def child_changed(event: Mapping[str, Any], body: kopf.Body, namespace: str, uid: str, **_: Any) -> None:
        caches.full = True
        if event["type"] == "DELETED":
            for kind in CHILDREN:
                caches.ended(kind, uid)
        if name := labels(dict(body)).get(LABEL_JOB):
            enqueue(Key(namespace, name))

    kopf.on.startup(registry=found)(configure)
    kopf.on.login(registry=found)(login)
    kopf.index(GROUP, VERSION, PLURAL, id=JOBS_INDEX, registry=found)(index_job)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=found)(job_changed)
    for kind, resource in CHILDREN.items():
        ours = {LABEL_JOB_UID: kopf.PRESENT}
        kopf.index(*resource, labels=ours, id=kind, registry=found)(index_of(kind))
        kopf.on.event(*resource, labels=ours, id=f"{kind}-changed", registry=found)(child_changed)
    return found


def _configure(settings: kopf.OperatorSettings) -> None:
    settings.posting.enabled = False
    settings.peering.standalone = True
    # CRDs and namespaces are nothing we may watch: one role less.
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    # kopf gives up on a request after its backoffs; a watch then starts over (see `watches`).
    settings.networking.error_backoffs = [0.5, 1, 2, 4, 8]
    settings.networking.request_timeout = 60
    settings.queueing.idle_timeout = 1
    for resource in CHILDREN.values():
        settings.watching.label_selectors[resource] = LABEL_JOB_UID

"""kopf at its low level: watches, indices, and a key into the queue for every event. Nothing is decided or written.

kopf's indices are the copies that the passes read. Handlers run only after every index is filled, so the first pass
after a start sees all that is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from kubedistill_api.base import GROUP, KIND, PLURAL, VERSION
from kubedistill_api.identity import LABEL_JOB, LABEL_JOB_UID
from kubedistill_operator.cluster.kinds import Raw, labels
from kubedistill_operator.handlers.passes import Key

CHILDREN: Mapping[str, tuple[str, str, str]] = {
    "Job": ("batch", "v1", "jobs"),
    "Pod": ("", "v1", "pods"),
    "Deployment": ("apps", "v1", "deployments"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
}
"""As in `cluster.caches.WATCHED`: group, version, plural."""

JOBS_INDEX = "distillation_jobs"


class IndexCaches:
    """`cluster.caches.Caches` on kopf's indices."""

    def __init__(self) -> None:
        self._indices: Mapping[str, Mapping[Any, Iterable[Raw]]] = {}

    def bind(self, indices: Mapping[str, Mapping[Any, Iterable[Raw]]]) -> None:
        """Read from these, by the index's name."""
        self._indices = indices

    def job(self, namespace: str, name: str) -> Raw | None:
        """The DistillationJob, or None where there is none."""
        return next(iter(self._of(JOBS_INDEX, (namespace, name))), None)

    def jobs(self) -> Iterable[Raw]:
        """All DistillationJobs."""
        index = self._indices.get(JOBS_INDEX, {})
        return [raw for key in list(index) for raw in index[key]]

    def children(self, kind: str, job_uid: str) -> Iterable[Raw]:
        """The children of one kind that carry the uid of this DistillationJob."""
        return list(self._of(kind, job_uid))

    def versions(self, kind: str) -> dict[str, str]:
        """The resourceVersion of every copy of one kind, by uid."""
        index = self._indices.get(JOBS_INDEX if kind == KIND else kind, {})
        found = [raw["metadata"] for key in list(index) for raw in index[key]]
        return {metadata["uid"]: metadata["resourceVersion"] for metadata in found}

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

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection_info(configuration)

    def index_job(body: kopf.Body, namespace: str, name: str, **_: Any) -> dict[tuple[str, str], Raw]:
        return {(namespace, name): dict(body)}

    def job_changed(event: Mapping[str, Any], namespace: str, name: str, uid: str, **_: Any) -> None:
        if event["type"] == "DELETED":
            forget(uid)
        enqueue(Key(namespace, name))

    def index_child(body: kopf.Body, **_: Any) -> dict[str, Raw]:
        raw = dict(body)
        return {labels(raw)[LABEL_JOB_UID]: raw}

    def child_changed(body: kopf.Body, namespace: str, **_: Any) -> None:
        if name := labels(dict(body)).get(LABEL_JOB):
            enqueue(Key(namespace, name))

    kopf.on.startup(registry=found)(configure)
    kopf.on.login(registry=found)(login)
    kopf.index(GROUP, VERSION, PLURAL, id=JOBS_INDEX, registry=found)(index_job)
    kopf.on.event(GROUP, VERSION, PLURAL, registry=found)(job_changed)
    for kind, resource in CHILDREN.items():
        ours = {LABEL_JOB_UID: kopf.PRESENT}
        kopf.index(*resource, labels=ours, id=kind, registry=found)(index_child)
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
    # kopf gives up on a request after its backoffs; a watch then starts over.
    settings.networking.error_backoffs = [0.5, 1, 2, 4, 8]
    settings.networking.request_timeout = 60
    settings.queueing.idle_timeout = 1
    for group, version, plural in CHILDREN.values():
        settings.watching.label_selectors[group, version, plural] = LABEL_JOB_UID


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """The client's credentials in kopf's form; a service account's token as it is now."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=header.split(" ", 1)[-1] if header else None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )

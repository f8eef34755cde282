"""What the environment tells the operator: the only module that reads it."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from kubedistill_operator.core.settings import Settings

PREFIX = "KUBEDISTILL_"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_SETTINGS = {
    "TRAINER_IMAGE": "trainer_image",
    "TRAINER_VLLM_IMAGE": "trainer_vllm_image",
    "VLLM_IMAGE": "vllm_image",
    "IMAGE_PULL_POLICY": "image_pull_policy",
    "STAGE_TTL_SECONDS": "stage_ttl_seconds",
    "GENERATE_DEADLINE_SECONDS": "generate_deadline_seconds",
    "TRAIN_GRACE_SECONDS": "train_grace_seconds",
    "RETRY_BASE_SECONDS": "retry_base_seconds",
    "RETRY_LIMIT_SECONDS": "retry_limit_seconds",
    "PROGRESS_SECONDS": "progress_seconds",
}

HELP = """\
KUBEDISTILL_NAMESPACES                 comma-separated namespaces to serve; empty: the whole cluster
KUBEDISTILL_TRAINER_IMAGE              the image of the stages
KUBEDISTILL_TRAINER_VLLM_IMAGE         the same with vLLM in it, for teachers with batch.engine: VLLM
KUBEDISTILL_VLLM_IMAGE                 the image of teachers whose spec names none
KUBEDISTILL_IMAGE_PULL_POLICY          of all: IfNotPresent, Always or Never
KUBEDISTILL_STAGE_TTL_SECONDS          a finished Job, and the teacher it owns, are removed after so long
KUBEDISTILL_GENERATE_DEADLINE_SECONDS  the longest generation where the spec gives no deadline
KUBEDISTILL_TRAIN_GRACE_SECONDS        how long a training may take to write its checkpoint when it is stopped
KUBEDISTILL_RETRY_BASE_SECONDS         the first pause between attempts; it doubles …
KUBEDISTILL_RETRY_LIMIT_SECONDS        … up to this one
KUBEDISTILL_PROGRESS_SECONDS           progress is pulled and written at most this often for each job
KUBEDISTILL_LEADER_ELECTION            true or false
KUBEDISTILL_LEASE_NAMESPACE            where the Lease is; default: the pod's own namespace
KUBEDISTILL_LEASE_SECONDS              a leader that does not renew for so long is replaced
KUBEDISTILL_PORT                       of /healthz, /readyz and /metrics
KUBEDISTILL_AUDIT_SECONDS              what the watches brought is compared with the API server this often
KUBEDISTILL_WORKERS                    passes at the same time
KUBEDISTILL_METRICS_JOBS               at most so many jobs have metrics of their own
KUBEDISTILL_LOG_LEVEL                  DEBUG, INFO, WARNING or ERROR
KUBECONFIG                             reach the cluster from outside; default in a pod: its service account
"""


class InvalidEnvironmentError(Exception):
    """A variable that cannot be understood; the message names it."""


@dataclass(frozen=True)
class Lease:
    """How the leader is found."""

    enabled: bool = True
    name: str = "kubedistill-operator"
    namespace: str = "default"
    identity: str = ""
    """Unique to this process."""
    seconds: int = 15
    """A leader that does not renew for so long is replaced."""


@dataclass(frozen=True)
class Installation:
    """One operator process."""

    settings: Settings = field(default_factory=Settings)
    namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    lease: Lease = Lease()
    port: int = 8080
    """0: any free one."""
    audit_seconds: int = 60
    """What the watches brought is compared with the API server this often."""
    workers: int = 8
    metrics_jobs: int = 1000
    log_level: str = "INFO"


def read_installation(environment: Mapping[str, str] = os.environ) -> Installation:
    """The installation that the variables describe; unset and empty ones have defaults.

    Raises:
        InvalidEnvironmentError: a number is none, or a switch is neither true nor false.
    """
    given = {key.removeprefix(PREFIX): value for key, value in environment.items() if key.startswith(PREFIX) and value}
    types = {item.name: type(getattr(Settings(), item.name)) for item in fields(Settings)}
    settings = {
        attribute: _number(given, name, 0) if types[attribute] is int else given[name]
        for name, attribute in _SETTINGS.items()
        if name in given
    }
    return Installation(
        settings=Settings(**settings),  # type: ignore[arg-type]  # the types come from its own fields
        namespaces=tuple(name.strip() for name in given.get("NAMESPACES", "").split(",") if name.strip()),
        lease=Lease(
            enabled=_switch(given, "LEADER_ELECTION", True),
            name=given.get("LEASE_NAME", Lease.name),
            namespace=given.get("LEASE_NAMESPACE") or _own_namespace(),
            identity=f"{socket.gethostname()}_{uuid.uuid4()}",
            seconds=_number(given, "LEASE_SECONDS", Lease.seconds),
        ),
        port=_number(given, "PORT", Installation.port),
        audit_seconds=_audit_seconds(given),
        workers=_number(given, "WORKERS", Installation.workers),
        metrics_jobs=_number(given, "METRICS_JOBS", Installation.metrics_jobs),
        log_level=given.get("LOG_LEVEL", Installation.log_level).upper(),
    )


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    if not text.isdecimal():
        raise InvalidEnvironmentError(f"{PREFIX}{name} is a whole number, not {text!r}")
    return int(text)


def _audit_seconds(given: Mapping[str, str]) -> int:
    """A watch counts as dead after what three audits would have found."""
    seconds = _number(given, "AUDIT_SECONDS", Installation.audit_seconds)
    if not 1 <= seconds <= Installation.audit_seconds:
        raise InvalidEnvironmentError(
            f"{PREFIX}AUDIT_SECONDS is a number from 1 to {Installation.audit_seconds}, not {seconds}"
        )
    return seconds


def _switch(given: Mapping[str, str], name: str, default: bool) -> bool:
    text = given.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise InvalidEnvironmentError(f"{PREFIX}{name} is true or false, not {text!r}")
    return text == "true"


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else Lease.namespace

"""What every cluster has before its first user: a DNS Service and a default StorageClass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rig import access, provisioner
from rig.control_plane import DOMAIN, ControlPlane
from rig.network import NODE_ADDRESS

DNS_ADDRESS = "10.96.0.10"
_DNS_USER = "kubedistill-rig:coredns"
_PORTS = [{"name": f"dns-{kind.lower()}", "port": 53, "protocol": kind} for kind in ("UDP", "TCP")]


def apply(plane: ControlPlane) -> None:
    """Apply them all, server side."""
    manifests = {"apiVersion": "v1", "kind": "List", "items": [*_dns(), _storage_class()]}
    kubeconfig: Path = plane.layout.kubeconfig
    access.kubectl(kubeconfig, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(manifests))


def corefile(plane: ControlPlane) -> str:
    """The configuration of CoreDNS, which runs as a process of the node. It knows the cluster and nothing else."""
    kubeconfig = plane.layout.configuration / "coredns.kubeconfig"
    # Two blocks, because within one CoreDNS asks `template` before `kubernetes`, whatever the order here.
    return f"""\
{DOMAIN}:53 in-addr.arpa:53 {{
    bind {NODE_ADDRESS}
    errors
    health 127.0.0.1:{plane.ports["coredns-health"]}
    ready 127.0.0.1:{plane.ports["coredns-ready"]}
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 5
    }}
}}
.:53 {{
    bind {NODE_ADDRESS}
    errors
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def _dns() -> list[dict[str, Any]]:
    """The Service pods know, without a selector: its one endpoint is the process on the node."""
    labels = {"k8s-app": "kube-dns", "kubernetes.io/service-name": "kube-dns"}
    readers = [
        {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _DNS_USER}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": _DNS_USER}
    return [
        _object("v1", "Service", "kube-dns", labels, spec={"clusterIP": DNS_ADDRESS, "ports": _PORTS}),
        _object(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "kube-dns",
            labels,
            addressType="IPv4",
            endpoints=[{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
            ports=_PORTS,
        ),
        _object("rbac.authorization.k8s.io/v1", "ClusterRole", _DNS_USER, {}, rules=readers),
        _object("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", _DNS_USER, {}, roleRef=role, subjects=[user]),
    ]


def _storage_class() -> dict[str, Any]:
    manifest = _object(
        "storage.k8s.io/v1",
        "StorageClass",
        provisioner.STORAGE_CLASS,
        {},
        provisioner=provisioner.NAME,
        # So that a volume is made on the node where its pod will run.
        volumeBindingMode="WaitForFirstConsumer",
        reclaimPolicy="Delete",
    )
    manifest["metadata"]["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    return manifest


def _object(api: str, kind: str, name: str, labels: dict[str, str], **rest: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": labels}
    if kind in ("Service", "EndpointSlice"):
        metadata["namespace"] = "kube-system"
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **rest}

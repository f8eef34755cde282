"""etcd, the API server and the controllers: what a Kubernetes is before it has a node."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from rig import access, binaries, certificates, ports, processes
from rig.certificates import Leaf
from rig.paths import Layout
from rig.progress import say

SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
POD_RANGE = "10.244.0.0/16"
NODE_NAME = "kubedistill-rig"
DOMAIN = "cluster.local"


@dataclass(frozen=True)
class ControlPlane:
    """One control plane: where its files are, the address it serves on, its ports by purpose."""

    layout: Layout
    address: str
    ports: dict[str, int]
    owned: bool = False
    """Its processes end with the process that started them: for the fixture of a test session."""

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['api']}"

    @property
    def with_node(self) -> bool:
        """Whether pods must reach it; a loopback address cannot be the endpoint of a Service."""
        return not self.address.startswith("127.")


# Usual numbers of the full rig; the control plane alone takes whatever is free.
FULL_PORTS = {
    "etcd": 12379,
    "etcd-peer": 12380,
    "api": 6443,
    "controller-manager": 10257,
    "scheduler": 10259,
    "kubelet": 10250,
    "kube-proxy-health": 10256,
    "kube-proxy-metrics": 10249,
    "coredns-health": 10248,
    "coredns-ready": 10247,
}
BARE_PORTS = dict.fromkeys(("etcd", "etcd-peer", "api", "controller-manager"), 0)


def beside(layout: Layout, *, owned: bool = False) -> ControlPlane:
    """A control plane of its own, on loopback, with any free ports."""
    layout.make()
    return ControlPlane(layout, "127.0.0.1", ports.choose(layout, BARE_PORTS), owned)


def up(plane: ControlPlane) -> None:
    """Start what does not run yet and wait until the API server is ready. Twice is harmless."""
    binaries.build_programs(binaries.CONTROL_PLANE)
    certificates.ensure(
        plane.layout.certificates, _leaves(plane), Leaf("front-proxy", "front-proxy"), dt.datetime.now(dt.UTC)
    )
    _start(plane, "etcd", _etcd(plane))
    _start(plane, "kube-apiserver", _api_server(plane))
    processes.wait_until(plane.layout, "kube-apiserver", lambda: access.answers(f"{plane.server}/readyz", plane.layout))
    access.write_kubeconfig(plane.layout, plane.layout.kubeconfig, plane.server, "admin")
    _start_with_kubeconfig(plane, "kube-controller-manager", _controller_manager(plane))
    if plane.with_node:
        _start_with_kubeconfig(plane, "kube-scheduler", _scheduler(plane))
    say(f"API server ready at {plane.server}")


def down(layout: Layout) -> None:
    """Stop the control plane's processes, the API server's clients first."""
    for name in ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
        processes.stop(layout, name)


def kubeconfig_flag(plane: ControlPlane, user: str) -> str:
    """The flag that makes a component act as `user`; writes the file."""
    path = plane.layout.configuration / f"{user}.kubeconfig"
    access.write_kubeconfig(plane.layout, path, plane.server, user)
    return f"--kubeconfig={path}"


def _start(plane: ControlPlane, name: str, flags: list[str]) -> None:
    processes.start(plane.layout, name, [binaries.path(name), *flags], owned=plane.owned)


def _start_with_kubeconfig(plane: ControlPlane, name: str, flags: list[str]) -> None:
    own = kubeconfig_flag(plane, name)
    delegated = [own.replace("--kubeconfig", f"--{kind}-kubeconfig") for kind in ("authentication", "authorization")]
    _start(plane, name, [own, *delegated, *flags])


def _leaves(plane: ControlPlane) -> list[Leaf]:
    """Who holds a certificate. Users and groups are those that Kubernetes' built-in RBAC expects."""
    api_names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{DOMAIN}")
    addresses = tuple(dict.fromkeys(("localhost", "127.0.0.1", API_SERVICE_ADDRESS, plane.address)))
    node = f"system:node:{NODE_NAME}"
    return [
        Leaf("kube-apiserver", "kube-apiserver", names=(*api_names, *addresses)),
        Leaf("kube-apiserver-to-kubelet", "kube-apiserver-to-kubelet", "system:masters"),
        Leaf("admin", "kubernetes-admin", "system:masters"),
        Leaf("kube-controller-manager", "system:kube-controller-manager", names=("localhost", "127.0.0.1")),
        Leaf("kube-scheduler", "system:kube-scheduler", names=("localhost", "127.0.0.1")),
        Leaf("kubelet", node, "system:nodes", names=(NODE_NAME, plane.address)),
        Leaf("kube-proxy", "system:kube-proxy"),
        Leaf("coredns", "kubedistill-rig:coredns"),
        Leaf("provisioner", "kubedistill-rig:provisioner", "system:masters"),
    ]


def _etcd(plane: ControlPlane) -> list[str]:
    client = f"http://127.0.0.1:{plane.ports['etcd']}"
    peer = f"http://127.0.0.1:{plane.ports['etcd-peer']}"
    return [
        f"--data-dir={plane.layout.root / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        # A rig that loses power is made again: nothing here is worth a disk flush.
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _api_server(plane: ControlPlane) -> list[str]:
    folder = plane.layout.certificates
    flags = [
        f"--etcd-servers=http://127.0.0.1:{plane.ports['etcd']}",
        f"--bind-address={plane.address}",
        f"--advertise-address={plane.address}",
        f"--secure-port={plane.ports['api']}",
        f"--tls-cert-file={folder / 'kube-apiserver.crt'}",
        f"--tls-private-key-file={folder / 'kube-apiserver.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--kubelet-certificate-authority={folder / 'ca.crt'}",
        f"--kubelet-client-certificate={folder / 'kube-apiserver-to-kubelet.crt'}",
        f"--kubelet-client-key={folder / 'kube-apiserver-to-kubelet.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={folder / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder / 'front-proxy.crt'}",
        f"--proxy-client-key-file={folder / 'front-proxy.key'}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
        f"--service-account-key-file={folder / 'service-accounts.key'}",
        f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]
    return flags if plane.with_node else [*flags, "--endpoint-reconciler-type=none"]


def _controller_manager(plane: ControlPlane) -> list[str]:
    folder = plane.layout.certificates
    return [
        "--bind-address=127.0.0.1",
        f"--secure-port={plane.ports['controller-manager']}",
        f"--root-ca-file={folder / 'ca.crt'}",
        f"--service-account-private-key-file={folder / 'service-accounts.key'}",
        "--use-service-account-credentials=true",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={POD_RANGE}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--leader-elect=false",
    ]


def _scheduler(plane: ControlPlane) -> list[str]:
    return ["--bind-address=127.0.0.1", f"--secure-port={plane.ports['scheduler']}", "--leader-elect=false"]

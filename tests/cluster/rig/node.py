"""The one node: containerd of its own, kubelet, kube-proxy, CoreDNS, the volume provisioner."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from rig import access, addons, binaries, images, network, processes, provisioner
from rig.commands import run, succeeds
from rig.control_plane import DOMAIN, NODE_NAME, POD_RANGE, ControlPlane, kubeconfig_flag
from rig.errors import RigError
from rig.network import NODE_ADDRESS
from rig.paths import Layout
from rig.progress import say

# Debian's packages; the program that tells whether each is there.
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "containernetworking-plugins": f"{network.CNI_PLUGINS}/ptp",
    "iptables": "iptables",
    "iproute2": "ip",
    "conntrack": "conntrack",
    "socat": "socat",
}
_CGROUPS = Path("/sys/fs/cgroup")


def install_packages() -> None:
    """Install what is missing from Debian."""
    missing = [package for package, program in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    say(f"installing {', '.join(missing)}")
    if shutil.which("apt-get") is None:
        raise RigError(f"this machine has no apt-get: install {', '.join(missing)} yourself")
    run("apt-get", "update", "-q")
    run("apt-get", "install", "-qy", "--no-install-recommends", *missing)


def up(plane: ControlPlane) -> None:
    """Start what does not run yet and wait until the node is Ready and names resolve. Twice is harmless."""
    layout = plane.layout
    binaries.build_programs(binaries.NODE)
    _make_cgroup(layout)
    _start_containerd(layout)
    if processes.find(layout, "kubelet") is None:
        _remove_pods(layout)  # of a rig that was not taken down: its images are ours, its pods are nobody's
    images.load_sandbox(layout)
    _start_kubelet(plane)
    _start_kube_proxy(plane)
    addons.apply(plane)
    _start_coredns(plane)
    processes.start(
        layout,
        "provisioner",
        [
            sys.executable,
            provisioner.__file__,
            plane.address,
            str(plane.ports["api"]),
            layout.certificates,
            layout.volumes,
        ],
    )
    _wait_ready(plane)
    say(f"node {NODE_NAME} is Ready")


def down(layout: Layout) -> None:
    """Stop every pod and process of the node, unmount what they mounted, remove its cgroups. Twice is harmless."""
    processes.stop(layout, "kubelet")
    _remove_pods(layout)
    for name in ("provisioner", "coredns", "kube-proxy", "containerd"):
        processes.stop(layout, name)
    for process in processes.scan(lambda line: str(layout.containerd_socket) in line):
        processes.end(process, grace_seconds=1)
    _remove_cgroups(layout)
    _unmount_below(layout.root)
    _remove_log_links(layout)
    network.down(layout)


def _start_containerd(layout: Layout) -> None:
    path = layout.configure("containerd.toml", _containerd_configuration(layout))
    processes.start(layout, "containerd", ["containerd", f"--config={path}"])
    processes.wait_until(
        layout, "containerd", lambda: succeeds("ctr", f"--address={layout.containerd_socket}", "version")
    )


def _start_kubelet(plane: ControlPlane) -> None:
    path = plane.layout.configure("kubelet.json", json.dumps(_kubelet_configuration(plane), indent=1))
    flags = [
        f"--config={path}",
        kubeconfig_flag(plane, "kubelet"),
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={NODE_ADDRESS}",
        f"--root-dir={plane.layout.root / 'kubelet'}",
        f"--cert-dir={plane.layout.certificates}",
    ]
    processes.start(plane.layout, "kubelet", [binaries.path("kubelet"), *flags])


def _start_kube_proxy(plane: ControlPlane) -> None:
    kubeconfig = kubeconfig_flag(plane, "kube-proxy").partition("=")[2]
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": kubeconfig},
        "hostnameOverride": NODE_NAME,
        "clusterCIDR": POD_RANGE,
        "bindAddress": NODE_ADDRESS,
        "healthzBindAddress": f"127.0.0.1:{plane.ports['kube-proxy-health']}",
        "metricsBindAddress": f"127.0.0.1:{plane.ports['kube-proxy-metrics']}",
        # Limits of the machine's connection table, and its processes' priorities, are not ours to change.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
        "nodePortAddresses": ["primary"],
        "iptables": {"localhostNodePorts": False},
    }
    path = plane.layout.configure("kube-proxy.json", json.dumps(configuration, indent=1))
    processes.start(plane.layout, "kube-proxy", [binaries.path("kube-proxy"), f"--config={path}"])


def _start_coredns(plane: ControlPlane) -> None:
    kubeconfig_flag(plane, "coredns")
    path = plane.layout.configure("Corefile", addons.corefile(plane))
    processes.start(plane.layout, "coredns", [binaries.path("coredns"), "-conf", path])
    ready = f"http://127.0.0.1:{plane.ports['coredns-ready']}/ready"
    processes.wait_until(plane.layout, "coredns", lambda: access.answers(ready))


def _wait_ready(plane: ControlPlane, *, seconds: float = 120) -> None:
    """The node is Ready, and the default service account is there: pods can be created."""
    kubeconfig = plane.layout.kubeconfig
    deadline = time.monotonic() + seconds
    while True:
        try:
            access.kubectl(kubeconfig, "wait", "--for=condition=Ready", f"node/{NODE_NAME}", "--timeout=2s")
            access.kubectl(kubeconfig, "get", "serviceaccount/default", "--namespace=default")
        except RigError as error:
            kubelet = processes.find(plane.layout, "kubelet")
            if kubelet is None or not kubelet.is_alive or time.monotonic() > deadline:
                log = processes.log_tail(plane.layout, "kubelet")
                raise RigError(f"the node does not get Ready: {error}\n{log}") from None
            time.sleep(0.5)
        else:
            return


def _containerd_configuration(layout: Layout) -> str:
    return f"""\
version = 2
root = "{layout.images}"
state = "{layout.root}/containerd-state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{layout.containerd_socket}"

[ttrpc]
address = "{layout.root}/containerd-ttrpc.sock"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.SANDBOX}"
# Without CAP_SYS_RESOURCE a sandbox may not lower its own OOM score, and dies trying.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{layout.root}/runc"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{network.CNI_PLUGINS}"
conf_dir = "{layout.root}/cni"

[plugins."io.containerd.internal.v1.opt"]
path = "{layout.root}/containerd-opt"
"""


def _kubelet_configuration(plane: ControlPlane) -> dict[str, Any]:
    certificates = plane.layout.certificates
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "port": plane.ports["kubelet"],
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(certificates / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificates / "kubelet.crt"),
        "tlsPrivateKeyFile": str(certificates / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{plane.layout.containerd_socket}",
        "clusterDNS": [addons.DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": "",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{plane.layout.root.name}",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "failCgroupV1": False,
        "localStorageCapacityIsolation": False,
        "oomScoreAdj": 0,
        # The machine's disk is shared with everything else on it; only a really full one may evict.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "podLogsDir": str(plane.layout.root / "pod-logs"),
        "volumePluginDir": str(plane.layout.root / "volume-plugins"),
        "seccompDefault": False,
        "syncFrequency": "10s",
    }


def _remove_pods(layout: Layout) -> None:
    """Let the runtime take every sandbox down in order, so that the plugins free what they made."""
    containerd = processes.find(layout, "containerd")
    if containerd and containerd.is_alive:
        crictl = binaries.path("crictl")
        endpoint = f"--runtime-endpoint=unix://{layout.containerd_socket}"
        succeeds(crictl, endpoint, "--timeout=60s", "rmp", "--all", "--force")


def _cgroup_folders(layout: Layout) -> list[Path]:
    """The rig's own folder in each hierarchy of control groups (one of them in version 2)."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS / layout.root.name]
    hierarchies = (folder for folder in _CGROUPS.iterdir() if folder.is_dir() and not folder.is_symlink())
    return [folder / layout.root.name for folder in hierarchies if (folder / "cgroup.procs").exists()]


def _make_cgroup(layout: Layout) -> None:
    for folder in _cgroup_folders(layout):
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # Version 1: a new cpuset is empty, and no process may enter an empty one.
            if (folder / name).exists() and not (folder / name).read_text().strip():
                (folder / name).write_text((folder.parent / name).read_text())


def _remove_cgroups(layout: Layout) -> None:
    """Kill whatever still runs in the rig's control groups and remove them, leaves first."""
    for root in _cgroup_folders(layout):
        if not root.exists():
            continue
        for folder in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
            _empty_and_remove(folder)
        _empty_and_remove(root)


def _empty_and_remove(folder: Path) -> None:
    for pid in (folder / "cgroup.procs").read_text().split():
        succeeds("kill", "-KILL", pid)
    deadline = time.monotonic() + 5
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise RigError(f"control group {folder} cannot be removed") from None
            time.sleep(processes.POLL_SECONDS)
        else:
            return


def _remove_log_links(layout: Layout) -> None:
    """The kubelet links each container's log from a folder that no setting moves."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(layout.root):
            link.unlink()


def _unmount_below(root: Path) -> None:
    """Unmount everything that is mounted below a folder, the latest first."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in reversed([target for target in mounted if target.startswith(f"{root}/")]):
        run("umount", "--lazy", target.encode().decode("unicode_escape"))

"""The node's network: an address of its own, routed pods, and a way to take all of it back.

Pods hang on the plain `ptp` plugin: each has a veth and a /32 route, so all traffic passes the node's own routing
and the translation of Service addresses works between any two pods, which on a bridge it does only with br_netfilter.
Nothing is masqueraded: pods reach each other, the node and the API server, not the world.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from rig import binaries
from rig.commands import run, succeeds
from rig.control_plane import POD_RANGE, SERVICE_RANGE
from rig.paths import Layout

# On the loopback device, so that the node's address depends on nothing of the machine.
NODE_ADDRESS = "10.243.0.1"
CNI_PLUGINS = "/usr/lib/cni"
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_MARK = ("-m", "comment", "--comment", "kubedistill-rig")
_RULES = tuple((*direction, POD_RANGE, *_MARK, "-j", "ACCEPT") for direction in (("-s",), ("-d",)))
_TABLES = ("filter", "nat", "mangle")
_ROUTE = ("ip", "route", "replace", SERVICE_RANGE, "dev", "lo", "src", NODE_ADDRESS)


def up(layout: Layout) -> None:
    """Give the node its address, its routes and its plugin configuration. Twice is harmless."""
    before = layout.root / "ip_forward.before"
    if not before.exists():
        before.write_text(_FORWARDING.read_text())
    _FORWARDING.write_text("1")
    run("ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", "lo")
    # So that a process of the node may call a Service, and an address without one never leaves the machine.
    run(*_ROUTE)
    for rule in _RULES:
        # Docker sets FORWARD to DROP; pods must pass nevertheless.
        if not succeeds("iptables", "-w", "-C", "FORWARD", *rule):
            run("iptables", "-w", "-I", "FORWARD", *rule)
    folder = layout.root / "cni"
    folder.mkdir(exist_ok=True)
    (folder / "10-kubedistill-rig.conflist").write_text(json.dumps(_plugins(layout)))


def down(layout: Layout) -> None:
    """Remove every address, route, rule and chain that the rig and its kube-proxy made."""
    # These fail where there is nothing to remove, which is what is wanted.
    succeeds("ip", "route", "delete", SERVICE_RANGE, "dev", "lo")
    succeeds("ip", "address", "delete", f"{NODE_ADDRESS}/32", "dev", "lo")
    for rule in _RULES:
        while succeeds("iptables", "-w", "-D", "FORWARD", *rule):
            pass
    if _has_had_kube_proxy(layout):
        succeeds(binaries.path("kube-proxy"), "--cleanup")
        for command in ("iptables", "ip6tables"):
            for table in _TABLES:
                _remove_kubernetes_chains(command, table)
    before = layout.root / "ip_forward.before"
    if before.exists():
        _FORWARDING.write_text(before.read_text())


def _has_had_kube_proxy(layout: Layout) -> bool:
    """KUBE chains are ours only if we ever configured a kube-proxy: another Kubernetes may live on this machine."""
    return (layout.configuration / "kube-proxy.json").exists()


def _remove_kubernetes_chains(command: str, table: str) -> None:
    """Delete the KUBE chains of a table and the rules that jump to them."""
    if not succeeds(command, "-w", "-t", table, "-S"):
        return
    rules = run(command, "-w", "-t", table, "-S").splitlines()
    chains = [line.split()[1] for line in rules if re.match(r"-N KUBE-", line)]
    jumps = [line for line in rules if re.match(r"-A (?!KUBE-)", line) and " -j KUBE-" in line]
    for line in jumps:
        succeeds("sh", "-c", f"{command} -w -t {table} {line.replace('-A', '-D', 1)}")
    for flag in ("-F", "-X"):
        for chain in chains:
            succeeds(command, "-w", "-t", table, flag, chain)


def _plugins(layout: Layout) -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "kubedistill-rig",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": POD_RANGE}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(layout.root / "cni-addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }

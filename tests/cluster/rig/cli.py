"""The rig's commands: each a function whose docstring is its help."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rig import binaries, control_plane, images, network, node, paths, ports, processes
from rig.control_plane import FULL_PORTS, ControlPlane
from rig.errors import RigError
from rig.paths import Layout
from rig.progress import say

_DESCRIPTION = "A real Kubernetes on a bare Linux machine, from Go modules and Debian packages alone."


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one command; a failure is one message and exit code 1."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 1
    return 0


def build(options: argparse.Namespace) -> None:
    """Build the programs, or those named."""
    if options.program:
        binaries.build_programs(options.program)
    else:
        binaries.build()
    print(paths.cache() / "bin")


def up(options: argparse.Namespace) -> None:
    """Bring the cluster up, or what is missing of it."""
    layout = _layout(options)
    if options.control_plane_only:
        layout.make()
        with _lock(layout):
            control_plane.up(control_plane.beside(layout))
    else:
        _require_root()
        node.install_packages()
        layout.make()
        with _lock(layout):
            network.up(layout)
            plane = ControlPlane(layout, network.NODE_ADDRESS, ports.choose(layout, FULL_PORTS))
            control_plane.up(plane)
            node.up(plane)
    env(options)


def down(options: argparse.Namespace) -> None:
    """Stop everything and delete all that `up` made but the cache."""
    layout = _layout(options)
    if not layout.root.exists():
        say("nothing to take down")
        return
    with _lock(layout):
        if not options.control_plane_only:
            _require_root()
            node.down(layout)
        control_plane.down(layout)
        layout.kubeconfig.unlink(missing_ok=True)
        shutil.rmtree(layout.root)
    say("down")


def status(options: argparse.Namespace) -> None:
    """Say which processes run; exit code 1 unless all do."""
    layout = _layout(options)
    records = sorted(layout.processes.glob("*.json")) if layout.processes.exists() else []
    found = [process for record in records if (process := processes.find(layout, record.stem))]
    for process in found:
        print(f"{process.name:24} {process.pid:>8} {'running' if process.is_alive else 'dead'}")
    if not found or not all(process.is_alive for process in found):
        raise RigError("the rig is not up" if not found else "some processes are dead: run up again")


def env(options: argparse.Namespace) -> None:
    """Print the environment that makes kubectl and helm use this cluster."""
    print(f"KUBECONFIG={_layout(options).kubeconfig}")


def build_base(_: argparse.Namespace) -> None:
    """Build the base image."""
    images.build_base()
    print(images.BASE)


def build_image(options: argparse.Namespace) -> None:
    """Build one image, unless its inputs are unchanged."""
    arguments = dict(pair.split("=", 1) for pair in options.build_arg)
    if images.uses_rig() and arguments.get("BASE", images.BASE) == images.BASE:
        images.build_base()
        arguments["BASE"] = images.BASE
    images.build(images.Recipe(options.tag, options.dockerfile.resolve(), options.context.resolve(), arguments))


def load(options: argparse.Namespace) -> None:
    """Load images, by tag or as archives."""
    for image in options.image:
        if image.endswith(".tar"):
            images.load_archive(Path(image))
        else:
            images.load(image)


def prune(_: argparse.Namespace) -> None:
    """Free the disk that image builds hold, and, while the cluster is down, its images."""
    images.prune(paths.full())


def _layout(options: argparse.Namespace) -> Layout:
    return paths.control_plane_only() if options.control_plane_only else paths.full()


def _require_root() -> None:
    if os.geteuid() != 0:
        raise RigError("a node needs root (containers, routes, mounts); --control-plane-only does not")


@contextmanager
def _lock(layout: Layout) -> Iterator[None]:
    """One command at a time per rig."""
    with (layout.root.parent / f".{layout.root.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        # Left behind, a lock file would outlive the rig; another command may hold it only after this one.
        if not layout.root.exists():
            Path(handle.name).unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rig.py", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (build, up, down, status, env, build_base, build_image, load, prune):
        added = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__)
        added.set_defaults(command=command)
        if command is build:
            added.add_argument("program", nargs="*", help="for example kubectl; all without one")
        if command in (up, down, status, env):
            added.add_argument(
                "--control-plane-only",
                action="store_true",
                help="API server, etcd and controllers without a node, beside the full rig, without root",
            )
        if command is load:
            added.add_argument("image", nargs="+", help="a tag that was built here, or an archive (*.tar)")
        if command is build_image:
            added.add_argument("--dockerfile", type=Path, required=True)
            added.add_argument("--context", type=Path, required=True)
            added.add_argument("--tag", required=True)
            added.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    return parser

"""Where the rig keeps things. Two roots: a cache that survives `down`, and state folders that do not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RIG = Path(__file__).resolve().parent
REPOSITORY = RIG.parents[2]


def cache() -> Path:
    """The folder for what is slow to make and never changes: binaries, the base image's root file system."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kubedistill"
    return Path(os.environ.get("KUBEDISTILL_CACHE") or default)


@dataclass(frozen=True)
class Layout:
    """The folders of one running rig. `down` deletes `root` whole and the kubeconfig with it."""

    root: Path
    kubeconfig: Path
    kept_images: Path | None = None
    """For a rig that shall find its images again: they are gigabytes that take minutes to load."""

    @property
    def images(self) -> Path:
        """Where containerd keeps images and layers."""
        return self.kept_images or self.root / "containerd"

    @property
    def certificates(self) -> Path:
        return self.root / "certificates"

    @property
    def configuration(self) -> Path:
        return self.root / "configuration"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def processes(self) -> Path:
        return self.root / "processes"

    @property
    def containerd_socket(self) -> Path:
        """Short on purpose: the path of a Unix socket ends at 107 bytes."""
        return self.root / "containerd.sock"

    @property
    def volumes(self) -> Path:
        """What the PersistentVolumes of the cluster hold."""
        return self.root / "volumes"

    def configure(self, name: str, content: str) -> Path:
        """Write a configuration file if it says something new: kube-proxy ends when its file is touched."""
        path = self.configuration / name
        write_if_new(path, content)
        return path

    def make(self) -> None:
        """Create every folder; the certificates' one is for its owner's eyes only."""
        for folder in (self.root, self.configuration, self.logs, self.processes):
            folder.mkdir(parents=True, exist_ok=True)
        self.certificates.mkdir(mode=0o700, exist_ok=True)
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)


def write_if_new(path: Path, content: str) -> None:
    """Write a file, readable by its owner only, unless it says just this already."""
    path.touch(mode=0o600)
    if path.read_text() != content:
        path.write_text(content)


def full() -> Layout:
    """The one full rig of this machine; or, for who must have two, of this network namespace."""
    if chosen := os.environ.get("KUBEDISTILL_STATE"):
        return Layout(Path(chosen), Path(chosen) / "kubeconfig")
    kubeconfig = REPOSITORY / ".kubedistill" / "kubeconfig"
    return Layout(Path("/var/lib/kubedistill-rig"), kubeconfig, cache() / "containerd")


def control_plane_only() -> Layout:
    """The rig without a node, beside the full one; it needs no root."""
    root = cache() / "control-plane"
    return Layout(root, REPOSITORY / ".kubedistill" / "control-plane.kubeconfig")

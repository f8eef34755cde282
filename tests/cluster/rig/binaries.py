"""The programs of the rig, built from Go modules that this folder pins.

Each folder of `go/` is one module whose `tool` directives name the programs; they are apart because their
requirements clash. A build lands in `<cache>/go/<module>-<digest>/`, where the digest covers the folder's files and the
flags, so the same pins are never built twice; `<cache>/bin/` links to the newest, for people's PATH.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import paths
from rig.errors import RigError
from rig.progress import say

KUBERNETES_VERSION = "v1.34.4"
_STAMP = "k8s.io/component-base/version"
_KUBERNETES_FLAGS = f"-X {_STAMP}.gitVersion={KUBERNETES_VERSION} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=34"


@dataclass(frozen=True)
class Module:
    """A folder of `go/`: the programs it builds, as package paths, and how."""

    name: str
    packages: tuple[str, ...]
    tags: str = ""
    ldflags: str = ""
    rename: tuple[str, str] | None = None
    """(name Go gives the binary, name people know it by)."""

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the binaries."""
        names = dict([self.rename] if self.rename else [])
        return tuple(names.get(base := package.rsplit("/", 1)[-1], base) for package in self.packages)

    @property
    def source(self) -> Path:
        return paths.RIG / "go" / self.name

    @property
    def folder(self) -> Path:
        """Where this very build lives, built or not."""
        parts = [path.read_bytes() for path in sorted(self.source.iterdir())]
        parts += [repr((self.packages, self.tags, self.ldflags)).encode()]
        digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]
        return paths.cache() / "go" / f"{self.name}-{digest}"

    @property
    def is_built(self) -> bool:
        return all((self.folder / program).exists() for program in self.programs)


_KUBE = "k8s.io/kubernetes/cmd"
# In the order in which the faster tests want them.
MODULES = (
    Module("etcd", ("go.etcd.io/etcd/server/v3",), rename=("v3", "etcd")),
    Module(
        "kubernetes",
        tuple(
            f"{_KUBE}/{program}"
            for program in (
                "kube-apiserver",
                "kubectl",
                "kube-controller-manager",
                "kube-scheduler",
                "kube-proxy",
                "kubelet",
            )
        ),
        ldflags=_KUBERNETES_FLAGS,
    ),
    Module("pause", ("kubedistill.dev/rig/pause",)),
    Module("helm", ("helm.sh/helm/v3/cmd/helm",)),
    Module("seaweedfs", ("github.com/seaweedfs/seaweedfs/weed",)),
    Module("coredns", ("github.com/coredns/coredns",)),
    Module("crictl", ("sigs.k8s.io/cri-tools/cmd/crictl",)),
    Module(
        "prometheus",
        ("github.com/prometheus/prometheus/cmd/prometheus",),
        tags="remove_all_sd,enable_kubernetes_sd",
    ),
)
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
NODE = (*CONTROL_PLANE, "kube-scheduler", "kube-proxy", "kubelet", "coredns", "crictl", "pause")


def module_of(program: str) -> Module:
    """The module that builds a program."""
    for module in MODULES:
        if program in module.programs:
            return module
    raise RigError(f"no Go module of the rig builds {program!r}")


def path(program: str) -> Path:
    """The binary of a program, built now if this cache has not seen its pins yet."""
    module = module_of(program)
    build([module])
    return module.folder / program


def build_programs(programs: Iterable[str]) -> None:
    """Build what these programs need, in the order of MODULES."""
    wanted = {module_of(program).name for program in programs}
    build(module for module in MODULES if module.name in wanted)


def build(modules: Iterable[Module] = MODULES) -> None:
    """Build each module unless its binaries are there, and link them into `<cache>/bin`."""
    wanted = tuple(modules)
    if not all(module.is_built for module in wanted):
        with _lock():
            for module in wanted:
                if not module.is_built:
                    _build(module)
            shutil.rmtree(_work(), ignore_errors=True)
    for module in wanted:
        _link(module)


def _build(module: Module) -> None:
    if shutil.which("go") is None:
        raise RigError("the rig builds its programs with Go: put `go` on the PATH")
    started = time.monotonic()
    for package, program in zip(module.packages, module.programs, strict=True):
        say(f"building {program} (module {module.name})")
        _go_build(module, package, module.folder / program)
    say(f"built {', '.join(module.programs)} in {time.monotonic() - started:.0f} s")


def _go_build(module: Module, package: str, target: Path) -> None:
    """One `go build`, kept if it succeeds: the binary appears under its name only when whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    command = ["go", "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-o", str(unfinished)]
    command += ["-ldflags", f"-s -w {module.ldflags}".strip()]
    command += ["-tags", module.tags] if module.tags else []
    # nice: a build of minutes must not starve the tests that run beside it.
    result = subprocess.run(
        ["nice", *command, package],
        cwd=module.source,
        env=_environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RigError(f"go build {package} failed:\n{result.stderr.strip()[-4000:]}")
    unfinished.rename(target)


def _work() -> Path:
    """Sources and intermediate results, 15 GB of them, which nobody needs once the programs are there."""
    return paths.cache() / "go-work"


def _environment() -> dict[str, str]:
    """The environment of a build. Caches of Go that someone has chosen are used, and kept."""
    ours = {"GOCACHE": str(_work() / "build"), "GOMODCACHE": str(_work() / "modules")}
    flags = f"{os.environ.get('GOFLAGS', '')} -modcacherw".strip()
    return {**ours, **os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": flags}


def _link(module: Module) -> None:
    links = paths.cache() / "bin"
    links.mkdir(parents=True, exist_ok=True)
    for program in module.programs:
        link, target = links / program, module.folder / program
        if not (link.is_symlink() and link.readlink() == target):
            fresh = links / f".{program}.{os.getpid()}"
            fresh.symlink_to(target)
            fresh.rename(link)


@contextmanager
def _lock() -> Iterator[None]:
    """One builder at a time; a second one waits and finds the work done."""
    folder = paths.cache() / "go"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

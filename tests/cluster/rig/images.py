"""Images without a registry: built here, loaded into the cluster, each only when its inputs have changed.

Two ways, one interface. The rig builds with buildah and loads into its own containerd, which gets only the layers it
lacks and keeps its images when it is taken down. Where KUBECONFIG names another cluster, docker builds and kind loads.
Every image carries the digest of its inputs as a label.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from rig import access, binaries, paths, processes
from rig.commands import run, succeeds
from rig.errors import RigError
from rig.paths import Layout
from rig.progress import say

BASE = "localhost/kubedistill-base:bookworm"
SANDBOX = "localhost/kubedistill-sandbox:1"
INPUTS_LABEL = "dev.kubedistill.rig.inputs"
BASE_PACKAGES = ("python3", "python3-venv", "python3-dev", "ca-certificates", "g++", "tini")
_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")


@dataclass(frozen=True)
class Recipe:
    """What an image is made of. Equal recipes with equal files make equal images."""

    tag: str
    dockerfile: Path
    context: Path
    build_args: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """The files of the context, relative to it: what git knows or would add, or everything without git."""
        listed = subprocess.run(
            ["git", "-C", str(self.context), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=False,
            capture_output=True,
            text=True,
        )
        if listed.returncode == 0:
            names = sorted(set(listed.stdout.split("\0")) - {""})
            return [Path(name) for name in names if (self.context / name).is_file()]
        return sorted(path.relative_to(self.context) for path in self.context.rglob("*") if path.is_file())

    def inputs(self) -> str:
        """The digest of everything that makes the image. An argument naming one of our images counts in full."""
        digest = hashlib.sha256()
        for part in (self.tag, self.dockerfile.read_text()):
            digest.update(part.encode() + b"\0")
        for key, value in sorted(self.build_args.items()):
            digest.update(f"{key}={value}={_known_inputs().get(value, '')}\0".encode())
        for name in self.files():
            digest.update(f"{name}\0".encode() + hashlib.sha256((self.context / name).read_bytes()).digest())
        return digest.hexdigest()[:20]


def uses_rig() -> bool:
    """Whether images go to the rig: KUBECONFIG is not set, or names the rig's own file."""
    chosen = os.environ.get("KUBECONFIG")
    return not chosen or Path(chosen).resolve() == paths.full().kubeconfig.resolve()


def build(recipe: Recipe) -> None:
    """Build an image unless the one of this tag was made of the same inputs."""
    inputs = recipe.inputs()
    labels = _rig_labels if uses_rig() else _docker_labels
    if labels(recipe.tag).get(INPUTS_LABEL) == inputs:
        say(f"{recipe.tag} is up to date")
        return
    say(f"building {recipe.tag}")
    with _staged(recipe) as context:
        (_buildah_build if uses_rig() else _docker_build)(recipe, context, inputs)
    _remember(recipe.tag, inputs)


def load(tag: str) -> None:
    """Put a built image into the cluster unless it is there already."""
    if not uses_rig():
        _kind_load(tag)
        return
    layout = paths.full()
    containerd = processes.find(layout, "containerd")
    if containerd is None or not containerd.is_alive:
        raise RigError("the rig is not up: nothing to load an image into")
    wanted = _labels(_built(tag)).get(INPUTS_LABEL)
    if wanted is None and _loaded(layout, tag):
        say(f"{tag} is loaded, its build is gone")
        return
    if wanted is None:
        raise RigError(f"{tag} has not been built here")
    if _labels(_loaded(layout, tag)).get(INPUTS_LABEL) == wanted:
        say(f"{tag} is loaded already")
        return
    say(f"loading {tag}")
    _put_into_containerd(layout, tag)
    _remove_nameless(layout)


def load_archive(archive: Path) -> None:
    """Put every image of a docker or OCI archive into the rig."""
    run("ctr", f"--address={paths.full().containerd_socket}", "--namespace=k8s.io", "images", "import", archive)


def build_base() -> None:
    """The base image: Debian bookworm with Python 3.11 and a compiler, from Debian's packages alone."""
    archive = _base_archive()
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copyfile(archive, context / "base.tar")
        dockerfile = context / "Dockerfile"
        dockerfile.write_text('FROM scratch\nADD base.tar /\nENV LANG=C.UTF-8\nCMD ["python3"]\n')
        build(Recipe(BASE, dockerfile, context))


def load_sandbox(layout: Layout) -> None:
    """The image that holds a pod's namespaces: one static program of ours."""
    if _loaded(layout, SANDBOX):
        return
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        shutil.copy(binaries.path("pause"), context / "pause")
        dockerfile = context / "Dockerfile"
        dockerfile.write_text('FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n')
        recipe = Recipe(SANDBOX, dockerfile, context)
        _buildah_build(recipe, context, recipe.inputs(), live=False)
    _put_into_containerd(layout, SANDBOX)


def prune(layout: Layout) -> None:
    """Free the disk that builds hold, and, while the rig is down, its images. The next build starts from nothing."""
    if shutil.which("buildah") and _store().exists():
        succeeds(*_buildah("rmi", "--all", "--force"))
        shutil.rmtree(_store(), ignore_errors=True)
    if not layout.root.exists():
        shutil.rmtree(layout.images, ignore_errors=True)


def _base_archive() -> Path:
    """The root file system, made once per list of packages."""
    digest = hashlib.sha256(" ".join(BASE_PACKAGES).encode()).hexdigest()[:12]
    archive = paths.cache() / f"base-bookworm-{digest}.tar"
    if not archive.exists():
        say("making the base image's root file system")
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_suffix(".unfinished.tar")
        include = ",".join(BASE_PACKAGES)
        run("mmdebstrap", "--variant=minbase", f"--include={include}", "bookworm", unfinished)
        unfinished.rename(archive)
    return archive


@contextmanager
def _staged(recipe: Recipe) -> Iterator[Path]:
    """A copy of the context without what git ignores: a virtual environment of gigabytes is no input."""
    with tempfile.TemporaryDirectory() as folder:
        for name in recipe.files():
            target = Path(folder) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(recipe.context / name, target)
        yield Path(folder)


# The rig's way: buildah and containerd.


def _store() -> Path:
    return paths.cache() / "containers"


def _buildah(*arguments: str) -> list[str]:
    # A run root beside the store: buildah remembers the pair and refuses a mixed one.
    root = str(_store())
    return ["buildah", "--root", root, "--runroot", f"{root}/run", "--storage-driver", "overlay", *arguments]


def _buildah_build(recipe: Recipe, context: Path, inputs: str, *, live: bool = True) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run(
            *_buildah("bud", "--isolation", "chroot", "--network", "host", "--layers", "--pull-never"),
            *(word for mount in _build_mounts(Path(folder)) for word in ("--volume", mount)),
            *(word for pair in recipe.build_args.items() for word in ("--build-arg", "=".join(pair))),
            *("--label", f"{INPUTS_LABEL}={inputs}", "--tag", recipe.tag, "--file", recipe.dockerfile, context),
            live=live,
        )


def _build_mounts(folder: Path) -> list[str]:
    """What the build may see and the image must not keep: the machine's trust in a proxy, and pip's way to an index."""
    if not _BUNDLE.exists():
        return []
    settings = {"cert": str(_BUNDLE)}
    for name in _PIP_SETTINGS:
        if value := os.environ.get(f"PIP_{name.replace('-', '_').upper()}"):
            settings[name] = value
    configuration = folder / "pip.conf"
    configuration.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    return [f"{_BUNDLE}:{_BUNDLE}:ro", f"{configuration}:/etc/pip.conf:ro"]


def _built(tag: str) -> dict[str, Any] | None:
    """The configuration of an image in the build store (OCI image specification, "Image Configuration")."""
    result = subprocess.run(_buildah("inspect", "--type", "image", tag), check=False, capture_output=True, text=True)
    return None if result.returncode else dict(json.loads(result.stdout)["OCIv1"])


def _crictl(layout: Layout, *arguments: str) -> list[str]:
    endpoint = f"unix://{layout.containerd_socket}"
    return [str(binaries.path("crictl")), f"--image-endpoint={endpoint}", f"--runtime-endpoint={endpoint}", *arguments]


def _loaded(layout: Layout, name: str) -> dict[str, Any] | None:
    """The same of an image in the rig, by its tag or id."""
    if not layout.containerd_socket.exists():
        return None
    result = subprocess.run(_crictl(layout, "inspecti", name), check=False, capture_output=True, text=True)
    return None if result.returncode else dict(json.loads(result.stdout)["info"]["imageSpec"])


def _labels(image: dict[str, Any] | None) -> dict[str, str]:
    return (image["config"].get("Labels") or {}) if image else {}


def _images(layout: Layout) -> list[dict[str, Any]]:
    """All images in the rig, as crictl lists them."""
    return list(json.loads(run(*_crictl(layout, "images", "--output=json")))["images"])


def _remove_nameless(layout: Layout) -> None:
    """Remove the images whose tag has gone to a newer one: gigabytes each, and nobody can ask for them."""
    for image in _images(layout):
        if not image["repoTags"] and not image["repoDigests"]:
            # A container that still runs one keeps its own snapshot of it.
            succeeds(*_crictl(layout, "rmi", image["id"]))


def _rig_labels(tag: str) -> dict[str, str]:
    """The labels of the image where it is: in the build store, or, if that was dropped, in the running rig."""
    return _labels(_built(tag) or _loaded(paths.full(), tag))


def _put_into_containerd(layout: Layout, tag: str) -> None:
    """Import an image without the layers that a loaded one has at its bottom too: often all but our own code.

    The layers' archives are removed from containerd at once: it runs what it unpacked, which is as large again.
    """
    built = _built(tag)
    if built is None:
        raise RigError(f"{tag} has not been built here")
    layers: list[str] = built["rootfs"]["diff_ids"]
    images = [_loaded(layout, image["id"]) for image in _images(layout)]
    known = layers[: max((_shared(layers, image["rootfs"]["diff_ids"]) for image in images if image), default=0)]
    with tempfile.TemporaryDirectory() as folder:
        blobs = Path(folder) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        stand_ins = [blobs / layer.removeprefix("sha256:") for layer in known]
        for stand_in in stand_ins:
            stand_in.touch()  # the push takes a layer that is there for pushed
        run(*_buildah("push", "--quiet", tag, f"oci:{folder}"))
        for stand_in in stand_ins:
            stand_in.unlink()
        index = json.loads((Path(folder) / "index.json").read_text())
        [manifest] = index["manifests"]
        manifest["annotations"] = {"io.containerd.image.name": tag}
        (Path(folder) / "index.json").write_text(json.dumps(index))
        _import(layout, folder)
        pushed = json.loads((blobs / manifest["digest"].removeprefix("sha256:")).read_text())
    packed = [layer["digest"] for layer in pushed["layers"] if layer["digest"] not in known]
    run("ctr", f"--address={layout.containerd_socket}", "--namespace=k8s.io", "content", "rm", *packed)


def _import(layout: Layout, folder: str) -> None:
    archive = ["tar", "--create", f"--directory={folder}", "."]
    address = f"--address={layout.containerd_socket}"
    pull = ["ctr", address, "--namespace=k8s.io", "images", "import", "--snapshotter=overlayfs", "-"]
    with subprocess.Popen(archive, stdout=subprocess.PIPE) as source:
        result = subprocess.run(pull, stdin=source.stdout, check=False, capture_output=True, text=True)
    if source.returncode or result.returncode:
        raise RigError(f"loading an image failed: {result.stderr.strip()}")


def _shared(layers: list[str], others: list[str]) -> int:
    """How many layers two images have in common, from the lowest."""
    pairs = zip(layers, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


# Another cluster's way: docker and kind.


def _docker_build(recipe: Recipe, context: Path, inputs: str) -> None:
    arguments = [word for pair in recipe.build_args.items() for word in ("--build-arg", "=".join(pair))]
    label = f"{INPUTS_LABEL}={inputs}"
    flags = [*arguments, "--label", label, "--tag", recipe.tag, "--file", str(recipe.dockerfile)]
    run("docker", "build", *flags, context, live=True)


def _docker_labels(tag: str) -> dict[str, str]:
    if not succeeds("docker", "image", "inspect", tag):
        return {}
    labels: dict[str, str] | None = json.loads(run("docker", "image", "inspect", tag))[0]["Config"].get("Labels")
    return labels or {}


def _kind_load(tag: str) -> None:
    context = access.kubectl(Path(os.environ["KUBECONFIG"]), "config", "current-context").strip()
    if not context.startswith("kind-"):
        raise RigError(f"context {context!r} is no kind cluster: push {tag} to a registry it can pull from")
    run("kind", "load", "docker-image", tag, "--name", context.removeprefix("kind-"))


# The inputs of every image built here, so that an image can depend on another.


def _record() -> Path:
    return paths.cache() / "images.json"


def _known_inputs() -> dict[str, str]:
    known: dict[str, str] = json.loads(_record().read_text()) if _record().exists() else {}
    return known


def _remember(tag: str, inputs: str) -> None:
    _record().parent.mkdir(parents=True, exist_ok=True)
    _record().write_text(json.dumps({**_known_inputs(), tag: inputs}, indent=1))

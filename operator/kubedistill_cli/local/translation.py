"""A container as a process of this machine: command, variables and run file. Pure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubedistill_api import environment
from kubedistill_api.training import Training
from kubedistill_cli.local.folders import JobFolder
from kubedistill_operator.manifests import pods
from kubedistill_operator.manifests.stage_job import ENTRYPOINT


def command_of(container: Mapping[str, Any], folder: JobFolder, port: int) -> list[str]:
    """The container's command, or that of the trainer's image, with this machine's Python, folders and port.

    The leash does here what tini does there.
    """
    words = [*container.get("command", ENTRYPOINT), *container.get("args", [])]
    python = [sys.executable if word in ("python", "python3") and i == 0 else word for i, word in enumerate(words)]
    served = [f"--port={port}" if word.startswith("--port=") else word for word in python]
    return [_with_folders(word, folder) for word in served]


def variables_of(container: Mapping[str, Any], inherited: Mapping[str, str], folder: JobFolder) -> dict[str, str]:
    """The user's own environment, which stands for secrets and homes, and over it the container's variables."""
    given = {
        var["name"]: _with_folders(var["value"], folder)
        for var in container.get("env", [])
        if "value" in var and pods.HOME.get(var["name"]) != var["value"]
    }
    return {
        **inherited,
        **given,
        "PYTHONUNBUFFERED": "1",
        environment.CLAIM_ROOT: str(folder.claims),
        environment.SCRATCH: str(folder.scratch),
    }


def run_file_of(text: str, ports: Mapping[str, int], meeting_port: int = 0) -> str:
    """The run file with a teacher's Service, and the first node of a training, replaced by the ports where they answer
    here: our DNS.
    """
    run = json.loads(text)
    url = (run.get("endpoint") or {}).get("url", "")
    service = (urlsplit(url).hostname or "").split(".")[0]
    if service in ports:
        run["endpoint"]["url"] = f"http://127.0.0.1:{ports[service]}{urlsplit(url).path}"
    if run.get("leader"):
        run["leader"] = f"127.0.0.1:{meeting_port}"
    return json.dumps(run, indent=1)


def processes_of(text: str) -> int:
    """Processes of all nodes of the training of a run file: here they share the cores of one machine."""
    return Training.model_validate(json.loads(text)["training"]).world_size


def _with_folders(word: str, folder: JobFolder) -> str:
    """Folders of a pod as folders of this machine; also behind a flag, as in `--model=/mnt/pvc/…`."""
    flag, equals, path = word.partition("=") if word.startswith("--") else ("", "", word)
    for there, here in ((environment.CLAIM_ROOT_DEFAULT, folder.claims), (pods.SCRATCH, folder.scratch)):
        if path == there or path.startswith(f"{there}/"):
            return f"{flag}{equals}{Path(here)}{path[len(there) :]}"
    return word

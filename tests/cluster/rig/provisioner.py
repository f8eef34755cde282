"""Volumes on demand: the StorageClass `standard` of the rig, as kind has one.

A claim that the scheduler has given a node gets a `local` volume in a folder of its own; a released volume is deleted.
`local` and not `hostPath`, because the kubelet applies a pod's fsGroup to the first only.
Run as a process of its own; every pass looks at everything, so a missed event costs nothing.
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STORAGE_CLASS = "standard"
NAME = "kubedistill-rig/local"
_CLAIMS, _VOLUMES = "/api/v1/persistentvolumeclaims", "/api/v1/persistentvolumes"
_NODE = "volume.kubernetes.io/selected-node"
_BY = "pv.kubernetes.io/provisioned-by"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a pass has to do: volumes to create and volumes to delete."""

    create: list[Manifest]
    delete: list[Manifest]


def plan(claims: list[Manifest], volumes: list[Manifest], root: Path) -> Work:
    """Compare claims with volumes. Pure."""
    ours = [volume for volume in volumes if volume["metadata"].get("annotations", {}).get(_BY) == NAME]
    existing = {volume["metadata"]["name"] for volume in ours}
    wanted = [volume_for(claim, root) for claim in claims if _waits(claim)]
    return Work(
        create=[volume for volume in wanted if volume["metadata"]["name"] not in existing],
        delete=[volume for volume in ours if volume.get("status", {}).get("phase") == "Released"],
    )


def volume_for(claim: Manifest, root: Path) -> Manifest:
    """The volume that answers a claim: same size, same access modes, bound to it from birth."""
    metadata, spec = claim["metadata"], claim["spec"]
    name = f"pvc-{metadata['uid']}"
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [metadata["annotations"][_NODE]]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {_BY: NAME}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": STORAGE_CLASS,
            "local": {"path": str(root / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


def _waits(claim: Manifest) -> bool:
    return (
        claim["spec"].get("storageClassName") == STORAGE_CLASS
        and not claim["spec"].get("volumeName")
        and _NODE in claim["metadata"].get("annotations", {})
    )


@dataclass
class Server:
    """The API server, by one kept-alive connection."""

    host: str
    port: int
    context: ssl.SSLContext
    connection: http.client.HTTPSConnection | None = None

    def call(self, method: str, path: str, body: Manifest | None = None) -> Manifest:
        """One request; an answer of 400 or above is an OSError, but for "exists already" and "is gone already"."""
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=10)
        try:
            content = json.dumps(body) if body else None
            self.connection.request(method, path, content, {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        if response.status >= 400 and response.status not in (404, 409):
            raise OSError(f"{method} {path}: {response.status} {answer.decode()[:300]}")
        parsed: Manifest = json.loads(answer)
        return parsed


def work(server: Server, root: Path) -> None:
    """One pass: look, then make and remove. The folder comes before its volume and goes before it."""
    claims = server.call("GET", _CLAIMS).get("items", [])
    volumes = server.call("GET", _VOLUMES).get("items", [])
    todo = plan(claims, volumes, root)
    for volume in todo.create:
        folder = Path(volume["spec"]["local"]["path"])
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)  # as kind's provisioner: a pod without fsGroup may write too
        server.call("POST", _VOLUMES, volume)
        print("created", volume["metadata"]["name"], flush=True)
    for volume in todo.delete:
        shutil.rmtree(volume["spec"]["local"]["path"], ignore_errors=True)
        server.call("DELETE", f"{_VOLUMES}/{volume['metadata']['name']}")
        print("deleted", volume["metadata"]["name"], flush=True)


def main(host: str, port: str, certificates: str, root: str) -> None:
    """Work until killed. A server that does not answer is tried again at the next pass."""
    folder = Path(certificates)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "provisioner.crt", folder / "provisioner.key")
    server = Server(host, int(port), context)
    while True:
        try:
            work(server, Path(root))
        except (OSError, http.client.HTTPException) as error:
            print(error, flush=True)
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Real servers for tests, as plain processes: an S3 object store and a Prometheus. Each ends with its `with` block."""

from __future__ import annotations

import json
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig import access, binaries, control_plane, ports, processes
from rig.paths import Layout


@dataclass(frozen=True)
class ObjectStore:
    """A running S3 server. Any bucket may be made in it."""

    endpoint: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables by which S3 clients find it and are let in."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def seaweedfs(address: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """A SeaweedFS with its S3 gateway on this address (the node's, for pods), empty, with keys of its own."""
    program = binaries.path("weed")
    # Each server has an HTTP and a gRPC port; left alone, the second is the first plus 10000 and may be taken.
    purposes = [f"{server}{kind}" for server in ("master", "volume", "filer", "s3") for kind in (".port", ".port.grpc")]
    with _scratch() as layout:
        chosen = ports.choose(layout, dict.fromkeys(purposes, 0))
        store = ObjectStore(f"http://{address}:{chosen['s3.port']}", secrets.token_hex(10), secrets.token_hex(20))
        keys = layout.configuration / "s3.json"
        keys.write_text(json.dumps(_s3_identity(store)))
        data = layout.root / "data"
        data.mkdir()
        flags = [
            f"-dir={data}",
            f"-ip={address}",
            f"-ip.bind={address}",
            "-s3",
            f"-s3.config={keys}",
            # Small volumes: the default reserves gigabytes.
            "-master.volumeSizeLimitMB=256",
            "-volume.max=100",
            *(f"-{purpose}={number}" for purpose, number in chosen.items()),
        ]
        processes.start(layout, "weed", [program, "server", *flags], owned=True)
        processes.wait_until(layout, "weed", lambda: access.answers(f"{store.endpoint}/healthz"))
        yield store


@contextmanager
def prometheus(configuration: str) -> Iterator[str]:
    """A Prometheus on loopback with this configuration (YAML); yields the URL of its API."""
    program = binaries.path("prometheus")
    with _scratch() as layout:
        port = ports.choose(layout, {"prometheus": 0})["prometheus"]
        path = layout.configuration / "prometheus.yaml"
        path.write_text(configuration)
        flags = [
            f"--config.file={path}",
            f"--storage.tsdb.path={layout.root / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        url = f"http://127.0.0.1:{port}"
        processes.start(layout, "prometheus", [program, *flags], owned=True)
        processes.wait_until(layout, "prometheus", lambda: access.answers(f"{url}/-/ready"))
        yield url


@contextmanager
def api_server() -> Iterator[Path]:
    """An API server of its own with etcd and controllers, no node; yields the administrator's kubeconfig."""
    with _scratch() as layout:
        control_plane.up(control_plane.beside(layout, owned=True))
        yield layout.kubeconfig


@contextmanager
def _scratch() -> Iterator[Layout]:
    """Folders for processes that live as long as the block; they are stopped first, the last started first."""
    with tempfile.TemporaryDirectory(prefix="kubedistill-", ignore_cleanup_errors=True) as folder:
        layout = Layout(Path(folder), Path(folder) / "kubeconfig")
        layout.make()
        try:
            yield layout
        finally:
            records = sorted(layout.processes.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
            for record in records:
                processes.stop(layout, record.stem)


def _s3_identity(store: ObjectStore) -> dict[str, object]:
    credentials = [{"accessKey": store.access_key, "secretKey": store.secret_key}]
    return {"identities": [{"name": "tests", "credentials": credentials, "actions": ["Admin"]}]}

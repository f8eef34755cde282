"""How the rig itself talks to its API server: kubeconfig files, kubectl, and health by plain HTTPS."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from rig import binaries
from rig.errors import RigError
from rig.paths import Layout, write_if_new


def write_kubeconfig(layout: Layout, path: Path, server: str, user: str) -> None:
    """A kubeconfig for the holder of certificate `user`, complete in itself."""

    def encoded(name: str) -> str:
        return base64.b64encode((layout.certificates / name).read_bytes()).decode()

    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "kubedistill-rig",
        "contexts": [{"name": "kubedistill-rig", "context": {"cluster": "kubedistill-rig", "user": user}}],
        "clusters": [
            {
                "name": "kubedistill-rig",
                "cluster": {"server": server, "certificate-authority-data": encoded("ca.crt")},
            }
        ],
        "users": [
            {
                "name": user,
                "user": {
                    "client-certificate-data": encoded(f"{user}.crt"),
                    "client-key-data": encoded(f"{user}.key"),
                },
            }
        ],
    }
    write_if_new(path, json.dumps(config, indent=1))  # JSON is YAML


def kubectl(kubeconfig: Path, *arguments: str, stdin: str | None = None) -> str:
    """Run kubectl as this kubeconfig says and return its standard output."""
    result = subprocess.run(
        [binaries.path("kubectl"), f"--kubeconfig={kubeconfig}", *arguments],
        input=stdin,
        check=False,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        raise RigError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout


def answers(url: str, layout: Layout | None = None) -> bool:
    """Whether a health URL says 200. With a layout: HTTPS, checked by its authority, as administrator."""
    context = None
    if layout:
        context = ssl.create_default_context(cafile=str(layout.certificates / "ca.crt"))
        context.load_cert_chain(layout.certificates / "admin.crt", layout.certificates / "admin.key")
    # No proxy, whatever the environment says: this is all on one machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, http.client.HTTPException, OSError):
        return False

"""The rig is a Kubernetes that pods can live in: names, Services, volumes and Pod Security work as anywhere."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import access, images
from rig.errors import RigError

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

Manifest = dict[str, Any]
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.fixture(scope="module")
def kubectl(cluster_kubeconfig: Path) -> Callable[..., str]:
    """Run kubectl on the cluster, which has the image the pods of these tests run."""
    if images.uses_rig():
        images.build_base()
        images.load(images.BASE)
    return lambda *words, stdin=None: access.kubectl(cluster_kubeconfig, *words, stdin=stdin)


@pytest.fixture
def namespace(kubectl: Callable[..., str]) -> Iterator[str]:
    """A namespace under the restricted Pod Security standard, deleted with all that is in it."""
    name = f"rig-{secrets.token_hex(3)}"
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    create(kubectl, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": label}})
    yield name
    kubectl("delete", "namespace", name, "--timeout=120s")


def test_the_node_is_ready(kubectl: Callable[..., str]) -> None:
    nodes = json.loads(kubectl("get", "nodes", "--output=json"))["items"]
    conditions = {item["type"]: item["status"] for node in nodes for item in node["status"]["conditions"]}
    assert conditions["Ready"] == "True"


def test_a_pod_reaches_the_api_server_by_its_name(kubectl: Callable[..., str], namespace: str) -> None:
    script = """
import http.client, pathlib, ssl
folder = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
connection = http.client.HTTPSConnection("kubernetes.default.svc.cluster.local", context=context, timeout=10)
connection.request("GET", "/version", headers={"Authorization": "Bearer " + (folder / "token").read_text()})
print(connection.getresponse().status)
"""
    assert run_job(kubectl, job(namespace, "asks", script)) == "200\n"


def test_two_pods_of_an_indexed_job_find_each_other(kubectl: Callable[..., str], namespace: str) -> None:
    script = """
import os, socket, time
if os.environ["JOB_COMPLETION_INDEX"] == "0":
    with socket.create_server(("", 29500)) as server:
        server.settimeout(60)
        print(server.accept()[0].recv(64).decode(), flush=True)
else:
    for _ in range(60):
        try:
            with socket.create_connection(("pair-0.pair", 29500), timeout=2) as client:
                client.sendall(b"rank 1 was here")
            break
        except OSError:
            time.sleep(1)
    else:
        raise SystemExit("rank 0 was not found")
"""
    create(
        kubectl,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "pair", "namespace": namespace},
            "spec": {
                "clusterIP": "None",
                "publishNotReadyAddresses": True,
                "selector": {"batch.kubernetes.io/job-name": "pair"},
            },
        },
    )
    pair = job(namespace, "pair", script)
    pair["spec"] |= {"completions": 2, "parallelism": 2, "completionMode": "Indexed"}
    pair["spec"]["template"]["spec"]["subdomain"] = "pair"
    assert run_job(kubectl, pair) == "rank 1 was here\n"


def test_a_pod_reaches_another_through_a_service(kubectl: Callable[..., str], namespace: str) -> None:
    listing = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8080, bind='0.0.0.0')"
    serve = job(namespace, "serve", listing)
    create(kubectl, serve)
    create(
        kubectl,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {
                "selector": {"batch.kubernetes.io/job-name": "serve"},
                "ports": [{"port": 80, "targetPort": 8080}],
            },
        },
    )
    script = """
import time, urllib.request
for _ in range(60):
    try:
        print(urllib.request.urlopen("http://web", timeout=2).status)
        break
    except OSError:
        time.sleep(1)
"""
    assert run_job(kubectl, job(namespace, "fetch", script)) == "200\n"


def test_a_claim_gets_a_volume_that_outlives_a_pod_and_a_group_may_write(
    kubectl: Callable[..., str], namespace: str
) -> None:
    create(
        kubectl,
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "workspace", "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        },
    )
    write = with_volume(job(namespace, "write", "open('/workspace/note', 'w').write('kept')"))
    assert run_job(kubectl, write) == ""
    read = with_volume(job(namespace, "read", "print(open('/workspace/note').read())"))
    assert run_job(kubectl, read) == "kept\n"


def test_pod_security_refuses_a_privileged_pod(kubectl: Callable[..., str], namespace: str) -> None:
    pod = job(namespace, "root", "")["spec"]["template"]
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": namespace}, **pod}
    with pytest.raises(RigError, match="violates PodSecurity"):
        create(kubectl, manifest)


def test_a_pod_above_its_memory_is_killed_for_it(kubectl: Callable[..., str], namespace: str) -> None:
    greedy = job(namespace, "greedy", "bytearray(512 * 2**20)")
    greedy["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    create(kubectl, greedy)
    kubectl("wait", "--for=condition=Failed", "job/greedy", f"--namespace={namespace}", "--timeout=120s")
    [pod] = json.loads(kubectl("get", "pods", f"--namespace={namespace}", "--output=json"))["items"]
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled"


def create(kubectl: Callable[..., str], manifest: Manifest) -> None:
    """Create one object."""
    kubectl("create", "--filename=-", stdin=json.dumps(manifest))


def job(namespace: str, name: str, script: str) -> Manifest:
    """A Job of one pod that runs a Python script as the restricted standard asks."""
    container = {
        "name": "main",
        "image": images.BASE if images.uses_rig() else "python:3.12-slim",
        "command": ["python3", "-c", script],
        "securityContext": RESTRICTED,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": {"fsGroup": 65532},
                    "containers": [container],
                }
            },
        },
    }


def with_volume(manifest: Manifest) -> Manifest:
    """The same Job with the claim `workspace` mounted at /workspace."""
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "workspace", "persistentVolumeClaim": {"claimName": "workspace"}}]
    pod["containers"][0]["volumeMounts"] = [{"name": "workspace", "mountPath": "/workspace"}]
    return manifest


def run_job(kubectl: Callable[..., str], manifest: Manifest) -> str:
    """Create a Job, wait until it is complete, and return what its pods wrote."""
    create(kubectl, manifest)
    name, where = manifest["metadata"]["name"], f"--namespace={manifest['metadata']['namespace']}"
    kubectl("wait", "--for=condition=Complete", f"job/{name}", where, "--timeout=120s")
    return kubectl("logs", where, f"--selector=batch.kubernetes.io/job-name={name}", "--tail=-1")

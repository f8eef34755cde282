"""The chart: wrong values are refused, a real API server takes what it renders, and it asks for no needless right."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import definitions
import pytest
import yaml
from prometheus_client import CollectorRegistry
from rig import access, binaries
from rig.errors import RigError

from kubedistill_operator.handlers.installation import HELP, read_installation
from kubedistill_operator.telemetry.jobs import JobCollector
from kubedistill_operator.telemetry.passes import PassMeter

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/kubedistill"
EXAMPLES = sorted((CHART / "ci").glob("*.yaml"))
GOLDEN = Path(__file__).parent / "golden"
NAMESPACE = "kubedistill-system"

REFUSED: dict[str, tuple[str, str]] = {
    "unknown": ("replica=2", "replica"),
    "text-for-number": ("replicas=two", "replicas"),
    "negative": ("replicas=-1", "replicas"),
    "namespace-name": ("namespaces={Team_A}", "namespaces"),
    "log-level": ("operator.logLevel=LOUD", "logLevel"),
    "nested-unknown": ("operator.leaderElection.lease=3", "lease"),
    "short-lease": ("operator.leaderElection.leaseSeconds=1", "leaseSeconds"),
    "digest": ("image.digest=sha256:abc", "digest"),
    "policy": ("image.pullPolicy=Sometimes", "pullPolicy"),
    "interval": ("monitoring.interval=soon", "interval"),
    "no-repository": ("trainer.image.repository=", "repository"),
    "port": ("service.port=0", "port"),
    "seconds": ("operator.stageTtlSeconds=0", "stageTtlSeconds"),
}


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binaries.path("helm"), *arguments], check=False, capture_output=True, text=True)


def render(*arguments: str) -> list[dict[str, Any]]:
    """What the chart makes of these values. Our helm has no version of Kubernetes built in."""
    done = helm("template", "kd", str(CHART), "--namespace", NAMESPACE, "--kube-version", "1.34.0", *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


@pytest.fixture(scope="module")
def server(api_server: Path) -> Iterator[Path]:
    """An API server with the namespaces that the examples name and the kinds of the Prometheus operator."""
    namespaces = (NAMESPACE, "team-a", "team-b")
    made = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in namespaces]
    access.kubectl(api_server, "apply", "-f", "-", stdin=yaml.safe_dump_all(made))
    names = ("servicemonitors.monitoring.coreos.com", "podmonitors.monitoring.coreos.com")
    definitions.install(api_server, Path(__file__).parent / "crds/monitoring.yaml", *names)
    yield api_server
    access.kubectl(api_server, "delete", "namespace", "--wait=false", *namespaces)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_helm_lint_finds_nothing(example: Path) -> None:
    done = helm("lint", "--strict", str(CHART), "--values", str(example))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("setting", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_value_is_refused_by_its_name(setting: str, named: str) -> None:
    done = helm("template", "kd", str(CHART), "--kube-version", "1.34.0", "--set", setting)
    assert done.returncode != 0
    assert named in done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_rendered_is_accepted_strictly(server: Path, example: Path) -> None:
    rendered = yaml.safe_dump_all(render("--values", str(example)))
    strictly = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    accepted = access.kubectl(server, *strictly, stdin=rendered).splitlines()
    assert len(accepted) == len(render("--values", str(example)))


def test_a_misspelt_monitor_would_be_refused(server: Path) -> None:
    monitor = next(d for d in render("--set", "monitoring.enabled=true") if d["kind"] == "ServiceMonitor")
    monitor["spec"]["endpoints"][0]["intervall"] = "15s"
    with pytest.raises(RigError, match="intervall"):
        access.kubectl(
            server, "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(monitor)
        )


def test_the_chart_carries_the_generated_crd() -> None:
    assert (CHART / "files/distillationjobs.yaml").read_text() == (ROOT / "crds/distillationjobs.yaml").read_text()


def test_the_crd_outlives_the_release() -> None:
    crd = next(d for d in render() if d["kind"] == "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    crd["metadata"].pop("annotations")
    assert crd == yaml.safe_load((ROOT / "crds/distillationjobs.yaml").read_text())


def test_namespaced_mode_has_nothing_cluster_wide() -> None:
    kinds = {d["kind"] for d in render("--values", str(CHART / "ci/namespace-values.yaml"))}
    assert not {kind for kind in kinds if kind.startswith("Cluster") or kind == "CustomResourceDefinition"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_no_rule_names_secrets_or_a_wildcard(example: Path) -> None:
    roles = [d for d in render("--values", str(example)) if d["kind"] in ("Role", "ClusterRole")]
    words = [word for role in roles for rule in role["rules"] for key in rule for word in rule[key]]
    assert words
    assert not {word for word in words if "*" in word or "secret" in word or "finalizers" in word}


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_budget_is_made_only_where_one_may_go(replicas: int) -> None:
    budgets = [d for d in render("--set", f"replicas={replicas}") if d["kind"] == "PodDisruptionBudget"]
    assert len(budgets) == (replicas > 1)


def test_the_operator_passes_the_restricted_profile(server: Path) -> None:
    access.kubectl(
        server, "label", "--overwrite", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"
    )
    deployment = next(d for d in render() if d["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "operator", "namespace": NAMESPACE}
    pod["spec"] = {**template["spec"], "serviceAccountName": "default"}
    access.kubectl(
        server,
        "apply",
        "-f",
        "-",
        stdin=yaml.safe_dump(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}}
        ),
    )
    access.kubectl(server, "apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(pod))


def test_every_variable_of_the_deployment_is_one_that_the_operator_reads() -> None:
    deployment = next(d for d in render("--values", str(CHART / "ci/cluster-values.yaml")) if d["kind"] == "Deployment")
    environment = {
        item["name"]: item["value"] for item in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert {name for name in environment if name not in HELP} == set()
    installation = read_installation(environment)
    assert installation.settings.trainer_image.startswith("kubedistill/trainer:")
    assert installation.settings.trainer_vllm_image.startswith("kubedistill/trainer-vllm:")
    assert installation.port == 8080
    assert installation.lease.namespace == NAMESPACE


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    registry = CollectorRegistry()
    meter = PassMeter(registry)
    for gauge in ("leader", "queue_depth"):
        meter.watch(gauge, "…", lambda: 0.0)
    registry.register(JobCollector(list, 1, lambda: datetime.now(UTC)))
    known = {name for family in registry.collect() for name in (family.name, f"{family.name}_total")}
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    asked = {word for panel in dashboard["panels"] for target in panel["targets"] for word in _metrics(target["expr"])}
    assert asked
    assert asked - known == set()


def _metrics(expression: str) -> set[str]:
    return set(re.findall(r"kubedistill_\w+", expression))


@pytest.fixture(scope="module", params=["cluster", "namespace-monitoring"])
def allowed(server: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[str], str]]]:
    """A mode of the chart, installed as far as rights go, and what the operator may do in a namespace."""
    kinds = ("ServiceAccount", "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
    objects = [d for d in render("--values", str(CHART / f"ci/{request.param}-values.yaml")) if d["kind"] in kinds]
    manifest = yaml.safe_dump_all(objects)
    access.kubectl(server, "apply", "-f", "-", stdin=manifest)
    yield request.param, lambda namespace: rights(server, namespace)
    access.kubectl(server, "delete", "-f", "-", stdin=manifest)


def rights(server: Path, namespace: str) -> str:
    """`kubectl auth can-i --list` as the operator, without what everybody may."""
    asker = (f"--as=system:serviceaccount:{NAMESPACE}:kd-kubedistill", "--as-group=system:serviceaccounts")
    listed = access.kubectl(server, "auth", "can-i", "--list", f"--namespace={namespace}", "--no-headers", *asker)
    lines = sorted(" ".join(line.split()) for line in listed.splitlines())
    return "".join(f"{line}\n" for line in lines if "selfsubject" not in line and not line.startswith("["))


@pytest.mark.parametrize("namespace", ["team-a", "team-b", NAMESPACE])
def test_the_operator_may_do_exactly_what_the_golden_file_says(
    allowed: tuple[str, Callable[[str], str]], namespace: str
) -> None:
    mode, what = allowed
    assert what(namespace) == (GOLDEN / f"can-i-{mode}-{namespace}.txt").read_text()

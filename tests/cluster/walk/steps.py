"""The steps of the walk: each is idempotent, and says what it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from walk.kube import Kube, run, tool

ROOT = Path(__file__).resolve().parents[3]
SYSTEM = "kubedistill-system"
DEMO = "kubedistill-demo"
RELEASE = "kubedistill"
CHART = ROOT / "charts" / "kubedistill"
VALUES = ROOT / "tests" / "cluster" / "values-dev.yaml"
TRAINER = "localhost/kubedistill/trainer:dev"
TEACHER = ROOT / ".kubedistill" / "models" / "SmolLM2-135M-Instruct"
CLAIMS = {"kubedistill-models": "2Gi", "kubedistill-data": "1Gi", "kubedistill-students": "5Gi"}
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
HANDS = "kubedistill-hands"
"""A pod with the claims in it, for putting files in and looking at what came out."""


def install(kubeconfig: Path, *more: str) -> None:
    """`helm upgrade --install`, into a namespace that enforces the restricted profile."""
    make_namespace(kubeconfig, SYSTEM)
    command = [
        tool("helm"),
        "upgrade",
        "--install",
        RELEASE,
        str(CHART),
        "--namespace",
        SYSTEM,
        "--values",
        str(VALUES),
    ]
    run([*command, "--wait", "--timeout", "5m", *more], kubeconfig)


def make_namespace(kubeconfig: Path, name: str) -> Kube:
    """A namespace that enforces the restricted profile, as a careful cluster has them."""
    kube = Kube(kubeconfig, name)
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}})
    return kube


def lay_out(kube: Kube) -> None:
    """Claims for models, prompts and students, and a pod that holds them."""
    for name, size in CLAIMS.items():
        kube.apply(claim(name, size))
    kube.apply(hands())
    kube("wait", "--for=condition=Ready", "--timeout=300s", f"pod/{HANDS}")


def put(kube: Kube, local: Path, claim_name: str, name: str = "") -> None:
    """Copy a file or a folder into a claim, unless it is there."""
    target = f"/mnt/pvc/{claim_name}/{name or local.name}"
    if kube("exec", HANDS, "--", "sh", "-c", f"test -e {target} && echo there || true").strip():
        return
    kube("cp", str(local), f"{HANDS}:{target}.part")
    kube("exec", HANDS, "--", "mv", f"{target}.part", target)


def write(kube: Kube, text: str, claim_name: str, name: str) -> None:
    """Write a small file into a claim."""
    path = f"/mnt/pvc/{claim_name}/{name}"
    kube("exec", "-i", HANDS, "--", "sh", "-c", f"cat > {path}", stdin=text)


def claim(name: str, size: str) -> dict[str, Any]:
    """A claim of the cluster's default storage class."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}},
    }


def hands() -> dict[str, Any]:
    """A pod of the trainer image that sleeps, with every claim mounted where the stages see it."""
    container = {
        "name": "hands",
        "image": TRAINER,
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            *({"name": name, "mountPath": f"/mnt/pvc/{name}"} for name in CLAIMS),
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": HANDS},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "runAsGroup": 65532,
                "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [
                *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in CLAIMS),
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }


ASK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
chat = [{"role": "user", "content": prompt}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
answer = tokenizer.decode(out[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps({"layers": model.config.num_hidden_layers, "answer": answer}))
"""


def ask(kube: Kube, model_uri: str, prompt: str) -> dict[str, Any]:
    """Load a published model with plain transformers in the cluster, and let it answer."""
    folder = model_uri.replace("pvc://", "/mnt/pvc/")
    text = kube("exec", HANDS, "--", "python", "-c", ASK, folder, prompt)
    answer: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return answer


def scrape_configuration(kubeconfig: Path) -> str:
    """Prometheus' configuration that finds the operator's pods as the chart's monitors would."""
    discovery = {"role": "pod", "kubeconfig_file": str(kubeconfig), "namespaces": {"names": [SYSTEM]}}
    name = "__meta_kubernetes_pod_label_app_kubernetes_io_name"
    operator = {
        "job_name": "kubedistill-operator",
        "kubernetes_sd_configs": [discovery],
        "relabel_configs": [{"source_labels": [name], "regex": "kubedistill-operator", "action": "keep"}],
    }
    return json.dumps({"global": {"scrape_interval": "2s"}, "scrape_configs": [operator]})

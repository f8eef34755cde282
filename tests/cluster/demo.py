"""`make demo-cluster`: install, lay out, apply, watch, show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from rig import paths
from walk import steps
from walk.kube import Kube, WalkError

JOB = "support-student"
EXAMPLE = steps.ROOT / "examples" / "02-vllm-teacher.yaml"
PATIENCE_SECONDS = 3600


def main() -> int:
    """The whole walk; 1 when it ended badly."""
    kubeconfig = Path(os.environ.get("KUBECONFIG") or paths.full().kubeconfig)
    try:
        say("Installing the chart (helm upgrade --install)")
        steps.install(kubeconfig)
        kube = steps.make_namespace(kubeconfig, steps.DEMO)
        say("Laying out the teacher and the prompts in claims")
        subprocess.run([sys.executable, steps.ROOT / "examples/models/fetch_smollm2.py"], check=True)
        steps.lay_out(kube)
        steps.put(kube, steps.TEACHER, "kubedistill-models")
        for name in ("support-train.jsonl", "support-valid.jsonl"):
            steps.put(kube, steps.ROOT / "examples" / "data" / name, "kubedistill-data")
        say(f"kubectl apply -f {EXAMPLE.relative_to(steps.ROOT)}")
        kube("apply", "-f", str(EXAMPLE))
        watch(kube)
        show(kube)
    except WalkError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def watch(kube: Kube) -> None:
    """Print the job's line whenever it changes, until it has ended.

    Raises:
        WalkError: the job failed, or did not end in time.
    """
    print(kube("get", "dj").splitlines()[0])
    last, end = "", time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        row = kube.row(JOB)
        if row.split()[:-1] != last.split()[:-1]:
            print(row, flush=True)
            last = row
        status = kube.status(JOB)
        if status.get("phase") == "Succeeded":
            return
        if status.get("phase") == "Failed":
            raise WalkError(json.dumps(status.get("lastFailure", status), indent=2))
        time.sleep(3)
    raise WalkError(f"{JOB} did not end within {PATIENCE_SECONDS} s")


def show(kube: Kube) -> None:
    """The comparison, the model's place, and an answer of the student."""
    status = kube.status(JOB)
    print(f"\n{'Metric':<20}{'before':>12}{'after':>12}{'teacher':>12}")
    for score in status.get("evaluation", []):
        print(f"{score['metric']:<20}" + "".join(f"{score.get(k, ''):>12}" for k in ("baseline", "student", "teacher")))
    result = status["result"]
    print(f"\nModel   {result['modelURI']}  ({result['sizeBytes'] / 1e6:.0f} MB, {result['digest'][:19]}…)")
    print(f"Report  {result.get('reportURI', '')}")
    answer = steps.ask(kube, result["modelURI"], "How do I reset my password?")
    print(f"Student ({answer['layers']} layers) answers: {answer['answer']!r}")


def say(words: str) -> None:
    """One step's headline."""
    print(f"\n==> {words}", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""examples/01-quickstart.yaml as `make demo` runs it: the real teacher, its pruned student, fewer rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROWS = 32


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example beside its data and its teacher; a tenth of the rows, so without the gates."""
    subprocess.run([sys.executable, EXAMPLES / "models" / "fetch_smollm2.py"], check=True)
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / ".kubedistill").mkdir()
    (folder / ".kubedistill" / "models").symlink_to(EXAMPLES.parent / ".kubedistill" / "models")
    (folder / "examples").mkdir()
    (folder / "examples" / "data").symlink_to(EXAMPLES / "data")
    document = yaml.safe_load((EXAMPLES / "01-quickstart.yaml").read_text())
    spec = document["spec"]
    spec["data"]["maxRows"] = ROWS
    spec["evaluation"]["maxRows"] = 4
    del spec["evaluation"]["gates"]
    spec["output"]["uri"] = "file://../student"
    (folder / "examples" / "job.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="module")
def end(example: Path) -> dict[str, Any]:
    """What `kubedistill run --output json` says at the end."""
    return run(example)


def run(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "kubedistill_cli", "run", "examples/job.yaml", "--output", "json"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_the_student_comes_nearer_to_its_teacher(end: dict[str, Any]) -> None:
    scores = {score["metric"]: score for score in end["status"]["evaluation"]}
    assert float(scores["TeacherKL"]["student"]) < 0.7 * float(scores["TeacherKL"]["baseline"])
    assert float(scores["TeacherAgreement"]["student"]) > float(scores["TeacherAgreement"]["baseline"])


def test_it_keeps_twenty_of_thirty_layers_and_answers(example: Path, end: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(example / "student")
    model = AutoModelForCausalLM.from_pretrained(example / "student")
    assert model.config.num_hidden_layers == 20
    chat = [{"role": "user", "content": "How do I reset my Trindle thermostat?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_a_second_run_finds_everything_done(example: Path, end: dict[str, Any]) -> None:
    before = logs(example)
    assert run(example) == end
    assert logs(example) == before, "a stage ran again"


def logs(folder: Path) -> dict[str, int]:
    """When each stage last wrote."""
    found = (folder / ".kubedistill" / "jobs").glob("*/logs/*.log")
    return {path.name: path.stat().st_mtime_ns for path in found}

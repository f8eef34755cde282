"""examples/07-two-teachers.yaml as its header says, with toys that nobody taught anything and fewer rows."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys.example import load_make_toy
from transformers import AutoModelForCausalLM

from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.report.content import SCORECARD
from kubedistill_trainer.store.rows import read_prompts
from kubedistill_trainer.store.shards import AnswerRow, read_shard
from kubedistill_trainer.store.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("north", "south")
ROWS = 48
STORED = 0.02
"""Half precision of the store at a logprob of -20, and another order of the same sums."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example beside its data and its teachers."""
    folder = tmp_path_factory.mktemp("two")
    make_toy = load_make_toy()
    for seed, name in enumerate(NAMES):
        make_toy.make_toy(folder / ".kubedistill" / "models" / f"toy-{name}", make_toy.Toy(seed=seed))
    (folder / "examples").mkdir()
    (folder / "examples" / "data").symlink_to(EXAMPLES / "data")
    document = yaml.safe_load((EXAMPLES / "07-two-teachers.yaml").read_text())
    document["spec"]["data"]["maxRows"] = ROWS
    document["spec"]["evaluation"]["maxRows"] = 6
    (folder / "examples" / "job.yaml").write_text(yaml.safe_dump(document))
    return folder


@pytest.fixture(scope="module")
def status(place: Path) -> dict[str, Any]:
    """How the job ended."""
    command = [sys.executable, "-m", "kubedistill_cli", "run", "examples/job.yaml", "--output", "json"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["status"]
    return found


@pytest.fixture(scope="module")
def workspace(place: Path, status: dict[str, Any]) -> Path:
    return place / ".kubedistill" / "jobs" / "two-teachers" / "workspace"


@pytest.fixture(scope="module")
def answers(workspace: Path) -> dict[str, list[AnswerRow]]:
    """All accepted answers, by teacher."""
    return {
        name: [row for path in workspace.glob(f"answers/{name}-*/shards/*") for row in read_shard(path.read_bytes())[1]]
        for name in NAMES
    }


def test_every_prompt_is_answered_by_exactly_one_teacher_and_counted_once(
    workspace: Path, status: dict[str, Any], answers: dict[str, list[AnswerRow]]
) -> None:
    (prepared,) = workspace.glob("jobs/*/prepare-*")
    asked = [
        row.row_id
        for split in ("train", "valid")
        for row in read_prompts(Workspace.open(prepared.parent.as_uri()), prepared.name, split)
    ]
    ledgers = {stage["name"]: stage["ledger"] for stage in status["stages"] if stage["name"].startswith("Generate:")}
    accepted = {name: ledgers[f"Generate:{name}"]["accepted"] for name in NAMES}
    assert accepted == {name: len(rows) for name, rows in answers.items()}
    assert status["ledger"]["accepted"] == sum(accepted.values())
    assert sum(ledger["accepted"] + ledger["rejected"] for ledger in ledgers.values()) == len(asked)
    ids = [row.row_id for rows in answers.values() for row in rows]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(asked)
    assert accepted["north"] > accepted["south"] > 0, "two of three prompts are north's"
    assert all(row.teacher == name for name, rows in answers.items() for row in rows)


def test_each_row_brings_the_scores_of_the_teacher_that_answered_it(
    place: Path, answers: dict[str, list[AnswerRow]]
) -> None:
    models = {
        name: AutoModelForCausalLM.from_pretrained(place / ".kubedistill" / "models" / f"toy-{name}").eval()
        for name in NAMES
    }
    for name, rows in answers.items():
        for other, model in models.items():
            apart = max(_distance(row, model) for row in rows[:8])
            assert apart < STORED if other == name else apart > 10 * STORED, (name, other)


def _distance(row: AnswerRow, model: Any) -> float:
    """The largest difference between the stored logprobs of the written tokens and a model's own."""
    ids_T, at_N = torch.tensor(row.input_ids).long(), torch.tensor(row.target_mask).nonzero().flatten()
    with torch.no_grad():
        logits_NV = model(ids_T[None]).logits[0, at_N - 1]
    assert row.signal is not None
    return float((top_k(logits_NV, ids_T[at_N], 16).target_N - torch.tensor(row.signal.target_logprob_N)).abs().max())


def test_the_student_learns_from_all_of_them_and_comes_nearer_to_each(
    workspace: Path, status: dict[str, Any], answers: dict[str, list[AnswerRow]]
) -> None:
    train = [row for rows in answers.values() for row in rows if row.split == "train"]
    (losses,) = workspace.glob("jobs/*/train-*/losses.jsonl")
    steps = [line["step"] for line in map(json.loads, losses.read_text().splitlines()) if "loss" in line]
    assert len(steps) == 4 * math.ceil(len(train) / 16)
    (file,) = workspace.glob("jobs/*/evaluate-*/scores.json")
    card = SCORECARD.validate_json(file.read_text())
    assert list(card.by_teacher) == list(NAMES)
    for comparison in card.by_teacher.values():
        kl = comparison[0]
        assert kl.student < kl.baseline
    whole = {score["metric"]: score for score in status["evaluation"]}
    assert whole["TeacherKL"]["gate"] == "Passed"


def test_the_model_card_names_each_teacher_with_its_part(place: Path, status: dict[str, Any]) -> None:
    card = (place / ".kubedistill" / "models" / "two-teachers-student" / "README.md").read_text()
    for stage in status["stages"]:
        if stage["name"].startswith("Generate:"):
            assert f"{stage['ledger']['accepted']} of the answers" in card
    assert "| by teacher | metric |" in card

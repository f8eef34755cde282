"""Two teachers of different kinds for one student: an engine in process, and a server of the OpenAI API.

Both are real toys with one tokenizer and other weights. What the server says comes over HTTP, in texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from teaching.scores import ROUNDED, check_candidates
from teaching.server import TestTeacher
from teaching.work import context_of, prompt_row
from transformers import AutoModelForCausalLM, AutoTokenizer

from kubedistill_api.base import Task
from kubedistill_api.digests import share
from kubedistill_api.documents import parse_job
from kubedistill_api.generation import Generation
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.run import GenerateRun, JobIdentity, TrainRun
from kubedistill_trainer.stages import generate, train
from kubedistill_trainer.store.rows import to_parquet
from kubedistill_trainer.store.shards import AnswerRow, read_answers
from kubedistill_trainer.store.workspace import Workspace

pytestmark = pytest.mark.slow

K = 4
PROMPTS, HELD_OUT = 60, 12
EXACT = 2e-3
"""Another order of the same sums."""


@dataclass(frozen=True)
class Answered:
    """What both left in one workspace."""

    workspace: Workspace
    spec: DistillationJobSpec
    models: dict[str, Any]

    @property
    def folders(self) -> list[str]:
        return [f"answers/{name}" for name in self.models]

    def rejected(self) -> list[dict[str, Any]]:
        texts = [self.workspace.read_bytes(f"{folder}/rejected.jsonl").decode() for folder in self.folders]
        return [json.loads(line) for text in texts for line in text.splitlines()]

    def rows(self, split: Any, *folders: str) -> list[AnswerRow]:
        return list(read_answers(self.workspace, folders or self.folders, split))


@pytest.fixture(scope="module")
def answered(teacher: Path, make_toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    """Two of three prompts are north's, which is asked in process; the others are south's, which is asked over HTTP."""
    folder = tmp_path_factory.mktemp("mixed")
    other = make_toy.make_toy(folder / "toy", make_toy.Toy(vocabulary=512, seed=7))
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    models = {
        name: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for name, path in (("north", teacher), ("south", other))
    }
    workspace = Workspace.open((folder / "workspace").as_uri())
    _prepare(workspace, tokenizer, make_toy)
    with TestTeacher(tokenizer, models["south"], reply=lambda messages: "Please hold the button.") as server:
        external = {"url": server.url, "model": "teacher", "termsAccepted": True}
        spec = _spec(
            {
                "name": "north",
                "weight": 2,
                "model": {"uri": teacher.as_uri()},
                "batch": {"gpus": 0, "precision": "FP32"},
            },
            {"name": "south", "weight": 1, "model": {"uri": other.as_uri()}, "external": external},
        )
        for name in models:
            generate.run(_run(spec, name, workspace), context_of(workspace, folder / f"scratch-{name}"))
        assert {len(body["messages"]) for body in server.seen} == {1}
    return Answered(workspace, spec, models)


def _prepare(workspace: Workspace, tokenizer: Any, make_toy: ModuleType) -> None:
    """As Prepare leaves it: prompts, and one tokenizer for all."""
    folder = workspace.local_path("prepared")
    assert folder is not None
    for place in ("tokenizer", "teachers/north", "teachers/south"):
        tokenizer.save_pretrained(folder / place)
    rows = [prompt_row(chat[0]["content"]) for chat in make_toy.chats()]
    rows = sorted({row.row_id: row for row in rows}.values(), key=lambda row: len(row.messages))[: PROMPTS + HELD_OUT]
    workspace.write_bytes("prepared/train.parquet", to_parquet(rows[HELD_OUT:]))
    workspace.write_bytes("prepared/valid.parquet", to_parquet(rows[:HELD_OUT]))


def _spec(*teachers: dict[str, Any]) -> DistillationJobSpec:
    filters = {"dropTruncated": False, "dropRepetitive": False, "minTokens": 0, "deduplicate": False}
    generation = {"signal": "TopK", "topK": K, "temperature": 0, "maxTokens": 6, "shards": 2, "filters": filters}
    spec = {
        "teachers": list(teachers),
        "student": {"prunedFrom": {"teacher": "north", "layers": 2}},
        "data": {"train": {"uri": "file:///d.jsonl"}},
        "generation": {**generation, "minYield": 0.5},
        "training": {"gpusPerNode": 0},
        "output": {"uri": "file:///o"},
    }
    head = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": {"name": "demo"}}
    return parse_job({**head, "spec": spec}).spec


def _run(spec: DistillationJobSpec, name: str, workspace: Workspace) -> GenerateRun:
    begin, end = share(spec, name)
    return GenerateRun(
        job=JobIdentity(namespace="default", name="demo", uid="u", spec_digest="sha256:0"),
        workspace=workspace.root,
        folder=f"answers/{name}",
        input_digest=f"sha256:{name}",
        task=Task.CONVERSATION,
        teacher=spec.teacher(name),
        generation=Generation.model_validate(spec.generation.model_dump()),
        prepared="prepared",
        share_from=begin,
        share_to=end,
    )


def test_every_prompt_is_answered_once_by_the_teacher_whose_it_is(answered: Answered) -> None:
    for split, count in (("train", PROMPTS), ("valid", HELD_OUT)):
        by_teacher = {name: answered.rows(split, f"answers/{name}") for name in answered.models}
        ids = [row.row_id for rows in by_teacher.values() for row in rows]
        ids += [line["row_id"] for line in answered.rejected() if line["split"] == split]
        assert len(set(ids)) == len(ids) == count
        assert all(row.teacher == name for name, rows in by_teacher.items() for row in rows)
    assert 0.5 < len(answered.rows("train", "answers/north")) / PROMPTS < 0.8


def test_each_row_has_the_candidates_of_its_own_teacher(answered: Answered) -> None:
    """By the ids, in the tokens that the student learns; the end, of which such a server says nothing, left out."""
    for row in answered.rows("train"):
        assert row.signal is not None
        kept = slice(0, -1 if row.teacher == "south" else None)
        said = type(row.signal)(*(column[kept] for column in vars(row.signal).values()))
        own, others = (_logprobs(answered.models[name], row)[kept] for name in _first(row.teacher))
        check_candidates(said, own, EXACT, ROUNDED)
        with pytest.raises(AssertionError, match=r"off by|left out"):
            check_candidates(said, others, EXACT, ROUNDED)


def _first(name: str) -> tuple[str, str]:
    return ("north", "south") if name == "north" else ("south", "north")


@torch.no_grad()
def _logprobs(model: Any, row: AnswerRow) -> torch.Tensor:
    ids_T, at_N = torch.tensor(row.input_ids).long(), torch.tensor(row.target_mask).nonzero()[:, 0]
    logits_NV: torch.Tensor = model(ids_T[None]).logits[0, at_N - 1]
    return logits_NV.log_softmax(-1)


def test_one_student_learns_from_both(answered: Answered, a_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    run = a_run(
        workspace=answered.workspace.root,
        student={"prunedFrom": {"teacher": "north", "layers": 2}},
        teachers=[teacher.model_dump(mode="json", by_alias=True) for teacher in answered.spec.teachers],
        answers=answered.folders,
        training={"objective": {"softWeight": 1.0}, "hyperparameters": {"epochs": 4, "globalBatchSize": 4}},
    )
    result = train.run(run, context_of(answered.workspace, tmp_path))
    assert result.steps == math.ceil(4 * len(answered.rows("train")) / 4)
    log = answered.workspace.read_bytes(f"{run.folder}/losses.jsonl").decode().splitlines()
    held_out = [line["validation_loss"] for line in map(json.loads, log) if "validation_loss" in line]
    assert min(held_out) < 0.7 * held_out[0]

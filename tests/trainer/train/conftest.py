"""A toy teacher, its answers in a workspace, and trainings on them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from toys.example import load_make_toy
from training.forks import Server, fork_server
from training.places import lay_out

from kubedistill_api.base import Stage
from kubedistill_api.results import GenerateResult, TrainResult
from kubedistill_api.run import TrainRun
from kubedistill_api.status import Ledger
from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.core.targets import Turn, shift, supervise
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import train
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.shards import AnswerRow, Shard, ShardMeta, Signal, commit_shard
from kubedistill_trainer.store.workspace import Workspace

K = 4
TRAIN_ROWS = 12
VALID_ROWS = 5
LONGEST = 48
"""Tokens of a row: short ones keep the tests short."""
FOLDER = "jobs/demo/train-1"


@pytest.fixture(scope="session", autouse=True)
def _everything_on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="session")
def make_toy() -> ModuleType:
    """examples/models/make_toy.py."""
    return load_make_toy()


@pytest.fixture(scope="session")
def teacher(make_toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy teacher of 4 layers: a folder with weights and tokenizer."""
    return Path(make_toy.make_toy(tmp_path_factory.mktemp("models") / "toy", make_toy.Toy(vocabulary=512)))


@pytest.fixture(scope="session")
def answers(teacher: Path, make_toy: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with what Prepare and Generate would have left: a tokenizer, and answers with top-K logprobs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("workspace")
    workspace = Workspace.open(folder.as_uri())
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.save_pretrained(folder / "prepared" / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    rows = list(_rows(model, tokenizer, make_toy))
    shares = {"train": rows[:TRAIN_ROWS], "valid": rows[TRAIN_ROWS : TRAIN_ROWS + VALID_ROWS]}
    for split, share in shares.items():
        meta = ShardMeta(split=split, index=0, teacher="toy", k=K)
        commit_shard(workspace, "answers/toy", Shard(meta, [_in(row, split) for row in share]))
    result = GenerateResult(
        input_digest="sha256:0", output_digest="sha256:0", folder="answers/toy", teacher="toy", ledger=Ledger()
    )
    manifests.commit(workspace, result)
    return folder


def _in(row: AnswerRow, split: str) -> AnswerRow:
    return AnswerRow(**{**row.__dict__, "split": split})


@torch.no_grad()
def _rows(model: Any, tokenizer: Any, make_toy: ModuleType) -> Iterator[AnswerRow]:
    for number, chat in enumerate(make_toy.chats()):
        prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(chat[1]["content"], add_special_tokens=False)[: 8 + number % 5]
        tokens = supervise([Turn(prompt, answer, complete=True)], [tokenizer.eos_token_id])
        if len(tokens.input_ids) > LONGEST:
            continue
        ids_T = torch.tensor(tokens.input_ids)
        shifted = shift(ids_T, torch.tensor(tokens.target_mask))
        seen = top_k(model(ids_T[None]).logits[0, shifted.positions_N], shifted.target_ids_N, K)
        yield AnswerRow(
            row_id=f"{number * 7919 % 1000:04}",
            sample=0,
            split="train",
            label="",
            messages=json.dumps(chat),
            text=chat[1]["content"],
            finish_reason="stop",
            teacher="toy",
            input_ids=np.array(tokens.input_ids, dtype=np.int32),
            target_mask=np.array(tokens.target_mask),
            signal=Signal(
                seen.ids_NK.numpy().astype(np.int32),
                seen.logprobs_NK.numpy().astype(np.float16),
                seen.tail_N.numpy(),
                seen.target_N.numpy(),
            ),
        )


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    result: TrainResult
    folder: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "losses.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        """Of each step."""
        return [line["loss"] for line in self.lines if "loss" in line]

    @property
    def validation_losses(self) -> dict[int, float]:
        """By step."""
        return {line["step"]: line["validation_loss"] for line in self.lines if "validation_loss" in line}

    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)


@pytest.fixture(scope="session")
def a_run(teacher: Path) -> Callable[..., TrainRun]:
    """Builds a run; only what matters is named. A nested dictionary is merged into the one it names."""

    def build(**changes: Any) -> TrainRun:
        training: dict[str, Any] = {
            "gpusPerNode": 0,
            "precision": "FP32",
            "gradientCheckpointing": False,
            "deepspeed": {"zeroStage": 0},
            "objective": {"type": "ForwardKL", "softWeight": 0.75},
            "hyperparameters": {"globalBatchSize": 4, "microBatchSize": 2, "epochs": 2, "learningRate": 2e-3},
        }
        plain: dict[str, Any] = {
            "job": {"namespace": "default", "name": "demo", "uid": "u", "specDigest": "sha256:0"},
            "workspace": "file:///unset",
            "folder": FOLDER,
            "inputDigest": "sha256:1",
            "task": "Conversation",
            "student": {"prunedFrom": {"teacher": "toy", "layers": 2}},
            "teachers": [{"name": "toy", "model": {"uri": teacher.as_uri()}, "batch": {"gpus": 0}}],
            "generation": {"signal": "TopK", "topK": K, "tail": "Bucket"},
            "training": training,
            "microBatchSize": 2,
            "prepared": "prepared",
            "answers": ["answers/toy"],
        }
        return TrainRun.model_validate(_merged(plain, changes))

    return build


def _merged(plain: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = dict(plain)
    for key, value in changes.items():
        both[key] = _merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


@pytest.fixture
def a_context(answers: Path, tmp_path: Path) -> Callable[..., StageContext]:
    """Builds a context whose workspace is new but for the answers; `name` tells several of one test apart."""

    def build(name: str = "workspace") -> StageContext:
        folder = tmp_path / name
        lay_out(answers, folder)
        return StageContext(
            workspace=Workspace.open(folder.as_uri()),
            scratch=tmp_path / f"{name}-scratch",
            progress=ProgressBoard(Stage.TRAIN),
            stopping=threading.Event(),
        )

    return build


@pytest.fixture
def trained(a_run: Callable[..., TrainRun], a_context: Callable[..., StageContext]) -> Callable[..., Trained]:
    """Trains in a workspace of its own and returns what came of it."""

    def do(name: str = "workspace", **changes: Any) -> Trained:
        context = a_context(name)
        result = train.run(in_workspace(a_run(**changes), context), context)
        assert isinstance(result, TrainResult)
        folder = context.workspace.local_path(FOLDER)
        assert folder is not None
        return Trained(result, folder)

    return do


def in_workspace(run: TrainRun, context: StageContext) -> TrainRun:
    """The run with the context's workspace."""
    return run.model_copy(update={"workspace": context.workspace.root})


@pytest.fixture(scope="module")
def server(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Forks trainings."""
    with fork_server(teacher, tmp_path_factory.mktemp("server") / "log") as server:
        yield server

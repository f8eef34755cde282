"""A workspace in which Prepare, Generate and Train have been: a toy teacher, its answers, a toy student."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from teaching.models import byte_tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from kubedistill_api.base import Stage, Task
from kubedistill_api.data import Data, DataRef
from kubedistill_api.evaluation import Evaluation, Metric
from kubedistill_api.generation import Generation, Signal
from kubedistill_api.results import EvaluateResult, GenerateResult, PrepareResult, TrainResult
from kubedistill_api.run import EvaluateRun, JobIdentity
from kubedistill_api.status import Estimate, Ledger, RejectReason, ResolvedModel
from kubedistill_api.student import PrunedFrom, Student
from kubedistill_api.teachers import Batch, ModelRef, Teacher
from kubedistill_api.training import Hyperparameters, Precision, Training
from kubedistill_trainer.core.pruning import prune
from kubedistill_trainer.core.signals import top_k
from kubedistill_trainer.core.targets import Turn, shift, supervise
from kubedistill_trainer.evaluation.answering import generate, until_end
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import evaluate
from kubedistill_trainer.store import manifests, shards
from kubedistill_trainer.store.rows import SPLITS, Split
from kubedistill_trainer.store.shards import AnswerRow, Shard, ShardMeta
from kubedistill_trainer.store.workspace import Workspace

K = 8
KEPT = (0, 2, 3)
PROMPTS = [f"{word} router {i}" for i, word in enumerate(["reset the", "sell me a", "why is my", "where is the"] * 3)]


def a_model(layers: int = 4, seed: int = 7) -> Any:
    """Random weights, and six logits more than the tokenizer has tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.25,
        eos_token_id=0,
        bos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


@dataclass
class World:
    """A workspace and a run file for Evaluate, both ready."""

    root: Path
    run: EvaluateRun
    context: StageContext

    @property
    def teacher(self) -> Any:
        return LlamaForCausalLM.from_pretrained(self.root / "teacher").eval()

    def student(self, keep: Sequence[int] = KEPT) -> Any:
        """Some of the teacher's layers."""
        return prune(self.teacher, keep)

    def train(self, student: Any) -> World:
        """Let Train have left these weights."""
        folder = self.root / "workspace" / self.run.trained / "model"
        shutil.rmtree(folder, ignore_errors=True)
        student.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return self

    def asking(self, **changes: Any) -> World:
        """The same with another run file."""
        return World(self.root, self.run.model_copy(update=changes), self.context)

    def measuring(self, *metrics: Metric, **more: Any) -> World:
        """The same with another evaluation."""
        return self.asking(evaluation=Evaluation(metrics=list(metrics), **more))

    def evaluate(self) -> EvaluateResult:
        return evaluate.run(self.run, self.context)

    def read(self, name: str) -> str:
        return (self.root / "workspace" / self.run.folder / name).read_text()


def answered(teacher: Any, tokenizer: Any, split: Split, signal: Signal) -> list[AnswerRow]:
    """The teacher's greedy answers to all prompts, scored by the teacher."""
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    asked = [list(tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False)) for c in chats]
    answers = [until_end(row, [0]) for row in generate(teacher, asked, 12, [0], len(tokenizer)).tolist()]
    rows = []
    for chat, prompt, answer in zip(chats, asked, answers, strict=True):
        tokens = supervise([Turn(prompt, answer, complete=True)], [0])
        text = tokenizer.decode(answer, skip_special_tokens=True).strip()
        ids_T, mask_T = torch.tensor(tokens.input_ids), torch.tensor(tokens.target_mask)
        row = AnswerRow(
            row_id=hashlib.sha256(f"{split} {chat}".encode()).hexdigest(),
            sample=0,
            split=split,
            label="",
            messages=json.dumps([*chat, {"role": "assistant", "content": text}]),
            text=text,
            finish_reason="stop",
            teacher="toy",
            input_ids=ids_T.numpy().astype(np.int32),
            target_mask=mask_T.numpy(),
            signal=scored(teacher, ids_T, mask_T, len(tokenizer)) if signal is Signal.TOP_K else None,
        )
        rows.append(row)
    return rows


@torch.inference_mode()
def scored(teacher: Any, ids_T: torch.Tensor, mask_T: torch.Tensor, vocabulary: int) -> shards.Signal:
    at = shift(ids_T, mask_T)
    logits_NV = teacher(ids_T[None]).logits[0, at.positions_N, :vocabulary]
    found = top_k(logits_NV, at.target_ids_N, K)
    return shards.Signal(
        found.ids_NK.numpy().astype(np.int32),
        found.logprobs_NK.numpy().astype(np.float16),
        found.tail_N.numpy(),
        found.target_N.numpy(),
    )


def make(root: Path, signal: Signal) -> None:
    """What Prepare, Generate and Train leave in a workspace."""
    teacher, tokenizer = a_model(), byte_tokenizer()
    for folder in (root / "teacher", root / "workspace" / "prepared" / "tokenizer"):
        tokenizer.save_pretrained(folder)
    teacher.save_pretrained(root / "teacher")
    workspace = Workspace.open((root / "workspace").as_uri())
    _generate(workspace, teacher, tokenizer, signal)
    _results(workspace)
    opened = open_world(root, signal)
    opened.train(half_way(opened))


def open_world(root: Path, signal: Signal) -> World:
    """A workspace that was made, and a run file for it."""
    run = EvaluateRun(
        job=JobIdentity(namespace="team", name="support", uid="uid-1", spec_digest="sha256:spec"),
        workspace=(root / "workspace").as_uri(),
        folder="evaluated",
        input_digest="sha256:input",
        task=Task.CONVERSATION,
        student=Student(pruned_from=PrunedFrom(teacher="toy", layers=len(KEPT))),
        teachers=[Teacher(name="toy", model=ModelRef(uri=(root / "teacher").as_uri()), batch=Batch(gpus=0))],
        data=Data(train=DataRef(uri="file:///data/train.jsonl")),
        generation=Generation(signal=signal, top_k=K, max_tokens=12),
        training=Training(
            gpus_per_node=0, precision=Precision.FP32, hyperparameters=Hyperparameters(global_batch_size=4)
        ),
        evaluation=Evaluation(),
        prepared="prepared",
        answers=["answers"],
        trained="trained",
    )
    workspace = Workspace.open(run.workspace)
    return World(root, run, StageContext(workspace, root / "scratch", ProgressBoard(Stage.EVALUATE), Event()))


def _generate(workspace: Workspace, teacher: Any, tokenizer: Any, signal: Signal) -> None:
    for split in SPLITS:
        rows = answered(teacher, tokenizer, split, signal)
        meta = ShardMeta(split=split, index=0, teacher="toy", k=K if signal is Signal.TOP_K else 0)
        shards.commit_shard(workspace, "answers", Shard(meta, rows))


def _results(workspace: Workspace) -> None:
    common = {"input_digest": "sha256:in", "output_digest": "sha256:out"}
    toy = ResolvedModel(
        role="teacher:toy", uri="file:///toy", revision="abc123", parameters=160_000, size_bytes=320_000
    )
    rejected = Ledger(accepted=24, rejected=2, top_reasons=[RejectReason(reason="Truncated", count=2)])
    for result in (
        PrepareResult(folder="prepared", estimate=Estimate(rows=12, validation_rows=12), models=[toy], **common),
        GenerateResult(folder="answers", teacher="toy", ledger=rejected, **common),
        TrainResult(
            folder="trained", steps=3, loss=1.0, micro_batch_size=2, parameters=750, layers_kept=list(KEPT), **common
        ),
    ):
        manifests.commit(workspace, result)
    lines = [{"step": 1, "loss": 3.0, "lr": 1e-3}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_loss": 2.5}]
    workspace.write_bytes("trained/losses.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    workspace.write_bytes("trained/student.json", json.dumps({"keptLayers": list(KEPT)}).encode())


@pytest.fixture(scope="session", autouse=True)
def _everything_on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Signal], Path]:
    """The folder of a workspace for a signal; each is made once."""

    @cache
    def root_of(signal: Signal) -> Path:
        root = tmp_path_factory.mktemp(signal.lower())
        make(root, signal)
        return root

    return root_of


@pytest.fixture
def world(made: Callable[[Signal], Path], tmp_path: Path) -> World:
    """A student of three of the teacher's four layers, half way back to it; the teacher left its logprobs."""
    shutil.copytree(made(Signal.TOP_K), tmp_path / "world")
    return open_world(tmp_path / "world", Signal.TOP_K)


@pytest.fixture
def text_world(made: Callable[[Signal], Path], tmp_path: Path) -> World:
    """The same, but the teacher left text alone."""
    shutil.copytree(made(Signal.TEXT), tmp_path / "world")
    return open_world(tmp_path / "world", Signal.TEXT)


@pytest.fixture
def two_teachers() -> Callable[[World], World]:
    """Gives every other held-out prompt to another teacher, whose weights have nothing to do with the first's."""

    def share(world: World) -> World:
        workspace, tokenizer = world.context.workspace, byte_tokenizer()
        ours = list(shards.read_answers(workspace, ["answers"], "valid"))[::2]
        theirs = answered(a_model(seed=8), tokenizer, "valid", Signal.TOP_K)[1::2]
        theirs = [replace(row, teacher="other") for row in theirs]
        workspace.remove("answers/shards/valid-00000.parquet")
        for folder, name, rows in (("answers", "toy", ours), ("answers-2", "other", theirs)):
            meta = ShardMeta(split="valid", index=0, teacher=name, k=K)
            shards.commit_shard(workspace, folder, Shard(meta, rows))
        result = GenerateResult(
            folder="answers-2", teacher="other", ledger=Ledger(accepted=6), input_digest="i", output_digest="o"
        )
        manifests.commit(workspace, result)
        other = Teacher(name="other", model=ModelRef(uri="file:///other"), batch=Batch(gpus=0))
        return world.asking(teachers=[*world.run.teachers, other], answers=["answers", "answers-2"])

    return share


def half_way(world: World) -> Any:
    """The pruned student, trained for a moment towards the teacher on its held-out answers: surely better there."""
    student = world.student().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    rows = list(shards.read_answers(world.context.workspace, ["answers"], "valid"))
    ids_BT = pad_sequence([torch.from_numpy(row.input_ids.astype("int64")) for row in rows], batch_first=True)
    with torch.no_grad():
        wanted_BTV = world.teacher(ids_BT).logits.softmax(-1)
    for _ in range(15):
        torch.nn.functional.cross_entropy(student(ids_BT).logits.flatten(0, 1), wanted_BTV.flatten(0, 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return student.eval()


@pytest.fixture
def relabelled() -> Callable[..., World]:
    """Gives every held-out prompt a label: what the teacher said, or, every other time, something else."""

    def relabel(world: World, task: Task) -> World:
        workspace = world.context.workspace
        rows = list(shards.read_answers(workspace, ["answers"], "valid"))
        texts = [row.text if index % 2 else "nothing it would say" for index, row in enumerate(rows)]
        labelled = [replace(row, label=text) for row, text in zip(rows, texts, strict=True)]
        workspace.remove("answers/shards/valid-00000.parquet")
        shards.commit_shard(
            workspace, "answers", Shard(ShardMeta(split="valid", index=0, teacher="toy", k=K), labelled)
        )
        return world.asking(task=task)

    return relabel

"""An output in a folder and in a bucket, and a workspace in which everything but Publish is done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.data import Data, DataRef
from kubedistill_api.evaluation import Metric
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.output import Output
from kubedistill_api.results import GenerateResult, PrepareResult, PublishResult, TrainResult
from kubedistill_api.run import JobIdentity, PublishRun
from kubedistill_api.status import Estimate, Ledger, ResolvedModel
from kubedistill_api.student import Adapter, Student
from kubedistill_api.teachers import Batch, External, ModelRef, Teacher
from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.report.content import SCORECARD, Scorecard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import publish
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.workspace import Workspace


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    """An empty output: in a folder, and in a bucket of a real S3."""
    if request.param == "folder":
        return Workspace.open((tmp_path / "output").as_uri())
    return Workspace.open(f"{request.getfixturevalue('s3_bucket')}/{tmp_path.parent.name}-{tmp_path.name}/model")


@dataclass
class Finished:
    """A workspace and a run file for Publish."""

    run: PublishRun
    context: StageContext

    def asking(self, **changes: Any) -> Finished:
        """The same with another run file."""
        return Finished(self.run.model_copy(update=changes), self.context)

    def to(self, uri: str, **more: Any) -> Finished:
        """The same with another output."""
        return self.asking(output=Output(uri=uri, **more))

    def publish(self) -> PublishResult:
        result = publish.run(self.run, self.context)
        assert isinstance(result, PublishResult)
        return result


@pytest.fixture
def finished(tiny_folder: Path, tmp_path: Path) -> Finished:
    """Everything but Publish is done; the trained student is the tiny model, with an adapter beside it."""
    workspace = Workspace.open((tmp_path / "workspace").as_uri())
    shutil.copytree(tiny_folder, tmp_path / "workspace" / "trained" / "model")
    workspace.write_bytes("trained/adapter/adapter_config.json", b"{}")
    entries = manifests.entries_of(tmp_path / "workspace" / "trained")
    common = {"input_digest": "sha256:in", "output_digest": "sha256:out"}
    found = ResolvedModel(role="student", uri="hf://acme/base", revision="4e53f73", parameters=10, size_bytes=20)
    ledger = Ledger(accepted=90, rejected=10)
    manifests.commit(workspace, PrepareResult(folder="prepared", estimate=Estimate(rows=100), models=[found], **common))
    manifests.commit(workspace, GenerateResult(folder="answers/big-1", teacher="big", ledger=ledger, **common))
    few = Ledger(accepted=7, rejected=1)
    manifests.commit(workspace, GenerateResult(folder="answers/api-1", teacher="api", ledger=few, **common))
    train = TrainResult(folder="trained", steps=3, loss=1.0, micro_batch_size=2, parameters=99_000_000, **common)
    manifests.commit(workspace, train, entries)
    card = Scorecard("The student has 99 M parameters.", [Compared(Metric.TEACHER_KL, 0.7, 3.1, 0.0)], [])
    workspace.write_bytes("evaluated/scores.json", SCORECARD.dump_json(card))
    workspace.write_bytes("evaluated/report.html", b"<!doctype html><title>report</title>")
    spec = DistillationJobSpec(
        teachers=[
            Teacher(name="big", model=ModelRef(uri="hf://acme/big"), batch=Batch(gpus=0)),
            Teacher(
                name="api", external=External(url="https://api.example/v1", model="acme-large", terms_accepted=True)
            ),
        ],
        student=Student(model=ModelRef(uri="hf://acme/base"), adapter=Adapter(rank=8)),
        data=Data(train=DataRef(uri="s3://acme/prompts.jsonl")),
        output=Output(uri=(tmp_path / "output").as_uri()),
    )
    run = PublishRun(
        job=JobIdentity(namespace="team", name="support", uid="uid-1", spec_digest="sha256:spec"),
        workspace=workspace.root,
        folder="published",
        input_digest="sha256:input",
        spec=spec,
        output=spec.output,
        prepared="prepared",
        answers=["answers/big-1", "answers/api-1"],
        trained="trained",
        evaluated="evaluated",
    )
    return Finished(run, StageContext(workspace, tmp_path / "scratch", ProgressBoard(Stage.PUBLISH), Event()))

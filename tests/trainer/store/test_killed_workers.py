"""A Generate worker that is killed in mid-shard and started again: what was finished is never made again (P14)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from teaching.server import TestTeacher
from teaching.work import context_of, prepare, prompt_row

from kubedistill_api.base import Task
from kubedistill_api.exits import Exit
from kubedistill_api.generation import Generation
from kubedistill_api.results import GenerateResult, read_result
from kubedistill_api.run import Endpoint, GenerateRun, JobIdentity
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.stages import generate
from kubedistill_trainer.store.shards import read_shard
from kubedistill_trainer.store.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMPTS, HELD_OUT, SHARDS = 80, 4, 8


def a_run(place: Workspace, url: str, tiny_folder: Path) -> GenerateRun:
    how = {"url": url, "model": "teacher", "termsAccepted": True, "maxConcurrency": 4}
    return GenerateRun(
        job=JobIdentity(namespace="default", name="job", uid="u", spec_digest="sha256:s"),
        workspace=place.root,
        folder="answers/t-1",
        input_digest="sha256:in",
        task=Task.CONVERSATION,
        teacher=Teacher.model_validate({"name": "t", "model": {"uri": tiny_folder.as_uri()}, "external": how}),
        endpoint=Endpoint(url=url, model="teacher"),
        generation=Generation.model_validate({"shards": SHARDS, "maxTokens": 24, "minYield": 0.5}),
        prepared="prepared",
        workers=2,
    )


class Pod:
    """One worker as the cluster runs it: a run file, an index, `python -m kubedistill_trainer generate`."""

    def __init__(self, run: GenerateRun, index: int, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(run.model_dump_json(by_alias=True))
        self.message, self.log = folder / "termination-log", folder / "log"
        self.variables = {
            "KUBEDISTILL_RUN": str(folder / "run.json"),
            "KUBEDISTILL_TERMINATION_LOG": str(self.message),
            "KUBEDISTILL_SCRATCH": str(folder / "scratch"),
            "KUBEDISTILL_PORT": "0",
            "JOB_COMPLETION_INDEX": str(index),
        }

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kubedistill_trainer", "generate"],
                env={**os.environ, **self.variables},
                stdout=log,
                stderr=log,
            )

    def finish(self, process: subprocess.Popen[bytes]) -> GenerateResult:
        assert process.wait(timeout=600) == Exit.OK, self.log.read_text()[-3000:]
        result = read_result(self.message.read_text())
        assert isinstance(result, GenerateResult)
        return result


def test_a_killed_worker_makes_only_what_it_had_not_finished(
    new_uri: Callable[[str], str], tiny_folder: Path, tmp_path: Path
) -> None:
    rows = [prompt_row(f"Question {number}?") for number in range(PROMPTS)]
    whole, place = Workspace.open(new_uri("whole")), Workspace.open(new_uri("killed"))
    with TestTeacher() as teacher:
        prepare(whole, tiny_folder, rows)
        for index in range(2):
            generate.run(a_run(whole, teacher.url, tiny_folder), context_of(whole, tmp_path / "whole", index))

    with TestTeacher(delay_seconds=0.2) as teacher:
        prepare(place, tiny_folder, rows)
        run = a_run(place, teacher.url, tiny_folder)
        staying, dying = Pod(run, 0, tmp_path / "pod-0"), Pod(run, 1, tmp_path / "pod-1")
        first, second = staying.start(), dying.start()
        while not (left := shards_of(place, worker=1)):
            assert second.poll() is None, dying.log.read_text()[-3000:]
            time.sleep(0.01)
        second.kill()
        second.wait()
        left = all_shards(place)
        assert shards_of(place, worker=1), "the worker had finished something"
        assert len(shards_of(place, worker=1)) < len(shards_of(whole, worker=1)), "it was killed in mid-shard"
        assert staying.finish(first).ledger.accepted < PROMPTS + HELD_OUT
        assert not place.exists("answers/t-1/manifest.json")
        result = dying.finish(dying.start())

    assert result.ledger.accepted == PROMPTS + HELD_OUT
    after = all_shards(place)
    assert {path: after[path] for path in left} == left, "a finished shard was made again"
    asked = teacher.prompts()
    assert {asked[prompt] for data in left.values() for prompt in prompts_in(data)} == {1}, "it was asked again"
    assert after == all_shards(whole)
    assert place.read_bytes("answers/t-1/answers.jsonl") == whole.read_bytes("answers/t-1/answers.jsonl")


def all_shards(place: Workspace) -> dict[str, bytes]:
    return {path: place.read_bytes(path) for path in place.list("answers/t-1/shards")}


def shards_of(place: Workspace, worker: int) -> list[str]:
    """The training shards of a worker: of two, those of its own parity."""
    names = [path.rsplit("/", 1)[1] for path in place.list("answers/t-1/shards")]
    return [name for name in names if name.startswith("train-") and int(name[6:11]) % 2 == worker]


def prompts_in(data: bytes) -> list[str]:
    return [json.loads(row.messages)[0]["content"] for row in read_shard(data)[1]]

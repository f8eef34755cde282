"""`kubedistill run` on real stages, stopped and killed in each of them: it ends like the run that nobody touched.

What is held together: the same shards to the byte, the same loss at every step, the same published weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

STAGES = ["prepare", "generate", "train", "evaluate", "publish"]
SHARDS = 5
STEPS = 12


def test_a_run_goes_from_data_to_a_model_that_loads(whole: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(whole.output)
    assert model.config.num_hidden_layers == 2
    assert len(AutoTokenizer.from_pretrained(whole.output)) == model.config.vocab_size
    assert [line["step"] for line in whole.losses() if "loss" in line] == list(range(1, STEPS + 1))
    assert len(whole.shards()) == SHARDS
    assert phase_of(whole) == "Succeeded"


def test_the_same_command_again_finds_everything_done(whole: Any) -> None:
    before, published, logs = whole.committed(), whole.published(), whole.logs()
    started = time.monotonic()
    assert "Succeeded" in whole.run()
    assert time.monotonic() - started < 60, "no stage starts; on a machine of its own it takes about a second"
    assert (whole.committed(), whole.published(), whole.logs()) == (before, published, logs)


def test_logs_hold_what_the_stages_say_and_nothing_of_libraries(whole: Any) -> None:
    lines = [line for stage in STAGES for line in whole.log(stage).splitlines()]
    assert len(lines) > 10
    assert [line for line in lines if " INFO " not in line] == []
    assert [line for line in lines if "default tokenizer" in line] == []


@pytest.mark.parametrize("how", ["interrupt", "kill"], ids=["ctrl-c", "sigkill"])
def test_a_job_that_is_stopped_in_every_stage_ends_like_one_that_never_was(
    make_job: Callable[[str], Any], whole: Any, how: str
) -> None:
    job = make_job(how)
    stop = getattr(job, how)
    moments = moments_of(job)

    stop("prepare", moments["prepare"])
    assert not job.has("prepare", "manifest.json")

    stop("generate", moments["generate"])
    made = job.committed()
    shards = len(job.shards())
    assert 1 <= shards < SHARDS

    stop("train", moments["train"])
    assert f"{shards} of {SHARDS} shards are committed, {SHARDS - shards} are made here" in job.log("generate")
    assert_kept(made, job)
    made = job.committed()
    assert digests_of_shards(job) == digests_of_shards(whole)
    step, checkpoint = job.step(), job.checkpoint()
    assert 2 <= checkpoint <= step < STEPS
    assert how == "kill" or checkpoint == step, "asked to stop, a training writes a checkpoint"
    assert step - checkpoint <= 2 + 1, "at most everySteps, and the one whose checkpoint was being written"

    stop("evaluate", moments["evaluate"])
    assert f"going on from the checkpoint of step {checkpoint}" in job.log("train")
    assert job.losses() == whole.losses()
    assert_kept(made, job)
    made = job.committed()

    stop("publish", moments["publish"])
    assert_kept(made, job)
    made = job.committed()

    assert "Succeeded" in job.run()
    assert_kept(made, job)
    assert phase_of(job) == "Succeeded"
    assert job.published().keys() == whole.published().keys()
    assert job.published()["model.safetensors"] == whole.published()["model.safetensors"]
    assert job.scratch() == whole.scratch(), "nothing of a stopped attempt piles up"
    assert not job.processes()


def moments_of(job: Any) -> dict[str, Callable[[], bool]]:
    """For each stage a moment in the midst of it, told by what it wrote, with work of half a second or more ahead.

    What comes after it in Publish takes milliseconds: a crash between any two of its writes has tests of its own.
    """
    return {
        "prepare": lambda: "looking at the models" in job.log("prepare"),
        "generate": lambda: len(job.shards()) >= 1,
        "train": lambda: job.checkpoint() >= 2 and job.step() >= 3,
        "evaluate": lambda: "reading with the untrained student" in job.log("evaluate"),
        "publish": lambda: "publish" in job.scratch(),
    }


def assert_kept(made: Any, job: Any) -> None:
    """What was committed is there as it was: the same files, not equal ones made anew."""
    now = job.committed()
    assert {name: now.get(name) for name in made} == made


def digests_of_shards(job: Any) -> dict[str, str]:
    return {name: sha256 for name, (_, _, sha256) in job.committed().items() if "/shards/" in name}


def phase_of(job: Any) -> str:
    return str(json.loads(job.run("status", "small", "--output", "json"))["phase"])

"""`kubedistill run` with real processes."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from kubedistill_api import uris

STAGES = ["prepare", "generate", "train", "evaluate", "publish"]


def test_a_job_runs_to_a_model_and_a_second_run_finds_it(bench: Any) -> None:
    file = str(bench.write_job())
    first = bench.run("run", file)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "ROUGE" in first.stdout
    assert "out/small" in first.stdout
    second = bench.run("run", file)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [call[0] for call in bench.calls()] == STAGES


@pytest.mark.slow
def test_a_machine_reads_the_end_as_json(bench: Any) -> None:
    done = bench.run("run", str(bench.write_job()), "--output", "json")
    said = json.loads(done.stdout)
    assert said["phase"] == "Succeeded"
    assert said["modelURI"] == uris.of_path(f"{bench.folder}/out/small")


@pytest.mark.slow
def test_ctrl_c_suspends_and_the_same_command_goes_on(bench: Any, interrupt: Any) -> None:
    file = str(bench.write_job())
    bench.habit("train.sleep", "60")
    process = bench.start("run", file)
    bench.wait_for(lambda: any(call[0] == "train" for call in bench.calls()))
    interrupt(process)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 130, text
    bench.habit("train.sleep", "0")
    again = bench.run("run", file)
    assert again.returncode == 0, again.stdout + again.stderr
    trains = [call[1] for call in bench.calls() if call[0] == "train"]
    assert trains == ["1", "2"], "a resumption is a new attempt"
    assert [call[0] for call in bench.calls()] == ["prepare", "generate", "train", "train", "evaluate", "publish"]


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False], ids=["all-there", "some-missing"])
def test_a_teacher_is_started_again_only_for_answers_that_are_missing(bench: Any, interrupt: Any, there: bool) -> None:
    served = [{"name": "big", "model": {"uri": "file://models/big"}, "serving": {"gpusPerNode": 0}}]
    file = str(bench.write_job(teachers=served))
    bench.habit("generate.sleep", "60")
    process = bench.start("run", file)
    bench.wait_for(lambda: any(call[0] == "generate" for call in bench.calls()))
    interrupt(process)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 130, text
    bench.habit("generate.sleep", "0")
    if there:
        bench.habit("answers.there")
    again = bench.run("run", file)
    assert again.returncode == 0, again.stdout + again.stderr
    asked = [] if there else ["generate"]
    assert [call[0] for call in bench.calls()] == ["prepare", "generate", "look", *asked, *STAGES[2:]]
    assert bench.servers() == 1 + len(asked)


@pytest.mark.slow
def test_a_killed_runner_leaves_no_process_and_the_next_goes_on(bench: Any, is_alive: Any) -> None:
    file = str(bench.write_job())
    bench.habit("generate.sleep", "60")
    process = bench.start("run", file)
    bench.wait_for(lambda: any(call[0] == "generate" for call in bench.calls()))
    stage = int(bench.calls()[-1][2])
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    bench.wait_for(lambda: not is_alive(stage), seconds=5)
    bench.habit("generate.sleep", "0")
    again = bench.run("run", file)
    assert again.returncode == 0, again.stdout + again.stderr


def test_bad_data_ends_with_a_sentence_and_no_second_try(bench: Any) -> None:
    bench.habit("prepare.exit", "65 DataFileEmpty")
    done = bench.run("run", str(bench.write_job()))
    assert done.returncode == 1
    assert "DataFileEmpty" in done.stdout
    assert "Mend it." in done.stdout
    assert "the last words" in done.stdout
    assert len(bench.calls()) == 1


@pytest.mark.slow
def test_what_may_pass_is_tried_again(bench: Any) -> None:
    bench.habit("train.exit", "75 ServerAway")
    bench.habit("train.once")
    done = bench.run("run", str(bench.write_job()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [call[0] for call in bench.calls()].count("train") == 2


@pytest.mark.slow
def test_a_failed_job_is_tried_again_by_the_same_command(bench: Any) -> None:
    file = str(bench.write_job())
    bench.habit("prepare.exit", "65 DataFileEmpty")
    bench.habit("prepare.once")
    assert bench.run("run", file).returncode == 1
    done = bench.run("run", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_broken_file_is_refused_with_all_problems(bench: Any) -> None:
    file = bench.write_job(output={"uri": "gs://x/y"}, student={})
    done = bench.run("run", str(file))
    assert done.returncode == 64
    assert "spec.student" in done.stderr
    assert "spec.output.uri" in done.stderr

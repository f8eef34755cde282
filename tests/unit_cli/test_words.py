"""The command line in words: its help, and what it says of files that are no jobs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kubedistill_cli.app import app

EXAMPLES = Path(__file__).parents[2] / "examples"
COMMANDS = ("validate", "plan", "run", "status", "report")


def kubedistill(*arguments: str) -> Result:
    """The command, in this process; what it raises is a defect."""
    done = CliRunner().invoke(app, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_help_names_every_command_and_where_to_begin() -> None:
    told = kubedistill("--help").stdout
    assert all(f" {command} " in told for command in COMMANDS)
    assert "kubedistill validate job.yaml" in told
    assert kubedistill("-h").stdout == told


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_tells_its_exit_codes(command: str) -> None:
    told = kubedistill(command, "--help")
    assert told.exit_code == 0
    assert "Exit codes: 0" in told.stdout


def test_it_knows_its_version() -> None:
    assert kubedistill("--version").stdout.strip()[0].isdigit()


FILES: dict[str, tuple[bytes, str]] = {
    "binary": (bytes(range(256)), "this is no text in UTF-8 (byte 129 cannot be read); is it the right file?"),
    "utf-16": ("kind: DistillationJob".encode("utf-16"), "this is no text in UTF-8 (byte 1 cannot be read)"),
    "empty": (b"", "the file is empty"),
}


@pytest.mark.parametrize(("content", "sentence"), FILES.values(), ids=FILES.keys())
def test_a_file_that_is_no_job_gets_a_sentence_and_code_64(tmp_path: Path, content: bytes, sentence: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    for command in ("validate", "plan", "run"):
        done = kubedistill(command, str(file))
        assert done.exit_code == 64
        assert f"{file}: 1 problem\n  {sentence}" in done.stderr
        assert done.stdout == ""


def test_a_folder_and_a_file_that_is_not_there_get_a_sentence(tmp_path: Path) -> None:
    assert "this file cannot be read: Is a directory" in kubedistill("validate", str(tmp_path)).stderr
    missing = kubedistill("validate", str(tmp_path / "no.yaml"))
    assert (missing.exit_code, "No such file or directory" in missing.stderr) == (64, True)


def test_machines_get_every_problem_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("kind: DistillationJob\nspec: {task: Poetry, taks: Math}\n")
    done = kubedistill("validate", "--output", "json", str(file))
    said = json.loads(done.stdout)
    assert (done.exit_code, said["valid"]) == (64, False)
    paths = {problem["path"] for problem in said["problems"]}
    assert {"apiVersion", "metadata", "spec.task", "spec.taks", "spec.teachers", "spec.output"} <= paths


def test_what_only_a_run_on_this_machine_takes_is_sound_and_said(tmp_path: Path) -> None:
    job = (EXAMPLES / "01-quickstart.yaml").read_text()
    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"
    here.write_text(job)
    there.write_text(re.sub(r"(output:\s+uri:) \S+", r"\1 s3://acme/models/a", job))
    done = kubedistill("validate", str(here))
    assert done.exit_code == 0
    assert (
        f"{here}: the job is sound for `kubedistill run`. A cluster refuses it:\n  spec.output.uri: file://"
        in done.stdout
    )
    said = json.loads(kubedistill("validate", "--output", "json", str(here)).stdout)
    assert (said["valid"], [problem["path"] for problem in said["refusedByACluster"]]) == (True, ["spec.output.uri"])
    assert kubedistill("validate", str(there)).stdout == f"{there}: the job is sound\n"

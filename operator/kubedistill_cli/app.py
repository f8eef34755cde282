"""The command line: `kubedistill`, also installed as the kubectl plugin `kubectl distill`."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from kubedistill_api.documents import InvalidDocumentError
from kubedistill_api.exits import Exit
from kubedistill_api.job import DistillationJob
from kubedistill_api.rules import Problem
from kubedistill_api.status import Phase, Status
from kubedistill_cli import documents, preview
from kubedistill_cli.local import records, runner
from kubedistill_cli.local.folders import ROOT, JobFolder, job_folders
from kubedistill_cli.show import ending
from kubedistill_cli.show.views import LineView, LiveView, QuietView
from kubedistill_operator.core.settings import Settings

app = typer.Typer(
    name="kubedistill",
    help="""Distil a large language model into a small one, without a cluster.

A job is a YAML file with one DistillationJob, the same that `kubectl apply` takes. Begin with

    kubedistill validate job.yaml
    kubedistill run job.yaml

On a cluster, the operator does what `run` does here: see `kubectl get dj`.""",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)

SUSPENDED_EXIT = 130
"""As after Ctrl-C."""
BUSY_EXIT = int(Exit.TRANSIENT)


class Output(StrEnum):
    """For people, or for machines."""

    TEXT = "text"
    JSON = "json"


JobFile = Annotated[Path, typer.Argument(help="A YAML file with one DistillationJob.", show_default=False)]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people (text) or machines (json).")]
RootOption = Annotated[Path, typer.Option("--root", help="The folder where jobs keep their state, workspace and logs.")]
AnyName = Annotated[str, typer.Argument(help="The job's name; without it, all jobs are listed.", show_default=False)]
OneName = Annotated[str, typer.Argument(help="The job's name; without it, the newest.", show_default=False)]


def _show_version(asked: bool) -> None:
    if asked:
        print(version("kubedistill"))
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before a command; its help is the app's."""


@app.command()
def validate(file: JobFile, output: OutputOption = Output.TEXT) -> None:
    """Check a job file: all problems at once, with their field paths.

    Nothing is started or downloaded. The rules are those of the API server; files and models are looked at only when
    the job runs. A job that only `kubedistill run` takes is sound, and what a cluster would refuse of it is said.

    Exit codes: 0, the job is sound; 64, it is not.
    """
    found: list[Problem] = []
    only_here: list[Problem] = []
    try:
        only_here = documents.refusals_of_a_cluster(documents.load(file))
    except InvalidDocumentError as error:
        found = error.problems
    if output is Output.JSON:
        said = {"problems": found, "refusedByACluster": only_here}
        lists = {name: [{"path": p.path, "message": p.message} for p in some] for name, some in said.items()}
        print(json.dumps({"valid": not found, **lists}))
    elif found:
        _say_problems(file, found)
    elif only_here:
        print(f"{file}: the job is sound for `kubedistill run`. A cluster refuses it:")
        print("\n".join(f"  {problem}" for problem in only_here))
    else:
        print(f"{file}: the job is sound")
    raise typer.Exit(int(Exit.BAD_CONFIGURATION) if found else 0)


@app.command(name="plan")
def show_plan(
    file: JobFile,
    everything: Annotated[
        bool, typer.Option("--all", help="Every stage with its teacher, not only what would be made first.")
    ] = False,
) -> None:
    """Print the Kubernetes objects that a job would make, as YAML.

    For reading and reviewing: the operator makes them, one stage after the other. With `--all`, what only a run can
    know (digests of outputs, uids) is a placeholder.

    Exit codes: 0, printed; 64, the file is wrong.
    """
    job = _load(file)
    make = preview.all_stages if everything else preview.first_pass
    print(documents.as_yaml(make(job, datetime.now(UTC), Settings(local_files=True))), end="")


@app.command()
def run(
    file: JobFile,
    output: OutputOption = Output.TEXT,
    root: RootOption = Path(ROOT),
    again: Annotated[
        bool,
        typer.Option("--again", help="Go through a finished job again; stages whose input is the same are reused."),
    ] = False,
) -> None:
    """Run a job on this machine. Ctrl-C suspends it; the same command goes on.

    The stages run as processes; the extra `kubedistill[trainer]` installs what they need. Paths in `file://` URIs are
    relative to the job's file. Ctrl-C stops at a checkpoint, a second Ctrl-C kills.

    Exit codes: 0, there is a model; 1, it failed; 64, the file is wrong; 75, another run works on this job; 130, it was
    suspended.
    """
    job = _load(file, output)
    folder = JobFolder(root.resolve(), job.metadata.name)
    try:
        with runner.locked(folder):
            status = _run(job, folder, file, output, again=again)
    except runner.BusyError as error:
        print(f"{job.metadata.name}: {error}", file=sys.stderr)
        raise typer.Exit(BUSY_EXIT) from error
    if output is Output.JSON:
        print(json.dumps(ending.as_document(job, status, folder)))
    elif status.phase is Phase.SUSPENDED:
        print(f"Suspended. The same command goes on: kubedistill run {file}")
    else:
        ending.show_end(Console(), job, status, folder)
    raise typer.Exit({Phase.SUCCEEDED: 0, Phase.SUSPENDED: SUSPENDED_EXIT}.get(status.phase, 1))


@app.command(name="status")
def show_status(name: AnyName = "", output: OutputOption = Output.TEXT, root: RootOption = Path(ROOT)) -> None:
    """List the jobs that ran here, or show one of them.

    Exit codes: 0, shown; 1, there is no such job.
    """
    if not name:
        _list_jobs(root, output)
        return
    folder, record = _recorded(root, name)
    if output is Output.JSON:
        print(json.dumps(record.status.model_dump(mode="json", by_alias=True, exclude_none=True)))
        return
    table = Table("Stage", "State", "Attempt", "Progress", box=None)
    for stage in record.status.stages:
        progress = stage.progress
        count = f"{progress.done}/{progress.total} {progress.unit}" if progress and progress.total else ""
        table.add_row(stage.name, str(stage.state), str(stage.attempt or ""), count)
    console = Console()
    console.print(table)
    ending.show_end(console, _job_of(record), record.status, folder)


@app.command()
def report(name: OneName = "", root: RootOption = Path(ROOT)) -> None:
    """Print how the student compares with its teacher and its former self, and where the report lies.

    Exit codes: 0, printed; 1, there is no such job, or it has not been evaluated.
    """
    folder, record = _recorded(root, name)
    if not record.status.evaluation:
        print(f"{record.name} has not been evaluated yet (it is {record.status.phase})", file=sys.stderr)
        raise typer.Exit(1)
    Console().print(ending.comparison(record.status))
    print(ending.report_of(record.status, folder))


def main() -> None:
    """The entry point of the console scripts."""
    app()


def _run(job: DistillationJob, folder: JobFolder, file: Path, output: Output, *, again: bool) -> Status:
    record = records.record_for(job, folder, file.resolve())
    if again:
        record = record.with_status(Status())
    metadata = job.metadata.model_copy(update={"uid": record.uid, "generation": 1})
    job = job.model_copy(update={"metadata": metadata, "status": record.status})
    console = Console()
    view: LiveView | LineView | QuietView = QuietView()
    if output is Output.TEXT:
        view = LiveView(console) if console.is_terminal else LineView(console)
    try:
        return asyncio.run(runner.run(job, record, folder, view))
    finally:
        view.close()


def _load(file: Path, output: Output = Output.TEXT) -> DistillationJob:
    try:
        return documents.load(file)
    except InvalidDocumentError as error:
        if output is Output.JSON:
            problems = [{"path": problem.path, "message": problem.message} for problem in error.problems]
            print(json.dumps({"phase": "Failed", "reason": "InvalidSpec", "problems": problems}))
        else:
            _say_problems(file, error.problems)
        raise typer.Exit(int(Exit.BAD_CONFIGURATION)) from error


def _say_problems(file: Path, problems: list[Problem]) -> None:
    print(f"{file}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", file=sys.stderr)
    for problem in problems:
        print(f"  {problem}", file=sys.stderr)


def _list_jobs(root: Path, output: Output) -> None:
    found = [record for folder in job_folders(root) if (record := records.load(folder)) is not None]
    if output is Output.JSON:
        print(json.dumps([{"name": r.name, "phase": r.status.phase, "stage": r.status.current_stage} for r in found]))
        return
    table = Table("Name", "Phase", "Stage", "Progress", "Score", "Reason", box=None)
    for record in found:
        status = record.status
        table.add_row(record.name, status.phase, status.current_stage, status.progress, status.score, status.reason)
    Console().print(table if found else f"No job has run in {root} yet.")


def _recorded(root: Path, name: str) -> tuple[JobFolder, records.JobRecord]:
    folders = [JobFolder(root, name)] if name else job_folders(root)[:1]
    for folder in folders:
        record = records.load(folder)
        if record is not None:
            return folder, record
    print(f"There is no job {name or 'yet'} in {root}.", file=sys.stderr)
    raise typer.Exit(1)


def _job_of(record: records.JobRecord) -> DistillationJob:
    return documents.load(Path(record.file))

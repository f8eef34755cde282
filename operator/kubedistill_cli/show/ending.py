"""The end of a job, for people and for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import Phase, Status
from kubedistill_cli.local.folders import JobFolder
from kubedistill_cli.show import words

GATE_STYLE = {"Passed": "green", "Failed": "red", "Warned": "yellow", "": ""}


def show_end(console: Console, job: DistillationJob, status: Status, folder: JobFolder) -> None:
    """Print how a job ended: the comparison, the report, the model; or the failure with its last log lines."""
    if status.evaluation:
        console.print(comparison(status))
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(status, folder):
        facts.add_row(Text(name, style="bold"), value)
    console.print(facts)
    if status.phase is Phase.FAILED:
        console.print(_failure(status, folder))


def comparison(status: Status) -> Table:
    """Before, after and the teacher, side by side."""
    table = Table(title="Comparison on held-out prompts", title_justify="left")
    table.add_column("Metric")
    for name in ("Before", "After", "Teacher", "Retained"):
        table.add_column(name, justify="right")
    table.add_column("Gate")
    for score in status.evaluation:
        gate = Text(str(score.gate), style=GATE_STYLE.get(str(score.gate), ""))
        table.add_row(score.metric, score.baseline, score.student, score.teacher, score.retained, gate)
    return table


def report_of(status: Status, folder: JobFolder) -> str:
    """Where the report lies, if there is one."""
    if status.result and status.result.report_uri:
        return words.place(status.result.report_uri)
    evaluated = status.stage("Evaluate")
    if evaluated is None or not evaluated.output_uri:
        found = sorted(folder.workspace.glob("jobs/*/evaluate-*/report.html"), key=lambda path: path.stat().st_mtime)
        return words.near(found[-1]) if found and status.evaluation else ""
    return words.place(f"{evaluated.output_uri}/report.html")


def as_document(job: DistillationJob, status: Status, folder: JobFolder) -> dict[str, Any]:
    """The end for machines."""
    return {
        "name": job.metadata.name,
        "phase": str(status.phase),
        "modelURI": status.result.model_uri if status.result else None,
        "report": report_of(status, folder) or None,
        "folder": str(folder.path),
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def _facts(status: Status, folder: JobFolder) -> list[tuple[str, str]]:
    facts = [("Result", f"{status.phase}" + (f" ({status.reason})" if status.phase is Phase.FAILED else ""))]
    if text := words.answers(status):
        facts.append(("Answers", text))
    if text := words.training(status):
        facts.append(("Training", text))
    if text := report_of(status, folder):
        facts.append(("Report", text))
    if status.result:
        facts.append(("Model", words.place(status.result.model_uri)))
    return [*facts, ("Logs", words.near(folder.path.resolve() / "logs"))]


def _failure(status: Status, folder: JobFolder) -> RenderableType:
    failure = status.last_failure
    if failure is None:
        condition = next((c for c in status.conditions if c.type == "Stalled"), None)
        return Panel(condition.message if condition else status.reason, title=status.reason, border_style="red")
    parts: list[RenderableType] = [Text(failure.message)]
    if failure.log_tail:
        parts += [Text(f"\nLast lines of {words.near(_log(folder, failure.pod))}:", style="bold")]
        parts += [Text(failure.log_tail, style="dim")]
    return Panel(Group(*parts), title=f"{failure.stage}: {failure.reason}", border_style="red", title_align="left")


def _log(folder: JobFolder, pod: str) -> Path:
    return folder.log(pod).resolve()

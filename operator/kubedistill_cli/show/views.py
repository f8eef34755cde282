"""Three ways to watch a job: a live table, plain lines, or nothing until the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kubedistill_api.job import DistillationJob
from kubedistill_api.status import ConditionType, StageState, Status
from kubedistill_cli.show import words
from kubedistill_operator.core.pipeline import pipeline
from kubedistill_operator.core.seen import Seen

MARKS = {
    StageState.SUCCEEDED: ("✓", "green"),
    StageState.REUSED: ("✓", "cyan"),
    StageState.SKIPPED: ("-", "dim"),
    StageState.FAILED: ("✗", "red"),
    StageState.RUNNING: ("▶", "yellow"),
    StageState.WAITING: ("…", "yellow"),
    StageState.PENDING: (" ", "dim"),
}
LINE_PAUSE = timedelta(seconds=15)


class LiveView:
    """A table that is drawn anew: steps, bars, rates, loss."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=False)
        self._spinner = Spinner("dots")
        self._live.start()

    def show(self, job: DistillationJob, seen: Seen) -> None:
        """Draw the job as it is now."""
        self._live.update(Group(self._table(job), self._now(job.status)))

    def say(self, text: str) -> None:
        """Print a sentence above the table."""
        self._live.console.print(Text(text, style="yellow"))

    def close(self) -> None:
        """Leave the last picture on the screen."""
        self._live.stop()

    def _table(self, job: DistillationJob) -> Table:
        table = Table.grid(padding=(0, 2))
        now = datetime.now(UTC)
        for step in pipeline(job.spec):
            stage = job.status.stage(step.name)
            state = stage.state if stage else StageState.PENDING
            mark, style = MARKS[state]
            progress = stage.progress if stage and state is not StageState.PENDING else None
            bar = (
                ProgressBar(total=progress.total, completed=min(progress.done, progress.total), width=24)
                if progress and progress.total
                else Text("")
            )
            count = f"{progress.done}/{progress.total} {progress.unit}" if progress and progress.total else ""
            again = f"attempt {stage.attempt}" if stage and stage.attempt > 1 else ""
            table.add_row(
                Text(mark, style=style),
                Text(step.name, style="bold" if state is StageState.RUNNING else style),
                bar,
                count,
                words.rate(progress) if progress and state is StageState.RUNNING else "",
                Text("reused" if state is StageState.REUSED else words.took(stage, now) if stage else "", style="dim"),
                Text(again, style="yellow"),
            )
        return table

    def _now(self, status: Status) -> Text:
        return Text(f"{sentence(status)}", style="dim")


class LineView:
    """A line whenever something changed, and now and then how far it is: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._states: dict[str, str] = {}
        self._said = ""
        self._last = datetime.min.replace(tzinfo=UTC)

    def show(self, job: DistillationJob, seen: Seen) -> None:
        """Print what is new."""
        status = job.status
        now = datetime.now(UTC)
        for stage in status.stages:
            known = f"{stage.state} {stage.attempt}"
            if self._states.get(stage.name) != known:
                self._states[stage.name] = known
                if stage.state is not StageState.PENDING:
                    took = words.took(stage, now) if stage.completion_time else ""
                    self.say(f"{stage.name}: {stage.state}" + (f" ({took})" if took else ""))
        text = sentence(status)
        if text and text != self._said and now - self._last >= LINE_PAUSE:
            self._said, self._last = text, now
            self.say(text)

    def say(self, text: str) -> None:
        """Print one line with the time."""
        self._console.print(f"{datetime.now().astimezone():%H:%M:%S}  {text}", markup=False, highlight=False)

    def close(self) -> None:
        """Nothing to tidy."""


class QuietView:
    """Nothing until the end."""

    def show(self, job: DistillationJob, seen: Seen) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def sentence(status: Status) -> str:
    """What happens now, in one line."""
    stage = status.stage(status.current_stage) if status.current_stage else None
    progress = stage.progress if stage else None
    waits = status.condition(ConditionType.RECONCILING)
    parts = [status.current_stage]
    if status.reason and waits is not None:
        parts.append(waits.message)
    if progress is not None and stage is not None and stage.state is StageState.RUNNING:
        count = f"{progress.done}/{progress.total} {progress.unit}" if progress.total else ""
        parts += [count, progress.message, words.rate(progress)]
    if status.current_stage == "Train":
        parts.append(words.training(status))
    if status.current_stage.startswith("Generate"):
        parts.append(words.answers(status))
    return ": ".join(parts[:1]) + (": " + "; ".join(p for p in parts[1:] if p) if any(parts[1:]) else "")

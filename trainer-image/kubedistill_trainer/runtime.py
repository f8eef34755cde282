"""What surrounds every stage: the run file, the signal, progress, the result, the exit code.

A stage is a module with `run(run, context) -> Success`. It may also have `unchanged(run, context, manifest) -> bool`,
asked before an earlier result is repeated; without it the same input digest is enough.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from kubedistill_api import environment as env
from kubedistill_api.base import Stage
from kubedistill_api.documents import schema_problems
from kubedistill_api.exits import PEER_LOST, Exit
from kubedistill_api.results import CLASS_OF_EXIT, FailedResult, Success, termination_message
from kubedistill_api.run import Run, read_run
from kubedistill_trainer.errors import BadConfiguration, NotFound, StageError, Stopped
from kubedistill_trainer.progress import ProgressBoard, serve
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import FileEntry, Manifest
from kubedistill_trainer.store.workspace import Workspace

log = logging.getLogger("kubedistill")
FULL = (errno.ENOSPC, errno.EDQUOT)
"""A quota is a full disk to those who have it."""
DEAD_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class StageContext:
    """What a stage has at hand beside its run file."""

    workspace: Workspace
    scratch: Path
    """A local folder that may be lost."""
    progress: ProgressBoard
    stopping: threading.Event
    """Set by SIGTERM: finish what is cheap to finish, commit, raise `Stopped`."""
    log: logging.Logger = log
    worker: int = 0
    """Completion index of this pod."""
    started: float = field(default_factory=time.monotonic)

    def commit(
        self, result: Success, files: Mapping[str, FileEntry] | None = None, meta: Mapping[str, Any] | None = None
    ) -> Success:
        """Make a stage's output visible: `result.json`, then `manifest.json`. The result comes back with its time."""
        result = result.model_copy(update={"seconds": round(time.monotonic() - self.started, 3)})
        manifests.commit(self.workspace, result, files, meta)
        return result

    def check_stopping(self) -> None:
        """Raise `Stopped` if SIGTERM came. Call it only where nothing finished would be lost."""
        if self.stopping.is_set():
            raise Stopped


class StageModule(Protocol):
    """A module of `stages/`."""

    run: Callable[[Any, StageContext], Success]


def load_run(environ: Mapping[str, str] = os.environ) -> Run:
    """The run file that KUBEDISTILL_RUN names.

    Raises:
        NotFound: there is no such file.
        BadConfiguration: it is no run file of this version; the operator's and the trainer's images differ.
    """
    path = Path(environ.get(env.RUN_FILE) or env.RUN_FILE_DEFAULT)
    try:
        return read_run(path.read_bytes())
    except OSError as error:
        raise NotFound("RunFileMissing", f"There is no run file at {path}: set {env.RUN_FILE}.") from error
    except ValidationError as error:
        problems = "; ".join(map(str, schema_problems(error)[:3]))
        raise BadConfiguration(
            "RunFileInvalid",
            f"The run file does not fit this image ({problems}): use the image of the operator's version.",
        ) from error


def open_context(run: Run, environ: Mapping[str, str] = os.environ) -> StageContext:
    """Services for a run, without signals or servers: also for the ranks that a training launches."""
    scratch = Path(environ.get(env.SCRATCH) or env.SCRATCH_DEFAULT)
    worker = int(environ.get(env.COMPLETION_INDEX) or 0)
    return StageContext(
        workspace=Workspace.open(run.workspace, scratch),
        scratch=scratch,
        progress=ProgressBoard(stage=run.stage, attempt=run.attempt, worker=worker),
        stopping=threading.Event(),
        worker=worker,
    )


def execute(run: Run, context: StageContext, module: StageModule) -> Success | FailedResult:
    """Run a stage, or repeat the result of a finished one. Nothing escapes but what ends the interpreter."""
    try:
        recorded = manifests.load(context.workspace, run.folder)
        if recorded is not None and _still_valid(run, context, module, recorded):
            context.log.info("%s is there already: %s", run.stage, context.workspace.uri(run.folder))
            return recorded.result.model_copy(update={"reused": True})
        _sweep(run, context)
        return module.run(run, context)
    except Exception as error:  # the one place where every error becomes a result
        failure = describe(error, run)
        if failure.exit_code == Exit.STOPPED_AT_CHECKPOINT:
            context.log.info("%s stopped: what was finished is committed", run.stage)
        elif isinstance(error, StageError):
            context.log.error("%s: %s", failure.reason, failure.message)
        else:
            context.log.exception("%s failed", run.stage)
        _leave(context, run.folder, failure)
        return failure


def describe(error: BaseException, run: Run) -> FailedResult:
    """Any error as a result."""
    code, reason, message = _explain(error)
    return FailedResult(
        stage=run.stage,
        exit_code=int(code),
        class_=CLASS_OF_EXIT[code],
        reason=reason,
        message=message,
        scores=error.scores if isinstance(error, StageError) else [],
        ledger=error.ledger if isinstance(error, StageError) else None,
    )


def exit_code(result: Success | FailedResult) -> int:
    """The exit code that says the same as a result."""
    return result.exit_code if isinstance(result, FailedResult) else int(Exit.OK)


def write_termination_message(result: Success | FailedResult, environ: Mapping[str, str] = os.environ) -> None:
    """Leave the result where the kubelet (or the local runner) reads it; where there is no such place, log why."""
    path = Path(environ.get(env.TERMINATION_LOG) or env.TERMINATION_LOG_DEFAULT)
    try:
        path.write_text(termination_message(result))
    except OSError as error:
        log.warning("no termination message at %s: %s", path, error)


@contextmanager
def surroundings(context: StageContext, environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """SIGTERM and SIGINT set `stopping`; progress is served, for as long as the block runs."""

    def stop(number: int, _: object) -> None:
        context.log.info("%s: stopping", signal.Signals(number).name)
        context.stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    server = serve(context.progress, int(environ.get(env.PORT) or env.PORT_DEFAULT))
    try:
        yield
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _still_valid(run: Run, context: StageContext, module: StageModule, manifest: Manifest) -> bool:
    if manifest.input_digest != run.input_digest:
        return False
    unchanged = getattr(module, "unchanged", None)
    return True if unchanged is None else bool(unchanged(run, context, manifest))


def _sweep(run: Run, context: StageContext) -> None:
    """Remove drafts of killed attempts, which no listing shows.

    An attempt starts when the pods of the one before are gone, so a stage's folder has no other writer: except
    Generate's, where other workers and other jobs may be at work. There a draft is dead after a day without a byte.
    """
    alone = run.stage is not Stage.GENERATE
    if alone and context.worker:
        return
    context.workspace.sweep(run.folder, below=True, untouched_seconds=0 if alone else DEAD_AFTER_SECONDS)


def _explain(error: BaseException) -> tuple[Exit, str, str]:
    match error:
        case StageError():
            return error.exit_code, error.reason, error.message
        case Stopped():
            return Stopped.exit_code, "Stopped", "The stage was stopped; what was finished is committed."
        case MemoryError():
            return Exit.APPLICATION, "OutOfMemory", "The pod's memory is full: raise the stage's memory limit."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which only some stages import
        return (
            Exit.DEVICE_OUT_OF_MEMORY,
            "DeviceOutOfMemory",
            "The device's memory is full: use smaller batches, shorter sequences or more devices.",
        )
    text = " ".join(str(error).split())[:500]
    if _is_full(error):
        return (
            Exit.TRANSIENT,
            "DiskFull",
            f"No space is left for the stage's scratch files ({text}): ask for ephemeral-storage in the resources of "
            "its stage template, so that its pods go where there is room; on this machine, make room.",
        )
    return Exit.APPLICATION, "UnexpectedError", f"{type(error).__name__}: {text} (the traceback is in the pod's log)"


def _is_full(error: BaseException) -> bool:
    """Whether a disk is full, most likely.

    Libraries in Rust have words only, torch's writer hides even those, and ranks hand on words.
    """
    torchs = ("PytorchStreamWriter failed", "] . unexpected pos ", "iostream error")
    words = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), *torchs)
    found: BaseException | None = error
    while found is not None:
        if getattr(found, "errno", None) in FULL or any(each in str(found) for each in words):
            return True
        found = found.__cause__ or found.__context__
    return False


def _leave(context: StageContext, folder: str, failure: FailedResult) -> None:
    """A failed result beside the stage's files, for people; never over a finished stage's, or over a cause."""
    if failure.reason == PEER_LOST:
        return
    with suppress(StageError):
        if not context.workspace.exists(f"{folder}/{manifests.MANIFEST}"):
            text = failure.model_dump_json(by_alias=True, indent=2)
            context.workspace.write_bytes(f"{folder}/{manifests.RESULT}", text.encode())

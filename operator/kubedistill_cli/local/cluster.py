"""`core.ports.Cluster` on processes and folders of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from kubedistill_api import environment
from kubedistill_api.base import Stage
from kubedistill_api.identity import (
    COMPONENT_LOOK,
    LABEL_ATTEMPT,
    LABEL_COMPONENT,
    LABEL_STAGE,
    LABEL_TEACHER,
    StageKey,
)
from kubedistill_api.job import DistillationJob
from kubedistill_api.progress import ProgressReport
from kubedistill_api.results import FailedResult, Success, read_result
from kubedistill_api.status import Status
from kubedistill_cli.local import questions, translation
from kubedistill_cli.local.children import Children, LocalChild, LocalPod
from kubedistill_cli.local.controller import decide
from kubedistill_cli.local.folders import JobFolder, write_whole
from kubedistill_cli.local.launcher import Launcher, free_port
from kubedistill_cli.local.processes import kill_tree, started_at
from kubedistill_cli.local.records import JobRecord
from kubedistill_operator.core.plans import Lease, Manifest, Ref
from kubedistill_operator.core.seen import JobState, Seen, SeenJob, SeenPod, SeenTeacher
from kubedistill_operator.manifests.run_file import KEY

TAIL_BYTES = 4096
TEACHER_PAUSE = timedelta(seconds=5)
"""Before a server that ended by itself is started again."""


class LocalCluster:
    """One job's children as processes. `observe` also does what controllers do between two looks."""

    def __init__(self, job: DistillationJob, record: JobRecord, folder: JobFolder, cores: int | None = None) -> None:
        self._job = job
        self._record = record
        self._folder = folder
        self._cores = cores or os.cpu_count() or 1
        self._launcher = Launcher()
        self._children = Children.load(folder.children)
        self._probes: dict[str, asyncio.Task[str]] = {}
        self._end_strangers()
        if record.status.start_time is None:
            self._begin_anew()

    async def job(self, namespace: str, name: str) -> DistillationJob | None:
        """The job, with the status that was written last."""
        return self._job

    async def observe(self, job: DistillationJob) -> Seen:
        """Look at every process, let the Jobs take their next step, and ask for progress."""
        now = datetime.now(UTC)
        self._notice_ends(now)
        for child in self._children.of("Job"):
            self._control(child, now)
        for child in self._children.of("Deployment"):
            self._keep_up(child, now)
        self._children.save(self._folder.children)
        jobs = await asyncio.gather(*(self._seen_job(child) for child in self._children.of("Job")))
        teachers = tuple(self._seen_teacher(child) for child in self._children.of("Deployment"))
        return Seen(jobs=tuple(job for job in jobs if job is not None), teachers=teachers)

    async def apply(self, job: DistillationJob, manifest: Manifest) -> None:
        """Write a child down; a Job that may run starts at the next look."""
        key = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if key not in self._children.found:
            state = JobState.ACTIVE if manifest["kind"] == "Job" else None
            self._children.found[key] = LocalChild(
                manifest=manifest, uid=str(uuid.uuid4()), created_at=datetime.now(UTC), state=state
            )
            self._children.save(self._folder.children)

    async def lease(self, job: DistillationJob, lease: Lease) -> None:
        """Let a Job that was held run. One that is held needs no time here: its teacher dies with this runner.

        It is as it was seen: this runner holds the lock, so nobody else writes it.
        """
        child = self._children.get("Job", lease.job.name)
        if child is not None and child.uid == lease.job.uid and lease.workers:
            child.manifest["spec"] |= {"parallelism": lease.workers, "activeDeadlineSeconds": lease.seconds}
            self._children.save(self._folder.children)

    async def delete(self, job: DistillationJob, ref: Ref) -> None:
        """Ask a child's processes to stop; it is gone once they are."""
        child = self._children.get(ref.kind, ref.name)
        if child is not None and child.uid == ref.uid and child.deleting_since is None:
            child.deleting_since = datetime.now(UTC)
            for pod in self._alive(child):
                self._launcher.terminate(pod.pid)
            self._children.save(self._folder.children)

    async def write_status(self, job: DistillationJob, status: Status) -> None:
        """Write the status down. This runner holds the lock, so nobody else does."""
        self._job = self._job.model_copy(update={"status": status})
        write_whole(self._folder.record, self._record.with_status(status).model_dump_json(by_alias=True, indent=1))

    def suspend(self) -> None:
        """Ask for a rest, as `spec.suspend: true` does."""
        spec = self._job.spec.model_copy(update={"suspend": True})
        self._job = self._job.model_copy(update={"spec": spec})

    def close(self) -> None:
        """End whatever still runs."""
        for probe in self._probes.values():
            probe.cancel()
        self._launcher.kill_all()

    def at_rest(self) -> bool:
        """Whether no process runs and none is about to."""
        living = any(child.state is JobState.ACTIVE for child in self._children.of("Job"))
        return not living and not self._children.of("Deployment")

    def reports(self, seen: Seen) -> tuple[ProgressReport, ...]:
        """What the active stage says of itself, for the terminal."""
        return tuple(report for job in seen.jobs for report in job.progress)

    # What controllers do

    def _end_strangers(self) -> None:
        """A runner that was killed left nothing behind, unless its leash was killed too: end that."""
        for child in self._children.found.values():
            for pod in child.pods.values():
                if pod.alive:
                    kill_tree(pod.pid, pod.started)
                    pod.pid = 0
                    pod.started = 0

    def _begin_anew(self) -> None:
        """Attempts of an earlier life of this job are forgotten; what they committed to the workspace is not."""
        self._children = Children()
        for part in ("logs", "pods"):
            shutil.rmtree(self._folder.path / part, ignore_errors=True)

    def _notice_ends(self, now: datetime) -> None:
        for child in list(self._children.found.values()):
            for pod in self._alive(child):
                code = self._launcher.exit_code(pod.pid)
                if code is not None:
                    pod.exit_code, pod.finished_at = code, now
            if child.deleting_since is not None:
                self._end_deleted(child, now)

    def _end_deleted(self, child: LocalChild, now: datetime) -> None:
        grace = (
            5
            if child.kind != "Job"
            else child.manifest["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        )
        for pod in self._alive(child):
            if child.deleting_since and now - child.deleting_since > timedelta(seconds=grace):
                self._launcher.kill(pod.pid)
                return
        if not self._alive(child):
            self._forget(child)

    def _forget(self, child: LocalChild) -> None:
        """Remove an object, and with it those that it owns."""
        self._children.found.pop(f"{child.kind}/{child.name}", None)
        for owned in [c for c in self._children.found.values() if child.uid in c.owners]:
            for pod in self._alive(owned):
                self._launcher.kill(pod.pid)
            self._forget(owned)

    def _control(self, child: LocalChild, now: datetime) -> None:
        if child.state is not JobState.ACTIVE or child.deleting_since is not None or child.held:
            return
        child.started_at = child.started_at or now
        decision = decide(child, now, self._cores)
        if decision.stop:
            for pod in self._alive(child):
                self._launcher.terminate(pod.pid)
        for index in decision.start:
            self._start_stage(child, index, now)
        if decision.end is not None:
            child.state, child.finished_at = decision.end, now
            child.reason, child.message = decision.reason, decision.message

    def _keep_up(self, child: LocalChild, now: datetime) -> None:
        """A teacher's server runs, and is started again when it ended by itself."""
        pod = child.pods.setdefault(0, LocalPod(name=f"{child.name}-0", created_at=now))
        if pod.alive or child.deleting_since is not None:
            return
        if pod.exit_code is not None:
            if pod.finished_at is not None and now - pod.finished_at < TEACHER_PAUSE:
                return
            pod.failures += 1
        pod.port = free_port()
        command = [*translation.command_of(child.container, self._folder, pod.port), "--host=127.0.0.1"]
        variables = translation.variables_of(child.container, os.environ, self._folder)
        self._run(pod, command, variables, now)

    def _start_stage(self, child: LocalChild, index: int, now: datetime) -> None:
        pod = child.pods.setdefault(index, LocalPod(name=f"{child.name}-{index}", index=index, created_at=now))
        if pod.exit_code is not None:
            pod.failures += 1
        pod.port = free_port()
        home = self._folder.pod(pod.name)
        config = self._children.get("ConfigMap", child.name)
        text = config.manifest["data"][KEY] if config else ""
        if child.meets and index == 0:
            child.meeting_port = free_port()
        write_whole(home / KEY, translation.run_file_of(text, self._teacher_ports(), child.meeting_port))
        (home / "result.json").unlink(missing_ok=True)
        scratch = self._folder.scratch / f"node-{index}" if child.meets else self._folder.scratch
        scratch.mkdir(parents=True, exist_ok=True)
        shared = translation.processes_of(text) if child.meets else int(child.manifest["spec"].get("parallelism", 1))
        variables = {
            **translation.variables_of(child.container, os.environ, self._folder),
            environment.RUN_FILE: str(home / KEY),
            environment.TERMINATION_LOG: str(home / "result.json"),
            environment.PORT: str(pod.port),
            environment.COMPLETION_INDEX: str(index),
            environment.SCRATCH: str(scratch),
        }
        if shared > 1:
            variables.setdefault("OMP_NUM_THREADS", str(max(1, self._cores // min(shared, self._cores))))
        self._run(pod, translation.command_of(child.container, self._folder, pod.port), variables, now)

    def _run(self, pod: LocalPod, command: list[str], variables: dict[str, str], now: datetime) -> None:
        pod.pid = self._launcher.start(command, variables, self._folder.log(pod.name))
        pod.started = started_at(pod.pid)
        pod.exit_code = pod.finished_at = None
        self._children.save(self._folder.children)

    def _teacher_ports(self) -> dict[str, int]:
        return {child.name: child.pods[0].port for child in self._children.of("Deployment") if 0 in child.pods}

    def _alive(self, child: LocalChild) -> list[LocalPod]:
        return [pod for pod in child.pods.values() if pod.alive]

    # What is seen

    async def _seen_job(self, child: LocalChild) -> SeenJob | None:
        labels = child.manifest["metadata"]["labels"]
        ports = [pod.port for pod in self._alive(child)]
        reports = await asyncio.gather(*(questions.progress(port) for port in ports))
        return SeenJob(
            name=child.name,
            uid=child.uid,
            key=StageKey(Stage(labels[LABEL_STAGE]), labels.get(LABEL_TEACHER, "")),
            attempt=int(labels[LABEL_ATTEMPT]),
            state=child.state or JobState.ACTIVE,
            held=child.held,
            look=labels[LABEL_COMPONENT] == COMPONENT_LOOK,
            reason=child.reason,
            message=child.message,
            created_at=child.created_at,
            started_at=child.started_at,
            finished_at=child.finished_at,
            deleting=child.deleting_since is not None,
            pods=tuple(seen for pod in child.pods.values() for seen in self._seen_pods(pod)),
            progress=tuple(report for report in reports if report is not None),
        )

    def _seen_teacher(self, child: LocalChild) -> SeenTeacher:
        labels = child.manifest["metadata"]["labels"]
        pod = child.pods.get(0)
        words = self._answer_of(child, pod)
        return SeenTeacher(
            name=child.name,
            uid=child.uid,
            teacher=labels[LABEL_TEACHER],
            attempt=int(labels[LABEL_ATTEMPT]),
            replicas_ready=int(words == ""),
            answered=words == "",
            url=f"http://127.0.0.1:{pod.port}/v1" if pod else "",
            message=words,
            created_at=child.created_at,
            deleting=child.deleting_since is not None,
            pods=tuple(self._seen_pods(pod)) if pod else (),
        )

    def _answer_of(self, child: LocalChild, pod: LocalPod | None) -> str:
        """Whether the server answers a completion, asked in the background; empty once it did."""
        if pod is None or not pod.alive:
            self._probes.pop(child.uid, None)
            return "its server is not running"
        probe = self._probes.get(child.uid)
        if probe is None:
            probe = self._probes[child.uid] = asyncio.create_task(questions.completion(pod.port))
        if not probe.done():
            return "its server is loading the model"
        words = probe.result()
        if words:
            del self._probes[child.uid]
        return words

    def _seen_pods(self, pod: LocalPod) -> Iterator[SeenPod]:
        """The process, and one more pod for each time it ended badly before, as a Job controller leaves them."""
        log = self._folder.log(pod.name)
        failed = pod.exit_code not in (None, 0)
        yield SeenPod(
            name=pod.name,
            node="this machine",
            phase="Running" if pod.alive else ("Failed" if failed else "Succeeded") if pod.pid else "Pending",
            index=pod.index,
            created_at=pod.created_at,
            finished_at=pod.finished_at,
            exit_code=pod.exit_code,
            restarts=pod.failures,
            result=_result(self._folder.pod(pod.name) / "result.json") if pod.exit_code is not None else None,
            log_tail=tail(log) if failed or pod.failures else "",
        )
        for number in range(pod.failures if failed else 0):
            yield SeenPod(name=f"{pod.name}-before-{number}", phase="Failed", index=pod.index, exit_code=1)


def _result(path: Path) -> Success | FailedResult | None:
    try:
        return read_result(path.read_bytes())
    except (OSError, ValidationError):
        return None


def tail(log: Path) -> str:
    """The last lines of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-20:])

"""Builders, and a cluster in memory: a whole second implementation of the seam, with Jobs that run on a script."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubedistill_api.base import Stage
from kubedistill_api.identity import (
    ANNOTATION_STARTED,
    COMPONENT_LOOK,
    LABEL_ATTEMPT,
    LABEL_COMPONENT,
    LABEL_STAGE,
    LABEL_TEACHER,
    StageKey,
)
from kubedistill_api.job import DistillationJob, DistillationJobSpec
from kubedistill_api.results import (
    EvaluateResult,
    FailedResult,
    GenerateResult,
    PrepareResult,
    PublishResult,
    Success,
    TrainResult,
)
from kubedistill_api.run import Run, read_run
from kubedistill_api.status import Estimate, Ledger, Score, Status
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.plans import Lease, Manifest, Plan, Ref
from kubedistill_operator.core.ports import ConflictError
from kubedistill_operator.core.seen import JobState, Refusal, Seen, SeenJob, SeenPod, SeenTeacher
from kubedistill_operator.core.settings import Settings

START = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def a_spec(**parts: Any) -> dict[str, Any]:
    """The smallest spec that is sound; parts replace whole fields."""
    return {
        "teachers": [{"name": "big", "model": {"uri": "hf://acme/big"}, "serving": {}}],
        "student": {"model": {"uri": "hf://acme/small"}},
        "data": {"train": {"uri": "s3://acme/train.jsonl"}},
        "output": {"uri": "s3://acme/models/small"},
        **parts,
    }


def a_job(status: Status | None = None, **parts: Any) -> DistillationJob:
    """A sound job; parts replace fields of its spec."""
    return DistillationJob(
        metadata={"name": "small", "namespace": "team", "uid": "uid-1", "generation": 1},
        spec=DistillationJobSpec.model_validate(a_spec(**parts)),
        status=status or Status(),
    )


def success(run: Run, *, reused: bool = False) -> Success:
    """What a stage says that did its work."""
    said: dict[str, Any] = {
        "input_digest": run.input_digest,
        "output_digest": f"sha256:out-{run.stage.lower()}-{run.input_digest[-8:]}",
        "folder": run.folder,
        "reused": reused,
    }
    match run.stage:
        case Stage.PREPARE:
            return PrepareResult(**said, estimate=Estimate(rows=10))
        case Stage.GENERATE:
            if run.look_only:
                return GenerateResult(**said, teacher=run.teacher.name, ledger=Ledger(), missing_shards=5)
            return GenerateResult(
                **said, teacher=run.teacher.name, ledger=Ledger(accepted=9, rejected=1), tokens_generated=100
            )
        case Stage.TRAIN:
            return TrainResult(**said, steps=5, loss=0.5, micro_batch_size=run.micro_batch_size)
        case Stage.EVALUATE:
            return EvaluateResult(**said, scores=[Score(metric="ROUGE", student="0.5", baseline="0.1")])
        case Stage.PUBLISH:
            return PublishResult(**said, model_uri=run.output.uri, digest="sha256:model", size_bytes=7)


@dataclass
class MemoryCluster:
    """The seam in memory. A Job that may run ends at the next look, as `script` says; the default is success.

    It keeps every rule that the API server and the Job controller keep and a plan leans on: names are unique, a
    deletion names a uid, owned objects go with their owner, a stale status or lease is refused, Jobs and run files are
    not changed by an apply.
    """

    asked: DistillationJob
    script: Callable[[Run], Success | FailedResult | None] = success
    """None: it goes on running."""
    objects: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    ended: dict[str, Success | FailedResult] = field(default_factory=dict)
    """By the Job's uid."""
    born: dict[str, datetime] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    """Names of Jobs in the order of their creation."""
    now: datetime = START
    version: int = 0
    teacher_answers: bool = True
    refuses: Callable[[Manifest], str] = lambda manifest: ""
    """What the API server says of a child that it will not have; empty: it takes it."""
    refused: dict[str, Refusal] = field(default_factory=dict)
    _uids: Any = field(default_factory=lambda: itertools.count(2))

    async def job(self, namespace: str, name: str) -> DistillationJob | None:
        return self.asked

    async def observe(self, job: DistillationJob) -> Seen:
        jobs = tuple(self._seen_job(m) for (kind, _), m in list(self.objects.items()) if kind == "Job")
        teachers = tuple(self._seen_teacher(m) for (kind, _), m in self.objects.items() if kind == "Deployment")
        bound = any(kind == "PersistentVolumeClaim" for kind, _ in self.objects)
        refused = tuple(self.refused.values())
        return Seen(jobs=jobs, teachers=teachers, claim_bound=True if bound else None, refused=refused)

    async def apply(self, job: DistillationJob, manifest: Manifest) -> None:
        key = (manifest["kind"], manifest["metadata"]["name"])
        child = "/".join(key)
        if sentence := self.refuses(manifest):
            before = self.refused.get(child)
            first, times = (before.since, before.times + 1) if before else (self.now, 1)
            self.refused[child] = Refusal(child, sentence, times, since=first, last=self.now)
            raise Refused(sentence)
        self.refused.pop(child, None)
        if key in self.objects:
            uid = self.objects[key]["metadata"]["uid"]
        else:
            uid = f"uid-{next(self._uids)}"
            self.born[uid] = self.now
            if key[0] == "Job":
                self.made.append(key[1])
        owners = {o["uid"] for o in manifest["metadata"]["ownerReferences"]}
        alive = {m["metadata"]["uid"] for m in self.objects.values()} | {self.asked.metadata.uid}
        assert owners <= alive, "an owner that is not there: the garbage collector would delete this at once"
        if key in self.objects and key[0] in ("Job", "ConfigMap"):
            return
        self.objects[key] = {**manifest, "metadata": {**manifest["metadata"], "uid": uid, "resourceVersion": "1"}}

    async def lease(self, job: DistillationJob, lease: Lease) -> None:
        manifest = self._named(lease.job)
        version = manifest["metadata"]["resourceVersion"]
        if lease.resource_version not in ("", version):
            raise ConflictError
        manifest["metadata"]["resourceVersion"] = str(int(version) + 1)
        manifest["spec"]["activeDeadlineSeconds"] = lease.deadline_seconds
        if lease.workers:
            manifest["spec"]["parallelism"] = lease.workers
            manifest["metadata"]["annotations"] = {ANNOTATION_STARTED: lease.now.isoformat()}

    async def delete(self, job: DistillationJob, ref: Ref) -> None:
        found = self.objects.get((ref.kind, ref.name))
        if found is not None and found["metadata"]["uid"] == ref.uid:
            del self.objects[(ref.kind, ref.name)]
            self.collect_garbage()

    async def write_status(self, job: DistillationJob, status: Status) -> None:
        if job.metadata.resource_version != self.asked.metadata.resource_version:
            raise ConflictError
        self.version += 1
        metadata = self.asked.metadata.model_copy(update={"resource_version": str(self.version)})
        self.asked = self.asked.model_copy(update={"status": status, "metadata": metadata})

    def collect_garbage(self) -> None:
        """Owned objects go with their owner."""
        while True:
            alive = {m["metadata"]["uid"] for m in self.objects.values()} | {self.asked.metadata.uid}
            lost = [
                key
                for key, m in self.objects.items()
                if not {o["uid"] for o in m["metadata"]["ownerReferences"]} <= alive
            ]
            if not lost:
                return
            for key in lost:
                del self.objects[key]

    def edit(self, **parts: Any) -> None:
        """Change the spec, as a user does."""
        spec = self.asked.spec.model_dump(by_alias=True, exclude_none=True, mode="json")
        changed = DistillationJobSpec.model_validate({**spec, **parts})
        self.asked = self.asked.model_copy(update={"spec": changed})

    def _named(self, ref: Ref) -> Manifest:
        found = self.objects[(ref.kind, ref.name)]
        assert found["metadata"]["uid"] == ref.uid
        return found

    def _seen_job(self, manifest: Manifest) -> SeenJob:
        meta = manifest["metadata"]
        key = StageKey(Stage(meta["labels"][LABEL_STAGE]), meta["labels"].get(LABEL_TEACHER, ""))
        seen = SeenJob(
            name=meta["name"],
            uid=meta["uid"],
            key=key,
            attempt=int(meta["labels"][LABEL_ATTEMPT]),
            state=JobState.ACTIVE,
            held=manifest["spec"]["parallelism"] == 0,
            look=meta["labels"][LABEL_COMPONENT] == COMPONENT_LOOK,
            created_at=self.born[meta["uid"]],
            clock_from=self.born[meta["uid"]],
            deadline_seconds=manifest["spec"].get("activeDeadlineSeconds"),
            resource_version=meta["resourceVersion"],
        )
        let_run = meta.get("annotations", {}).get(ANNOTATION_STARTED)
        if manifest["spec"].get("suspend") and seen.uid not in self.ended:
            # Its pods are deleted and its clock stands still.
            begun = datetime.fromisoformat(let_run) if let_run else None
            return replace(seen, state=JobState.SUSPENDED, started_at=begun, clock_from=None)
        if self._is_too_old(seen):
            return replace(seen, state=JobState.FAILED, reason="DeadlineExceeded", finished_at=self.now)
        if seen.held:
            return seen
        seen = replace(seen, started_at=datetime.fromisoformat(let_run) if let_run else seen.created_at)
        run = read_run(self.objects[("ConfigMap", meta["name"])]["data"]["run.json"])
        result = self.ended.get(seen.uid) or self.script(run)
        if result is None:
            pod = SeenPod(name=f"{seen.name}-0", phase="Running", created_at=seen.created_at)
            return replace(seen, pods=(pod,))
        self.ended[seen.uid] = result
        bad = isinstance(result, FailedResult)
        pod = SeenPod(
            name=f"{seen.name}-0",
            phase="Failed" if bad else "Succeeded",
            exit_code=result.exit_code if isinstance(result, FailedResult) else 0,
            result=result,
            finished_at=self.now,
        )
        state = JobState.FAILED if bad else JobState.SUCCEEDED
        return replace(seen, state=state, finished_at=self.now, pods=(pod,))

    def _is_too_old(self, seen: SeenJob) -> bool:
        """The Job controller counts from the beginning of the Job's clock, whether it has pods or not."""
        if seen.deadline_seconds is None or seen.clock_from is None or seen.uid in self.ended:
            return False
        return self.now - seen.clock_from >= timedelta(seconds=seen.deadline_seconds)

    def _seen_teacher(self, manifest: Manifest) -> SeenTeacher:
        meta = manifest["metadata"]
        return SeenTeacher(
            name=meta["name"],
            uid=meta["uid"],
            teacher=meta["labels"][LABEL_TEACHER],
            attempt=int(meta["labels"][LABEL_ATTEMPT]),
            answered=self.teacher_answers,
            created_at=self.born[meta["uid"]],
        )


class Crash(Exception):
    """The operator died here."""


class Refused(Exception):
    """The API server will not have a child: the pass ends before its status is written."""


async def one_pass(
    cluster: MemoryCluster, settings: Settings, write: Callable[[str], None] = lambda name: None
) -> Plan:
    """The pass of the operator; `write` is called before and after each write, and may raise Crash."""
    job = cluster.asked
    step = plan(job, await cluster.observe(job), cluster.now, settings)
    writes: list[tuple[str, Any]] = [
        *((f"lease {lease.job.kind}", cluster.lease(job, lease)) for lease in step.leases),
        *((f"apply {m['kind']}", cluster.apply(job, m)) for m in step.apply),
        *((f"delete {r.kind}", cluster.delete(job, r)) for r in step.delete),
        *([("status", cluster.write_status(job, step.status))] if step.status != job.status else []),
    ]
    try:
        while writes:
            name, doing = writes.pop(0)
            try:
                write(f"before {name}")
            except Crash:
                doing.close()
                raise
            try:
                await doing
            except Refused:
                return step
            write(f"after {name}")
    finally:
        for _, undone in writes:
            undone.close()
    return step


async def until(
    cluster: MemoryCluster,
    settings: Settings,
    enough: Callable[[Status], bool] = lambda status: status.finished,
    *,
    passes: int = 60,
    seconds: int = 20,
) -> Status:
    """Passes, with time between them, until the status is as wanted."""
    for _ in range(passes):
        await one_pass(cluster, settings)
        if enough(cluster.asked.status):
            return cluster.asked.status
        cluster.now += timedelta(seconds=seconds)
    raise AssertionError(f"not reached in {passes} passes: {cluster.asked.status.model_dump_json(indent=1)}")


@pytest.fixture
def settings() -> Settings:
    """An installation's defaults."""
    return Settings()


@pytest.fixture
def kit() -> Mapping[str, Any]:
    """The builders above, for tests: in importlib mode a test module cannot import its neighbours."""
    return {
        "a_job": a_job,
        "a_spec": a_spec,
        "success": success,
        "MemoryCluster": MemoryCluster,
        "one_pass": one_pass,
        "until": until,
        "Crash": Crash,
        "START": START,
    }

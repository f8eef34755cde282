"""P7: any spec that the schema takes, and anything that may be seen, give a plan and never an exception."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kubedistill_api.base import Stage
from kubedistill_api.crd import custom_resource_definition
from kubedistill_api.identity import StageKey
from kubedistill_api.job import DistillationJob, DistillationJobSpec
from kubedistill_api.progress import ProgressReport
from kubedistill_api.results import FailedResult, GenerateResult
from kubedistill_api.status import FailureClass, Ledger, Progress, StageState, StageStatus, Status
from kubedistill_operator.core import records
from kubedistill_operator.core.pipeline import pipeline
from kubedistill_operator.core.planner import plan
from kubedistill_operator.core.seen import JobState, Refusal, Seen, SeenJob, SeenPod, SeenTeacher
from kubedistill_operator.core.settings import Settings

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SPEC_SCHEMA = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
URIS = (
    *("hf://acme/big", "s3://acme/x", "s3://acme/y", "pvc://claim/x", "pvc://other/x", "file:///x") * 4,
    *("https://x.example/y", "pvc://", "gs://b/x", "x", "pvc://NO/x", "file://x", "pvc://a/../b", "http://[x"),
)


def values_of(schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that a structural schema of ours takes."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return st.sampled_from([1, "2Gi", "500m"])
    match schema.get("type"):
        case "boolean":
            return st.booleans()
        case "integer":
            low = int(schema.get("minimum", 0)) + bool(schema.get("exclusiveMinimum"))
            return st.integers(low, min(int(schema.get("maximum", 2**31)), low + 64))
        case "number":
            return st.floats(
                schema.get("minimum", 0),
                schema.get("maximum", 1e6),
                exclude_min=bool(schema.get("exclusiveMinimum")),
                exclude_max=bool(schema.get("exclusiveMaximum")),
                allow_subnormal=False,
            )
        case "string":
            return text_of(schema, name)
        case "array":
            items = values_of(schema["items"], name)
            keys = schema.get("x-kubernetes-list-map-keys")
            unique = (lambda item: tuple(item[key] for key in keys)) if keys else None
            low, high = schema.get("minItems", 0), min(schema.get("maxItems", 3), 3)
            return st.lists(items, min_size=low, max_size=max(low, high), unique_by=unique)
        case "object":
            return object_of(schema)
    return st.none()


def text_of(schema: dict[str, Any], name: str) -> st.SearchStrategy[str]:
    """Texts: URIs where a URI stands, what the pattern takes, or any text."""
    if name in ("uri", "url"):
        return st.sampled_from(URIS)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True).filter(
            lambda text: schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 64) and "\x00" not in text
        )
    return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 16), 16))


def object_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects: required fields always, the others now and then."""
    if "properties" not in schema:
        extra = schema.get("additionalProperties")
        inner = values_of(extra) if isinstance(extra, dict) and extra else st.just({})
        return st.dictionaries(names, inner, max_size=2)
    required = set(schema.get("required", ()))
    fields = {name: values_of(field, name) for name, field in schema["properties"].items()}
    return st.fixed_dictionaries(
        {name: strategy for name, strategy in fields.items() if name in required},
        optional={name: strategy for name, strategy in fields.items() if name not in required},
    )


def jobs(spec: DistillationJobSpec) -> st.SearchStrategy[SeenJob]:
    """Attempts of any step in any state."""
    keys = [step.key for step in pipeline(spec)] + [StageKey(Stage.GENERATE, "stranger")]
    failed = FailedResult(stage=Stage.TRAIN, exit_code=70, class_=FailureClass.APPLICATION, reason="R", message="M")
    said = {"input_digest": "sha256:i", "output_digest": "sha256:o", "folder": "answers/x", "teacher": "x"}
    partial = GenerateResult(**said, ledger=Ledger(), missing_shards=3)
    pods = st.builds(
        SeenPod,
        name=names,
        phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        created_at=st.none() | st.just(NOW - timedelta(hours=9)),
        waiting_reason=st.sampled_from(["", "Unschedulable", "ImagePullBackOff"]),
        exit_code=st.none() | st.sampled_from([0, 1, 64, 65, 66, 70, 75, 137, 143, 255, -1]),
        terminated_reason=st.sampled_from(["", "OOMKilled", "Error"]),
        disrupted=st.booleans(),
        result=st.none() | st.just(failed) | st.just(partial),
    )
    report = st.builds(
        ProgressReport,
        stage=st.sampled_from(Stage),
        progress=st.builds(Progress, done=st.integers(0, 9), total=st.integers(0, 9)),
    )
    return st.builds(
        SeenJob,
        name=names,
        uid=names,
        key=st.sampled_from(keys),
        attempt=st.integers(1, 3),
        state=st.sampled_from(JobState),
        held=st.booleans(),
        look=st.booleans(),
        clock_from=st.none() | st.just(NOW - timedelta(hours=9)),
        deadline_seconds=st.none() | st.just(60),
        reason=st.sampled_from(["", "DeadlineExceeded", "PodFailurePolicy"]),
        created_at=st.none() | st.just(NOW - timedelta(hours=9)),
        started_at=st.none() | st.just(NOW - timedelta(hours=9)),
        deleting=st.booleans(),
        pods_refused=st.sampled_from(["", "pods are forbidden: exceeded quota: q"]),
        pods=st.lists(pods, max_size=2).map(tuple),
        progress=st.lists(report, max_size=2).map(tuple),
    )


@st.composite
def moments(draw: st.DrawFn) -> tuple[DistillationJob, Seen]:
    """A job at some moment of its life, and what is seen of it."""
    document = draw(object_of(SPEC_SCHEMA))
    spec = DistillationJobSpec.model_validate(document)
    job = DistillationJob(metadata={"name": draw(names), "uid": "u", "generation": 2}, spec=spec, status=Status())
    status = draw(st.sampled_from(["new", "begun"]))
    if status == "begun":
        stages = [
            StageStatus(
                name=step.name,
                state=draw(st.sampled_from(StageState)),
                attempt=draw(st.integers(0, 3)),
                retry_time=draw(st.none() | st.just("2026-11-25T11:00:00Z") | st.just("not a time")),
            )
            for step in pipeline(spec)
        ]
        begun = records.begun(job, NOW - timedelta(hours=8), Settings())
        job = job.model_copy(update={"status": begun.model_copy(update={"stages": stages})})
    teacher = st.builds(
        SeenTeacher, name=names, uid=names, teacher=st.sampled_from([t.name for t in spec.teachers]),
        attempt=st.integers(1, 3), answered=st.booleans(), created_at=st.none() | st.just(NOW),
    )  # fmt: skip
    first = f"{job.metadata.name}-prepare-1"
    refusal = st.builds(
        Refusal, child=st.sampled_from([f"Job/{first}", f"ConfigMap/{first}"]), message=st.text(max_size=9),
        times=st.integers(1, 10**6), since=st.just(NOW - timedelta(hours=9)), last=st.just(NOW),
    )  # fmt: skip
    seen = Seen(
        refused=tuple(draw(st.lists(refusal, max_size=2))),
        jobs=tuple(draw(st.lists(jobs(spec), max_size=3))),
        teachers=tuple(draw(st.lists(teacher, max_size=2))),
        claim_bound=draw(st.none() | st.booleans()),
    )
    return job, seen


def hold(moment: tuple[DistillationJob, Seen]) -> None:
    """A plan comes, it can be written and read, and an unsound spec starts nothing."""
    job, seen = moment
    step = plan(job, seen, NOW, Settings())
    text = step.status.model_dump_json(by_alias=True, exclude_none=True)
    assert len(text.encode()) <= records.SIZE_LIMIT
    assert TypeAdapter(Status).validate_json(text) == step.status
    for manifest in step.apply:
        yaml.safe_dump(manifest)
        assert len(manifest["metadata"]["name"]) <= 63
    if step.status.reason == "InvalidSpec":
        assert step.apply == ()


def examples(number: int) -> Any:
    """So many, the same each time; a failing one is printed as it was found, since shrinking takes minutes."""
    return hypothesis_settings(
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        derandomize=True,
        database=None,
        phases=(Phase.generate,),
    )


@examples(30)
@given(moments())
def test_some_specs_give_a_plan(moment: tuple[DistillationJob, Seen]) -> None:
    hold(moment)


@pytest.mark.slow
@examples(1000)
@given(moments())
def test_any_spec_and_anything_seen_give_a_plan(moment: tuple[DistillationJob, Seen]) -> None:
    hold(moment)

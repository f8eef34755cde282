"""The CRD on a real API server: every rule refuses with its sentence, and Python says the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import definitions
import pytest
import yaml
from kubernetes import client, config
from kubernetes.client import ApiException
from rig import access

from kubedistill_api.crd import _models_inside
from kubedistill_api.documents import InvalidDocumentError, parse_job, read_job
from kubedistill_api.job import IMMUTABLE, NAME_LIMIT_RULE, DistillationJobSpec
from kubedistill_api.status import Condition, ConditionStatus, ConditionType, Phase, Status
from kubedistill_operator.cluster.kubernetes import plain_status

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
KIND = ("kubedistill.io", "v1alpha1", "default", "distillationjobs")

MODEL = {"uri": "hf://acme/teacher"}
EXTERNAL = {"url": "https://teacher.example/v1", "model": "m", "termsAccepted": True}


def a_gate(metric: str, of: str = "Student") -> dict[str, Any]:
    return {"metric": metric, "of": of, "operator": ">=", "value": 0.5}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "density-of-a-chat": ({"generation": {"reasoning": "ChainOfDensity"}}, "a chain of density is a way to summarise"),
    "length-of-a-chat": ({"generation": {"summaryWords": 40}}, "summaryWords is the length of summaries"),
    "labels": ({"task": "Classification"}, "write data.labels with at least two"),
    "soft-loss-needs-topk": ({"training.objective.type": "ForwardKL"}, "needs generation.signal: TopK"),
    "external-topk": (
        {"teachers": [{"name": "t", "model": MODEL, "external": EXTERNAL}], "generation": {"signal": "TopK"}},
        "at most 20 logprobs",
    ),
    "answer-above-tokens-per-minute": (
        {
            "teachers": [{"name": "t", "external": {**EXTERNAL, "tokensPerMinute": 100}}],
            "generation": {"maxTokens": 101},
        },
        "more tokens than external.tokensPerMinute allows",
    ),
    "topk-needs-tokenizer": (
        {"teachers": [{"name": "t", "external": EXTERNAL}], "generation": {"signal": "TopK", "topK": 5}},
        "needs the teacher's tokenizer",
    ),
    "pruned-from-nobody": (
        {"student": {"prunedFrom": {"teacher": "other", "layers": 2}}},
        "must name a teacher of the list",
    ),
    "adapter-format": ({"output.formats": ["Adapter"]}, "output format Adapter needs student.adapter"),
    "output-is-input": ({"output.uri": "pvc://data/train.jsonl"}, "output.uri is one of the inputs"),
    "output-is-workspace": ({"workspace": {"uri": "pvc://data/out"}}, "output.uri is the workspace"),
    "accuracy-without-labels": ({"evaluation": {"metrics": ["Accuracy"]}}, "Accuracy needs labels"),
    "gate-without-metric": (
        {"evaluation": {"metrics": ["ROUGE"], "gates": [{"metric": "BLEU", "operator": ">=", "value": 1}]}},
        "a gate's metric must be one of evaluation.metrics",
    ),
    "kl-gate-without-logprobs": (
        {"evaluation": {"gates": [a_gate("TeacherKL")]}},
        "a gate on TeacherKL, on TeacherAgreement or on the retained share of Perplexity",
    ),
    "agreement-gate-without-logprobs": (
        {"evaluation": {"gates": [a_gate("TeacherAgreement")]}},
        "write generation.signal: TopK",
    ),
    "perplexity-share-without-logprobs": (
        {"evaluation": {"gates": [a_gate("Perplexity", "RetainedShare")]}},
        "write generation.signal: TopK",
    ),
    "timed-teacher": (
        {"evaluation": {"gates": [a_gate("Latency", "RetainedShare")]}},
        "a teacher is timed only where it is the only one and the student is pruned from it",
    ),
    "memory-of-two-teachers": (
        {
            "teachers": [{"name": name, "model": MODEL, "batch": {"engine": "Transformers"}} for name in ("t", "u")],
            "evaluation": {"gates": [a_gate("Memory", "RetainedShare")]},
        },
        "the teacher's memory is known only of one teacher with a model",
    ),
    "share-of-divergence": (
        {"generation": {"signal": "TopK"}, "evaluation": {"gates": [a_gate("TeacherKL", "RetainedShare")]}},
        "this gate could never be measured",
    ),
    "change-of-speed": (
        {"evaluation": {"gates": [a_gate("Throughput", "Change")]}},
        "this gate could never be measured",
    ),
    "share-without-teacher": (
        {"evaluation": {"compareWith": ["Student"], "gates": [a_gate("ROUGE", "RetainedShare")]}},
        "write Teacher in evaluation.compareWith",
    ),
    "change-without-student": (
        {"evaluation": {"compareWith": ["Teacher"], "gates": [a_gate("ROUGE", "Change")]}},
        "write Student in evaluation.compareWith",
    ),
    "four-bits-spread": (
        {"student.adapter": {"type": "QLoRA"}, "training.deepspeed": {"zeroStage": 3}},
        "write training.deepspeed.zeroStage: 0, 1 or 2, or student.adapter.type: LoRA",
    ),
    "inside-of-four-bits": (
        {
            "generation": {"signal": "TopK", "topK": 5},
            "student.adapter": {"type": "QLoRA"},
            "training.objective.hiddenStates": {"weight": 1},
        },
        "compare the student's inside more finely than four bits hold it",
    ),
    "data-uri": ({"data.train.uri": "gs://bucket/x.jsonl"}, "a data URI begins with"),
    "model-uri": ({"student.model.uri": "https://models.example/x"}, "a model's URI begins with"),
    "output-uri": ({"output.uri": "gs://bucket/x"}, "output.uri begins with"),
    "workspace-uri": ({"workspace": {"uri": "gs://bucket/x"}}, "workspace.uri begins with"),
    "offload-optimizer": (
        {"training.deepspeed": {"zeroStage": 0, "offloadOptimizer": True}},
        "offloadOptimizer needs zeroStage",
    ),
    "offload-parameters": (
        {"training.deepspeed": {"zeroStage": 2, "offloadParameters": True}},
        "offloadParameters needs zeroStage: 3",
    ),
    "external-url": (
        {"teachers": [{"name": "t", "external": {**EXTERNAL, "url": "teacher.example"}}]},
        "url must begin with https://",
    ),
    "terms": (
        {"teachers": [{"name": "t", "external": {**EXTERNAL, "termsAccepted": False}}]},
        "write termsAccepted: true",
    ),
    "sampled-tail": ({"generation": {"tail": "Sampled", "temperature": 0.7}}, "tail: Sampled is unbiased only"),
    "reasoning-target": (
        {"generation": {"reasoningTarget": "ReasoningAndAnswer"}},
        "ReasoningAndAnswer needs reasoning: ChainOfThought",
    ),
    "topk-after-reasoning": (
        {"generation": {"signal": "TopK", "reasoning": "ChainOfThought"}},
        "a teacher scores its answer after its own reasoning",
    ),
    "summaries-that-cannot-fit": (
        {"task": "Summarization", "generation": {"summaryWords": 80, "maxTokens": 100}},
        "maxTokens is too small for summaries",
    ),
    "sampled-reverse": (
        {"generation": {"signal": "TopK", "tail": "Sampled"}, "training.objective.type": "ReverseKL"},
        "ReverseKL takes the tail as one class",
    ),
    "hidden-states": ({"training.objective.hiddenStates": {"weight": 1}}, "hiddenStates and attention need one"),
    "attention": (
        {
            "generation": {"signal": "TopK", "topK": 5},
            "teachers": [{"name": "t", "model": MODEL, "external": EXTERNAL}],
            "training.objective.attention": {"weight": 1},
        },
        "hiddenStates and attention need one teacher whose weights are at hand",
    ),
    "beta": ({"training.objective.beta": 0.5}, "beta belongs to JensenShannon and SkewKL"),
    "deadlines": (
        {"runPolicy": {"activeDeadlineSeconds": 10, "pendingDeadlineSeconds": 20}},
        "pendingDeadlineSeconds cannot be longer",
    ),
    "gpu-hours": ({"runPolicy": {"maxGpuHours": 5}}, "a budget in GPU-hours is not built yet"),
    "serving-nodes": (
        {"teachers": [{"name": "t", "model": MODEL, "serving": {"nodes": 2, "parallelism": {"tensor": 2}}}]},
        "a teacher over several nodes is not built yet",
    ),
    "parallelism": (
        {"teachers": [{"name": "t", "model": MODEL, "serving": {"gpusPerNode": 8, "parallelism": {"tensor": 4}}}]},
        "every GPU asked for is used",
    ),
    "owned-flag": (
        {"teachers": [{"name": "t", "model": MODEL, "serving": {"extraArgs": ["--model=other"]}}]},
        "extraArgs holds a flag that is written from the spec",
    ),
    "no-student": ({"student": {}}, "write exactly one of model"),
    "two-students": (
        {"student": {"model": MODEL, "prunedFrom": {"teacher": "t", "layers": 2}}},
        "write exactly one of model",
    ),
    "no-way-to-ask": ({"teachers": [{"name": "t", "model": MODEL}]}, "write exactly one of serving"),
    "two-ways-to-ask": (
        {"teachers": [{"name": "t", "model": MODEL, "serving": {}, "external": EXTERNAL}]},
        "write exactly one of serving",
    ),
    "no-weights": (
        {"teachers": [{"name": "t", "batch": {"engine": "Transformers"}}]},
        "a teacher with serving or batch needs its weights",
    ),
    "training-nodes": ({"training.nodes": 2}, "needs a workspace that all of them can mount"),
    "training-nodes-once": (
        {"training.nodes": 2, "workspace": {"pvc": {"claimName": "c"}}},
        "needs a workspace that all of them can mount",
    ),
    "global-batch": (
        {"training.hyperparameters": {"globalBatchSize": 10, "microBatchSize": 4}},
        "globalBatchSize must be a multiple",
    ),
    "two-workspaces": ({"workspace": {"uri": "pvc://w/x", "pvc": {}}}, "write one of uri"),
    "claim-and-size": (
        {"workspace": {"pvc": {"claimName": "c", "size": "1Gi"}}},
        "claimName names a claim that exists",
    ),
    "once-pod": ({"workspace": {"pvc": {"accessModes": ["ReadWriteOncePod"]}}}, "write ReadWriteOnce or"),
}

ALTERED: dict[str, Any] = {
    "task": {"task": "QuestionAnswering"},
    "teachers": {"teachers.0.weight": 2},
    "student": {"student.model.uri": "hf://acme/other"},
    "data": {"data.systemPrompt": "Be brief."},
    "generation": {"generation": {"seed": 7}},
    "training": {"training": {"hyperparameters": {"seed": 7}}},
    "evaluation": {"evaluation": {"metrics": ["ROUGE"]}},
    "output": {"output.uri": "pvc://data/elsewhere"},
    "workspace": {"workspace": {"uri": "pvc://w/x"}},
    "credentials": {"credentials": {"secretName": "s"}},
    "stageTemplates": {"stageTemplates": [{"stage": "Train"}]},
    "scheduling": {"scheduling": {"queueName": "q"}},
}


def a_job(name: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The smallest job, with changes by path: a dot goes inside, a number is an index."""
    job: dict[str, Any] = {
        "apiVersion": "kubedistill.io/v1alpha1",
        "kind": "DistillationJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "teachers": [{"name": "t", "model": MODEL, "batch": {"engine": "Transformers"}}],
            "student": {"model": {"uri": "hf://acme/student"}},
            "data": {"train": {"uri": "pvc://data/train.jsonl"}},
            "output": {"uri": "pvc://data/out"},
        },
    }
    job = copy.deepcopy(job)
    for path, value in (changes or {}).items():
        *outer, last = path.split(".")
        place: Any = job["spec"]
        for part in outer:
            place = place[int(part)] if part.isdecimal() else place.setdefault(part, {})
        place[last] = value
    return job


@pytest.fixture(scope="module")
def api(api_server: Path) -> Iterator[client.CustomObjectsApi]:
    definitions.install(api_server, ROOT / "crds/distillationjobs.yaml", "distillationjobs.kubedistill.io")
    with config.new_client_from_config(str(api_server)) as api_client:
        yield client.CustomObjectsApi(api_client)


def create(api: client.CustomObjectsApi, job: dict[str, Any], **options: Any) -> dict[str, Any]:
    created: dict[str, Any] = api.create_namespaced_custom_object(*KIND, job, **options)
    return created


@pytest.fixture
def job(api: client.CustomObjectsApi, request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """A job that exists, of a name of its own."""
    name = f"j{abs(hash(request.node.name)) % 10**10}"
    yield create(api, a_job(name))
    api.delete_namespaced_custom_object(*KIND, name)


@pytest.mark.parametrize(("changes", "sentence"), BROKEN.values(), ids=BROKEN.keys())
def test_the_server_and_python_refuse_with_the_same_sentence(
    api: client.CustomObjectsApi, changes: dict[str, Any], sentence: str
) -> None:
    document = a_job("broken", changes)
    with pytest.raises(ApiException) as refused:
        create(api, document, dry_run="All")
    assert refused.value.status == 422
    assert sentence in refused.value.body
    with pytest.raises(InvalidDocumentError) as problems:
        parse_job(document)
    assert sentence in str(problems.value)


def test_every_rule_has_a_document_that_it_refuses() -> None:
    rules = [rule for model in _models_inside(DistillationJobSpec, set()) for rule in model.__dict__.get("rules", ())]
    sentences = [sentence for _, sentence in BROKEN.values()]
    assert [rule.message for rule in rules if not any(sentence in rule.message for sentence in sentences)] == []


def test_the_base_of_the_broken_documents_is_sound(api: client.CustomObjectsApi) -> None:
    create(api, a_job("sound"), dry_run="All")
    parse_job(a_job("sound"))


@pytest.mark.parametrize("name", ["a" * 41, "with.dot"])
def test_a_name_that_pods_cannot_carry_is_refused(api: client.CustomObjectsApi, name: str) -> None:
    with pytest.raises(ApiException) as refused:
        create(api, a_job(name), dry_run="All")
    assert NAME_LIMIT_RULE.message in refused.value.body


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_accepted_and_means_the_same_to_both(api: client.CustomObjectsApi, example: Path) -> None:
    ours = read_job(example.read_text())
    document = yaml.safe_load(ours.model_dump_json(by_alias=True, exclude_unset=True, exclude={"status"}))
    document["metadata"] = {"name": ours.metadata.name, "namespace": "default"}
    theirs = create(api, document, dry_run="All", field_validation="Strict")
    assert parse_job({**theirs, "status": {}}).spec == ours.spec


def test_a_job_nobody_has_seen_says_so(job: dict[str, Any]) -> None:
    assert job["status"] == {"observedGeneration": -1}


def test_the_server_fills_in_the_defaults_that_python_has(job: dict[str, Any]) -> None:
    assert parse_job({**job, "status": {}}).spec == parse_job(a_job("x")).spec


def test_an_unknown_field_is_refused_under_strict_validation(api: client.CustomObjectsApi) -> None:
    with pytest.raises(ApiException) as refused:
        create(api, a_job("x", {"training.typo": 1}), dry_run="All", field_validation="Strict")
    assert "unknown field" in refused.value.body


@pytest.mark.parametrize("field", ALTERED)
def test_a_started_job_cannot_be_changed(api: client.CustomObjectsApi, job: dict[str, Any], field: str) -> None:
    name = job["metadata"]["name"]
    changed = a_job(name, ALTERED[field])
    api.patch_namespaced_custom_object(*KIND, name, changed, dry_run="All")  # Before its start it can.
    api.patch_namespaced_custom_object_status(*KIND, name, {"status": {"startTime": "2026-01-01T00:00:00Z"}})
    with pytest.raises(ApiException) as refused:
        api.patch_namespaced_custom_object(*KIND, name, changed, dry_run="All")
    assert f"spec.{field} can" in refused.value.body


def test_every_transition_rule_is_tried() -> None:
    assert [message for _, message in IMMUTABLE if not any(message.startswith(f"spec.{f} can") for f in ALTERED)] == []


def test_a_started_job_can_be_suspended_and_then_queued_elsewhere(
    api: client.CustomObjectsApi, job: dict[str, Any]
) -> None:
    name = job["metadata"]["name"]
    api.patch_namespaced_custom_object_status(*KIND, name, {"status": {"startTime": "2026-01-01T00:00:00Z"}})
    api.patch_namespaced_custom_object(*KIND, name, {"spec": {"suspend": True}})
    api.patch_namespaced_custom_object(*KIND, name, {"spec": {"scheduling": {"queueName": "q"}, "suspend": False}})
    api.patch_namespaced_custom_object(*KIND, name, {"spec": {"runPolicy": {"maxRestarts": 5}}})


def test_a_written_status_reads_back_as_it_was(api: client.CustomObjectsApi, job: dict[str, Any]) -> None:
    condition = Condition(
        type=ConditionType.STALLED,
        status=ConditionStatus.FALSE,
        reason="Accepted",
        message="",
        last_transition_time="2026-01-01T00:00:00Z",
    )
    status = Status(observed_generation=1, phase=Phase.PREPARING, conditions=[condition])
    patched = api.patch_namespaced_custom_object_status(
        *KIND, job["metadata"]["name"], {"status": plain_status(status)}
    )
    assert Status.model_validate(patched["status"]) == status


def test_kubectl_prints_the_columns_people_look_for(api_server: Path, job: dict[str, Any]) -> None:
    header = access.kubectl(api_server, "get", "dj", job["metadata"]["name"], "-o", "wide").splitlines()[0].split()
    assert header[:7] == ["NAME", "PHASE", "STAGE", "PROGRESS", "SCORE", "REASON", "AGE"]
    assert {"TEACHER", "STUDENT", "GPU-SECONDS"} <= set(header)


@pytest.mark.usefixtures("api")
def test_client_side_apply_takes_the_crd(api_server: Path) -> None:
    answer = access.kubectl(api_server, "apply", "--dry-run=server", "-f", str(ROOT / "crds/distillationjobs.yaml"))
    assert "distillationjobs.kubedistill.io" in answer

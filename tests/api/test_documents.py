"""Job documents: read as kubectl reads them, refused with all problems at once."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kubedistill_api.base import Task
from kubedistill_api.documents import InvalidDocumentError, parse_job, read_job

MINIMAL = """
apiVersion: kubedistill.io/v1alpha1
kind: DistillationJob
metadata: {name: small}
spec:
  teachers: [{name: big, model: {uri: "hf://owner/big"}, serving: {}}]
  student: {model: {uri: "hf://owner/small"}}
  data: {train: {uri: "s3://bucket/train.jsonl"}}
  output: {uri: "s3://bucket/model"}
"""


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal job with one field set (`a.b[0].c`)."""
    document: dict[str, Any] = yaml.safe_load(MINIMAL)
    *parents, last = path.replace("[", ".").replace("]", "").split(".")
    node: Any = document["spec"]
    for part in parents:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    node[last] = value
    return document


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidDocumentError) as caught:
        parse_job(document)
    return [str(problem) for problem in caught.value.problems]


def test_the_smallest_job_gets_every_default() -> None:
    job = read_job(MINIMAL)
    assert job.spec.training.hyperparameters.learning_rate == 2e-5
    assert job.spec.generation.shards == 16


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "0.00002", "2E-5"])
def test_a_number_means_what_it_means_to_kubectl(text: str) -> None:
    job = read_job(MINIMAL + f"  training: {{hyperparameters: {{learningRate: {text}}}}}\n")
    assert job.spec.training.hyperparameters.learning_rate == 2e-5


@pytest.mark.parametrize("word", ["yes", "on", "off"])
def test_words_that_yaml_1_2_reads_as_text_are_no_booleans(word: str) -> None:
    with pytest.raises(InvalidDocumentError, match="suspend"):
        read_job(MINIMAL.replace("spec:", f"spec:\n  suspend: {word}"))


def test_a_key_that_stands_twice_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidDocumentError, match=r"'spec' stands twice.*line"):
        read_job(MINIMAL + "spec: {}\n")


def test_nulls_are_absent_fields_as_in_the_api_server() -> None:
    assert parse_job(changed("data.maxRows", None)).spec.data.max_rows is None


def test_all_problems_come_at_once_with_their_paths() -> None:
    document = changed("runPolicy.maxGpuHours", 2)
    document["spec"]["generation"] = {"reasoning": "ChainOfDensity"}
    document["spec"]["data"]["train"]["uri"] = "gs://bucket/x"
    found = problems(document)
    assert [line.split(":")[0] for line in found] == [
        "spec.generation.reasoning",
        "spec.data.train.uri",
        "spec.runPolicy.maxGpuHours",
    ]


def gate(metric: str, of: str = "Student") -> dict[str, Any]:
    return {"metric": metric, "of": of, "operator": ">=", "value": 0.5}


AFAR = {"url": "https://api.example/v1", "model": "m", "termsAccepted": True}

REFUSALS = {
    "unknown field": ("trainig", {}, "spec.trainig: there is no such field"),
    "missing field": ("output", {}, "spec.output.uri: this field is required"),
    "soft loss without scores": ("training.objective.type", "ForwardKL", "needs generation.signal: TopK"),
    "biased tail": ("generation", {"tail": "Sampled", "temperature": 0.7}, "tail: Sampled is unbiased only"),
    "two ways to reach a teacher": ("teachers[0].batch", {}, "exactly one of serving"),
    "two students": ("student.prunedFrom", {"teacher": "big", "layers": 2}, "exactly one of model"),
    "nodes that cannot share": ("training.nodes", 2, "ReadWriteMany"),
    "batch that does not divide": ("training.hyperparameters.globalBatchSize", 15, "multiple of microBatchSize"),
    "output over an input": ("output.uri", "hf://owner/small", "output.uri"),
    "owned flag": ("teachers[0].serving.extraArgs", ["--port=1"], "extraArgs holds a flag"),
    "labels missing": ("task", "Classification", "data.labels"),
    "gate without metric": (
        "evaluation.gates",
        [{"metric": "Accuracy", "operator": ">=", "value": 1}],
        "a gate's metric",
    ),
    "divergence without scores": ("evaluation.gates", [gate("TeacherKL")], "write generation.signal: TopK"),
    "agreement without scores": ("evaluation.gates", [gate("TeacherAgreement")], "write generation.signal: TopK"),
    "perplexity's share without scores": (
        "evaluation.gates",
        [gate("Perplexity", "RetainedShare")],
        "write generation.signal: TopK",
    ),
    "share without the teacher": (
        "evaluation",
        {"compareWith": ["Student"], "gates": [gate("ROUGE", "RetainedShare")]},
        "spec.evaluation.compareWith: a gate of: RetainedShare needs",
    ),
    "change without the student": (
        "evaluation",
        {"compareWith": ["Teacher"], "gates": [gate("ROUGE", "Change")]},
        "spec.evaluation.compareWith: a gate of: Change needs",
    ),
    "a teacher that is not timed": (
        "evaluation.gates",
        [gate("Latency", "RetainedShare")],
        "a teacher is timed only where it is the only one and the student is pruned from it",
    ),
    "change of speed": (
        "evaluation.gates",
        [gate("Throughput", "Change")],
        "spec.evaluation.gates[0].of: this gate could never be measured",
    ),
    "density of a chat": ("generation.reasoning", "ChainOfDensity", "write task: Summarization"),
    "length of a chat": ("generation.summaryWords", 40, "write task: Summarization"),
    "reasoning to learn and none there": (
        "generation.reasoningTarget",
        "ReasoningAndAnswer",
        "spec.generation.reasoningTarget: reasoningTarget: ReasoningAndAnswer needs reasoning: ChainOfThought",
    ),
    "scores after a reasoning that is not learnt": (
        "generation",
        {"signal": "TopK", "reasoning": "ChainOfThought"},
        "spec.generation.signal: a teacher scores its answer after its own reasoning",
    ),
    "scores of a summary out of its JSON": (
        "generation",
        {"signal": "TopK", "reasoning": "ChainOfDensity"},
        "write signal: Text",
    ),
    "summaries that cannot fit": (
        "generation",
        {"summaryWords": 80, "reasoning": "ChainOfDensity", "maxTokens": 200},
        "spec.generation.maxTokens: maxTokens is too small",
    ),
    "an answer above what a minute allows": (
        "teachers",
        [
            {"name": "in", "model": {"uri": "hf://a/b"}, "batch": {}},
            {"name": "out", "external": {**AFAR, "tokensPerMinute": 1023}},
        ],
        "spec.generation.maxTokens: an answer may have more tokens than external.tokensPerMinute allows",
    ),
    "accuracy of summaries": ("evaluation.metrics", ["Accuracy"], "Classification, QuestionAnswering or Math"),
    "reverse divergence without scores": ("training.objective.type", "ReverseKL", "needs generation.signal: TopK"),
    "hidden states without scores": ("training.objective.hiddenStates", {}, "hiddenStates and attention need one"),
    "attention without scores": ("training.objective.attention", {}, "write a single teacher with serving or batch"),
    "a mixture where there is none": ("training.objective", {"type": "ForwardKL", "beta": 0.5}, "beta belongs to"),
    "a mixture of one": ("training.objective", {"type": "SkewKL", "beta": 1}, "less than 1"),
}


@pytest.mark.parametrize(("path", "value", "expected"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_spec_is_told_what_to_write(path: str, value: Any, expected: str) -> None:
    assert any(expected in line for line in problems(changed(path, value)))


def test_no_teacher_among_several_is_timed() -> None:
    document = changed("evaluation.gates", [gate("Throughput", "RetainedShare")])
    document["spec"]["student"] = {"prunedFrom": {"teacher": "t", "layers": 2}}
    teachers = [{"name": name, "model": {"uri": "hf://a/b"}, "batch": {}} for name in ("t", "u")]
    alone = {**document, "spec": {**document["spec"], "teachers": teachers[:1]}}
    assert parse_job(alone).spec.evaluation.gates
    document["spec"]["teachers"] = teachers
    assert any("a teacher is timed only where it is the only one" in line for line in problems(document))


SOUND = {
    "perplexity needs no scores": {"gates": [gate("Perplexity"), gate("Perplexity", "Change")]},
    "the student alone is enough": {"compareWith": ["Student"], "gates": [gate("ROUGE", "Change")]},
    "the teacher alone is enough": {"compareWith": ["Teacher"], "gates": [gate("ROUGE", "RetainedShare")]},
    "neither is needed": {"compareWith": [], "gates": [gate("ROUGE"), gate("Latency")]},
}


@pytest.mark.parametrize("type_", ["ReverseKL", "ForwardKL", "JensenShannon", "SkewKL"])
@pytest.mark.parametrize("tail", ["Auto", "Bucket", "Sampled"])
def test_only_reverse_kl_cannot_use_the_sampled_token(type_: str, tail: str) -> None:
    document = changed("training.objective.type", type_)
    document["spec"]["generation"] = {"signal": "TopK", "tail": tail}
    if (type_, tail) == ("ReverseKL", "Sampled"):
        assert any("spec.generation.tail: ReverseKL takes the tail as one class" in line for line in problems(document))
    else:
        assert parse_job(document).spec.training.objective.type == type_


ONE = {"name": "big", "model": {"uri": "hf://owner/big"}, "serving": {}}


@pytest.mark.parametrize("inside", [{"hiddenStates": {}}, {"attention": {}}], ids=["hidden states", "attention"])
def test_the_inside_of_one_teacher_at_hand_can_be_matched(inside: dict[str, Any]) -> None:
    document = changed("training.objective", inside)
    document["spec"]["generation"] = {"signal": "TopK", "topK": 20}
    assert parse_job(document).spec.training.objective.looks_inside
    afar = {"name": "big", "model": ONE["model"], "external": AFAR}
    for teachers in ([ONE, {**ONE, "name": "other"}], [afar]):
        document["spec"]["teachers"] = teachers
        assert any("spec.training.objective: hiddenStates and attention" in line for line in problems(document))


FULL_WEIGHTS = {
    "weights spread": (
        "deepspeed",
        {"zeroStage": 3},
        "spec.training.deepspeed.zeroStage: weights in four bits (QLoRA) stay",
    ),
    "weights offloaded": (
        "deepspeed",
        {"zeroStage": 3, "offloadParameters": True},
        "write training.deepspeed.zeroStage: 0, 1 or 2, or student.adapter.type: LoRA",
    ),
    "hidden states": ("objective", {"hiddenStates": {}}, "spec.training.objective: hiddenStates and attention compare"),
    "attention": ("objective", {"attention": {}}, "write student.adapter.type: LoRA, or leave them out"),
}


@pytest.mark.parametrize(("field", "value", "expected"), FULL_WEIGHTS.values(), ids=FULL_WEIGHTS.keys())
def test_what_needs_the_students_full_weights_is_refused_in_four_bits_alone(
    field: str, value: Any, expected: str
) -> None:
    document = changed(f"training.{field}", value)
    document["spec"]["generation"] = {"signal": "TopK"}
    document["spec"]["student"]["adapter"] = {"type": "LoRA"}
    assert not parse_job(document).spec.student.in_four_bits
    document["spec"]["student"]["adapter"] = {"type": "QLoRA"}
    assert any(expected in line for line in problems(document))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_student_in_four_bits_takes_adapters(stage: int) -> None:
    document = changed("student.adapter", {"type": "QLoRA"})
    document["spec"]["training"] = {"deepspeed": {"zeroStage": stage, "offloadOptimizer": stage > 0}}
    assert parse_job(document).spec.student.in_four_bits


ZERO = "zero_optimization"
DEEPSPEED_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "nothing": ({}, {}),
    "the optimizer": ({"optimizer": {}}, {"optimizer": "hyperparameters.learningRate and weightDecay"}),
    "the precision by an older name": ({"bfloat16": {"enabled": True}}, {"bfloat16": "precision"}),
    "the stage": ({ZERO: {"stage": 3}}, {"zero_optimization.stage": "deepspeed.zeroStage"}),
    "the stage as it is": ({ZERO: {"stage": 2}}, {"zero_optimization.stage": "deepspeed.zeroStage"}),
    "a switch for all": ({ZERO: True}, {"zero_optimization": "deepspeed.zeroStage"}),
    "offloading": (
        {ZERO: {"offload_optimizer": {"device": "cpu"}, "offload_param": {}}},
        {
            "zero_optimization.offload_optimizer": "deepspeed.offloadOptimizer",
            "zero_optimization.offload_param": "deepspeed.offloadParameters",
        },
    ),
    "offloading by an older name": (
        {ZERO: {"cpu_offload": True}},
        {"zero_optimization.cpu_offload": "deepspeed.offloadOptimizer"},
    ),
    "how gradients are sent": ({ZERO: {"reduce_bucket_size": 10**6}, "wall_clock_breakdown": True}, {}),
}


@pytest.mark.parametrize(("config", "owned"), DEEPSPEED_CONFIGS.values(), ids=DEEPSPEED_CONFIGS.keys())
def test_of_deepspeeds_own_keys_those_that_the_spec_writes_are_known(
    config: dict[str, Any], owned: dict[str, str]
) -> None:
    deepspeed = parse_job(changed("training.deepspeed", {"config": config})).spec.training.deepspeed
    assert deepspeed.owned() == owned


@pytest.mark.parametrize(("objective", "share"), [({}, 0.5), ({"beta": 0.9}, 0.9), ({"type": "SkewKL"}, 0.1)])
def test_the_share_of_the_mixture_depends_on_the_divergence(objective: dict[str, Any], share: float) -> None:
    document = changed("training.objective", {"type": "JensenShannon", **objective})
    document["spec"]["generation"] = {"signal": "TopK"}
    assert parse_job(document).spec.training.objective.teacher_share == share


@pytest.mark.parametrize("evaluation", SOUND.values(), ids=SOUND.keys())
def test_a_gate_that_can_be_measured_is_taken(evaluation: dict[str, Any]) -> None:
    assert parse_job(changed("evaluation", evaluation)).spec.evaluation.gates


ONE = {"name": "one", "model": {"uri": "hf://acme/one"}, "serving": {}}
TWO = {"name": "two", "model": {"uri": "hf://acme/two"}, "serving": {}}
FAR = {"name": "far", "external": {"url": "https://x.example/v1", "model": "m", "termsAccepted": True}}
KNOWN = {**FAR, "model": {"uri": "hf://acme/far"}}


@pytest.mark.parametrize(
    ("teachers", "of", "refused"),
    [
        pytest.param([ONE], "RetainedShare", False, id="one-with-a-model"),
        pytest.param([KNOWN], "RetainedShare", False, id="external-whose-model-is-known"),
        pytest.param([FAR], "RetainedShare", True, id="external-without-a-model"),
        pytest.param([ONE, TWO], "RetainedShare", True, id="two-have-no-one-size"),
        pytest.param([ONE, TWO], "Student", False, id="the-students-own"),
    ],
)
def test_a_share_of_memory_is_of_the_one_teacher_whose_size_is_known(
    teachers: list[dict[str, Any]], of: str, refused: bool
) -> None:
    document = changed("evaluation.gates", [gate("Memory", of)])
    document["spec"]["teachers"] = teachers
    if refused:
        assert any("memory is known only of one teacher" in line for line in problems(document))
    else:
        assert parse_job(document).spec.evaluation.gates


LED = {
    "math": {"task": "Math", "evaluation": {"metrics": ["Accuracy", "ExactMatch"]}},
    "thought whole, with scores": {
        "task": "Math",
        "generation": {"signal": "TopK", "reasoning": "ChainOfThought", "reasoningTarget": "ReasoningAndAnswer"},
    },
    "thought for a chat": {"generation": {"reasoning": "ChainOfThought"}},
    "summaries of a length, with scores": {
        "task": "Summarization",
        "generation": {"signal": "TopK", "summaryWords": 40},
    },
    "density": {
        "task": "Summarization",
        "generation": {"reasoning": "ChainOfDensity", "summaryWords": 80, "maxTokens": 640},
    },
}


@pytest.mark.parametrize("changes", LED.values(), ids=LED.keys())
def test_every_task_and_every_honest_way_to_lead_a_teacher_is_taken(changes: dict[str, Any]) -> None:
    document = yaml.safe_load(MINIMAL)
    document["spec"] |= changes
    assert parse_job(document).spec.generation


@pytest.mark.parametrize(
    ("asked", "task", "matches"),
    [(None, Task.MATH, True), (None, Task.CLASSIFICATION, False), (False, Task.MATH, False), (True, Task.MATH, True)],
)
def test_numbers_must_agree_with_their_labels_unless_told_otherwise(
    asked: bool | None, task: Task, matches: bool
) -> None:
    filters = parse_job(changed("generation.filters.requireLabelMatch", asked)).spec.generation.filters
    assert filters.matches_labels(task) is matches


def test_a_name_too_long_for_pods_is_refused() -> None:
    document = yaml.safe_load(MINIMAL)
    document["metadata"]["name"] = "x" * 41
    assert any("at most 40 characters" in line for line in problems(document))

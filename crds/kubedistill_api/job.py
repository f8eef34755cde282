"""The DistillationJob: the spec as a whole, and the rules that join its parts."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from kubedistill_api.base import DNS_LABEL, GROUP, KIND, VERSION, Model, Task, Tolerant
from kubedistill_api.data import Data
from kubedistill_api.evaluation import TIMED, Evaluation, Gate, GateOf, Metric
from kubedistill_api.generation import Generation, Reasoning, Signal, Tail
from kubedistill_api.output import Format, Output
from kubedistill_api.placement import Credentials, RunPolicy, Scheduling, StageTemplate, Workspace
from kubedistill_api.rules import Rule
from kubedistill_api.status import Status
from kubedistill_api.student import Student
from kubedistill_api.teachers import Teacher
from kubedistill_api.training import ObjectiveType, Training
from kubedistill_api.uris import overlaps

LABELLED_TASKS = (Task.CLASSIFICATION, Task.QUESTION_ANSWERING, Task.MATH)
"""Their answers are right or wrong where the label is known."""
EXTERNAL_TOP_K = 20
"""The OpenAI API gives at most so many logprobs for a position."""


def _by_logprobs(gate: Gate) -> bool:
    """Whether a gate's number is made from the logprobs that the teacher gave for its own answers."""
    if gate.metric is Metric.PERPLEXITY:
        return gate.of is GateOf.RETAINED_SHARE
    return gate.metric in (Metric.TEACHER_KL, Metric.TEACHER_AGREEMENT)


class DistillationJobSpec(Model):
    """What is distilled, from what, how, and where it goes."""

    rules: ClassVar = (
        Rule(
            cel="self.task != 'Classification' || size(self.data.labels) >= 2",
            message="task: Classification needs the answers that count: write data.labels with at least two",
            holds=lambda spec: spec.task is not Task.CLASSIFICATION or len(spec.data.labels) >= 2,
            field="data.labels",
        ),
        Rule(
            cel="self.generation.reasoning != 'ChainOfDensity' || self.task == 'Summarization'",
            message="a chain of density is a way to summarise: write task: Summarization, or reasoning: ChainOfThought",
            holds=lambda spec: (
                spec.generation.reasoning is not Reasoning.CHAIN_OF_DENSITY or spec.task is Task.SUMMARIZATION
            ),
            field="generation.reasoning",
        ),
        Rule(
            cel="!has(self.generation.summaryWords) || self.task == 'Summarization'",
            message="summaryWords is the length of summaries: write task: Summarization, or leave it out and say in "
            "data.systemPrompt how long answers should be",
            holds=lambda spec: spec.generation.summary_words is None or spec.task is Task.SUMMARIZATION,
            field="generation.summaryWords",
        ),
        Rule(
            cel="self.training.objective.type == 'CrossEntropy' || self.generation.signal == 'TopK'",
            message="a loss that compares distributions needs generation.signal: TopK (or write "
            "training.objective.type: CrossEntropy)",
            holds=lambda spec: (
                spec.training.objective.type is ObjectiveType.CROSS_ENTROPY or spec.generation.signal is Signal.TOP_K
            ),
            field="generation.signal",
        ),
        Rule(
            cel="self.generation.tail != 'Sampled' || self.training.objective.type != 'ReverseKL'",
            message="ReverseKL takes the tail as one class, since a token that the teacher sampled tells too little of "
            "those that the student would choose: write generation.tail: Bucket or Auto",
            holds=lambda spec: (
                spec.generation.tail is not Tail.SAMPLED or spec.training.objective.type is not ObjectiveType.REVERSE_KL
            ),
            field="generation.tail",
        ),
        Rule(
            cel="!(has(self.training.objective.hiddenStates) || has(self.training.objective.attention)) || "
            "(self.generation.signal == 'TopK' && size(self.teachers) == 1 && !has(self.teachers[0].external))",
            message="hiddenStates and attention need one teacher whose weights are at hand and whose tokens are the "
            "student's: write a single teacher with serving or batch, and generation.signal: TopK",
            holds=lambda spec: (
                not spec.training.objective.looks_inside
                or (
                    spec.generation.signal is Signal.TOP_K
                    and len(spec.teachers) == 1
                    and spec.teachers[0].external is None
                )
            ),
            field="training.objective",
        ),
        Rule(
            cel="!(has(self.training.objective.hiddenStates) || has(self.training.objective.attention)) || "
            "!has(self.student.adapter) || self.student.adapter.type != 'QLoRA'",
            message="hiddenStates and attention compare the student's inside more finely than four bits hold it: write "
            "student.adapter.type: LoRA, or leave them out",
            holds=lambda spec: not spec.training.objective.looks_inside or not spec.student.in_four_bits,
            field="training.objective",
        ),
        Rule(
            cel="self.training.deepspeed.zeroStage != 3 || !has(self.student.adapter) || "
            "self.student.adapter.type != 'QLoRA'",
            message="weights in four bits (QLoRA) stay whole on every device, and zeroStage: 3 would spread them: "
            "write training.deepspeed.zeroStage: 0, 1 or 2, or student.adapter.type: LoRA",
            holds=lambda spec: spec.training.deepspeed.zero_stage != 3 or not spec.student.in_four_bits,
            field="training.deepspeed.zeroStage",
        ),
        Rule(
            cel="self.training.nodes == 1 || has(self.workspace.uri) || (has(self.workspace.pvc) && "
            "'ReadWriteMany' in self.workspace.pvc.accessModes)",
            message="training over several nodes needs a workspace that all of them can mount: write workspace.uri "
            "(s3://…), workspace.pvc.accessModes: [ReadWriteMany], or training.nodes: 1",
            holds=lambda spec: spec.training.nodes == 1 or spec.workspace.for_several_nodes,
            field="workspace",
        ),
        Rule(
            cel="self.generation.signal != 'TopK' || self.teachers.all(teacher, !has(teacher.external) || "
            "self.generation.topK <= 20)",
            message="an external teacher gives at most 20 logprobs a token: write generation.topK: 20 or less, or "
            "signal: Text",
            holds=lambda spec: (
                spec.generation.signal is not Signal.TOP_K
                or spec.generation.top_k <= EXTERNAL_TOP_K
                or all(teacher.external is None for teacher in spec.teachers)
            ),
            field="generation.topK",
        ),
        Rule(
            cel="self.teachers.all(teacher, !has(teacher.external) || !has(teacher.external.tokensPerMinute) || "
            "teacher.external.tokensPerMinute >= self.generation.maxTokens)",
            message="an answer may have more tokens than external.tokensPerMinute allows in a whole minute: write a "
            "smaller generation.maxTokens",
            holds=lambda spec: all(
                teacher.external is None
                or (teacher.external.tokens_per_minute or spec.generation.max_tokens) >= spec.generation.max_tokens
                for teacher in spec.teachers
            ),
            field="generation.maxTokens",
        ),
        Rule(
            cel="self.generation.signal != 'TopK' || self.teachers.all(teacher, has(teacher.model))",
            message="signal: TopK needs the teacher's tokenizer: write the teacher's model.uri",
            holds=lambda spec: (
                spec.generation.signal is not Signal.TOP_K
                or all(teacher.model is not None for teacher in spec.teachers)
            ),
            field="teachers",
        ),
        Rule(
            cel="!has(self.student.prunedFrom) || self.teachers.exists(teacher, teacher.name == "
            "self.student.prunedFrom.teacher && has(teacher.model))",
            message="student.prunedFrom.teacher must name a teacher of the list that has a model",
            holds=lambda spec: (
                spec.student.pruned_from is None
                or any(
                    teacher.name == spec.student.pruned_from.teacher and teacher.model is not None
                    for teacher in spec.teachers
                )
            ),
            field="student.prunedFrom.teacher",
        ),
        Rule(
            cel="!('Adapter' in self.output.formats) || has(self.student.adapter)",
            message="output format Adapter needs student.adapter",
            holds=lambda spec: Format.ADAPTER not in spec.output.formats or spec.student.adapter is not None,
            field="output.formats",
        ),
        Rule(
            cel="self.output.uri != self.data.train.uri && (!has(self.data.validation) || self.output.uri != "
            "self.data.validation.uri) && (!has(self.student.model) || self.output.uri != self.student.model.uri) && "
            "self.teachers.all(teacher, !has(teacher.model) || self.output.uri != teacher.model.uri)",
            message="output.uri is one of the inputs: write a folder of its own",
            holds=lambda spec: all(uri != spec.output.uri for uri in spec.input_uris()),
            field="output.uri",
        ),
        Rule(
            cel="!has(self.workspace.uri) || self.workspace.uri != self.output.uri",
            message="output.uri is the workspace: write a folder of its own",
            holds=lambda spec: spec.workspace.uri is None or spec.workspace.uri != spec.output.uri,
            field="output.uri",
        ),
        Rule(
            cel="!('Accuracy' in self.evaluation.metrics) || self.task in ['Classification', 'QuestionAnswering', "
            "'Math']",
            message="Accuracy needs labels: use it with task: Classification, QuestionAnswering or Math",
            holds=lambda spec: Metric.ACCURACY not in spec.evaluation.metrics or spec.task in LABELLED_TASKS,
            field="evaluation.metrics",
        ),
        Rule(
            cel="self.generation.signal == 'TopK' || self.evaluation.gates.all(gate, !(gate.metric in ['TeacherKL', "
            "'TeacherAgreement']) && !(gate.metric == 'Perplexity' && gate.of == 'RetainedShare'))",
            message="a gate on TeacherKL, on TeacherAgreement or on the retained share of Perplexity is measured by "
            "the teacher's logprobs: write generation.signal: TopK",
            holds=lambda spec: (
                spec.generation.signal is Signal.TOP_K or not any(map(_by_logprobs, spec.evaluation.gates))
            ),
            field="evaluation.gates",
        ),
        Rule(
            cel="(has(self.student.prunedFrom) && size(self.teachers) == 1) || "
            "self.evaluation.gates.all(gate, gate.of != 'RetainedShare' || "
            "!(gate.metric in ['Latency', 'Throughput']))",
            message="a teacher is timed only where it is the only one and the student is pruned from it: write "
            "student.prunedFrom, or no gate on the retained share of Latency or Throughput",
            holds=lambda spec: (
                (spec.student.pruned_from is not None and len(spec.teachers) == 1)
                or not any(gate.of is GateOf.RETAINED_SHARE and gate.metric in TIMED for gate in spec.evaluation.gates)
            ),
            field="evaluation.gates",
        ),
        Rule(
            cel="(size(self.teachers) == 1 && has(self.teachers[0].model)) || self.evaluation.gates.all(gate, "
            "gate.of != 'RetainedShare' || gate.metric != 'Memory')",
            message="the teacher's memory is known only of one teacher with a model: write its model.uri, or no gate "
            "on the retained share of Memory",
            holds=lambda spec: (
                (len(spec.teachers) == 1 and spec.teachers[0].model is not None)
                or not any(
                    gate.of is GateOf.RETAINED_SHARE and gate.metric is Metric.MEMORY for gate in spec.evaluation.gates
                )
            ),
            field="evaluation.gates",
        ),
    )

    suspend: bool = False
    """true: write a checkpoint, free the GPUs, keep the data. false again: go on."""
    task: Task = Task.CONVERSATION
    """What kind of question the student learns to answer."""
    teachers: Annotated[
        list[Teacher],
        Field(
            min_length=1,
            max_length=4,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    """One to four teachers, by name."""
    student: Student
    """The model that learns."""
    data: Data
    """What the teacher is asked."""
    generation: Generation = Generation()
    """How answers are made and kept."""
    training: Training = Training()
    """How the student is trained."""
    evaluation: Evaluation = Evaluation()
    """What is measured, and what must hold."""
    output: Output
    """Where the model goes."""
    workspace: Workspace = Workspace()
    """Where stages leave their files for the next."""
    credentials: Credentials = Credentials()
    """For stores and hubs."""
    stage_templates: Annotated[
        list[StageTemplate],
        Field(
            max_length=6,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["stage"]},
        ),
    ] = []
    """Overrides for the pods of one stage."""
    scheduling: Scheduling = Scheduling()
    """Queue, priority, scheduler."""
    run_policy: RunPolicy = RunPolicy()
    """How long and how often is tried."""

    def input_uris(self) -> tuple[str, ...]:
        """Every URI the job reads from."""
        models = [teacher.model for teacher in self.teachers] + [self.student.model]
        data = [self.data.train, self.data.validation]
        return tuple(ref.uri for ref in (*models, *data) if ref is not None)

    def all_uris(self) -> tuple[str, ...]:
        """Every URI the job reads from or writes to."""
        workspace = (self.workspace.uri,) if self.workspace.uri else ()
        return (*self.input_uris(), self.output.uri, *workspace)

    def output_overlaps_input(self) -> bool:
        """Whether the output lies inside an input, or an input inside the output."""
        return any(overlaps(self.output.uri, uri) for uri in self.input_uris())

    def teacher(self, name: str) -> Teacher:
        """The teacher of this name.

        Raises:
            KeyError: there is none.
        """
        for teacher in self.teachers:
            if teacher.name == name:
                return teacher
        raise KeyError(name)


class Metadata(Tolerant):
    """What we read of an object's metadata."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    namespace: Annotated[str, Field(max_length=63)] = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    managed_fields: list[dict[str, Any]] = Field(default=[], exclude=True)


_SPEC_FIELDS = (
    "task", "teachers", "student", "data", "generation", "training", "evaluation",
    "output", "workspace", "credentials", "stageTemplates",
)  # fmt: skip

NAME_LIMIT_RULE = Rule(
    cel="self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
    message="the name of a DistillationJob is a DNS label of at most 40 characters (no dots), since its pods' names "
    "are made from it",
    holds=lambda job: len(job.metadata.name) <= 40 and re.fullmatch(DNS_LABEL, job.metadata.name) is not None,
    field="metadata.name",
)

IMMUTABLE = (
    *(
        (
            f"!has(oldSelf.status) || !has(oldSelf.status.startTime) || self.spec.{field} == oldSelf.spec.{field}",
            f"spec.{field} cannot change once the job has started: make a new DistillationJob (its answers are reused "
            "where nothing that shapes them changed and the workspace outlives the old job)",
        )
        for field in _SPEC_FIELDS
    ),
    (
        "!has(oldSelf.status) || !has(oldSelf.status.startTime) || oldSelf.spec.suspend || "
        "self.spec.scheduling == oldSelf.spec.scheduling",
        "spec.scheduling can change only while the job is suspended: write suspend: true first",
    ),
)
"""Transition rules, as CEL and message. They stand on the root: a rule on an optional field would not fire when the
field is added or removed."""


class DistillationJob(Model):
    """One distillation: what is asked in `spec`, what came of it in `status`."""

    rules: ClassVar = (NAME_LIMIT_RULE,)

    api_version: Literal["kubedistill.io/v1alpha1"] = f"{GROUP}/{VERSION}"  # type: ignore[assignment]
    """The version of this API."""
    kind: Literal["DistillationJob"] = KIND  # type: ignore[assignment]
    """The kind of this object."""
    metadata: Metadata
    """The standard metadata."""
    spec: DistillationJobSpec
    """What is asked."""
    status: Status = Status()
    """What came of it; written by the operator alone."""

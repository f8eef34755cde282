"""Where a student comes from is told in lines that name everything once."""

from __future__ import annotations

from typing import Any

import pytest

from kubedistill_api.data import Data, DataRef
from kubedistill_api.evaluation import Metric
from kubedistill_api.generation import Generation, Signal
from kubedistill_api.results import GenerateResult, PrepareResult, TrainResult
from kubedistill_api.status import Estimate, Ledger, RejectReason, ResolvedModel
from kubedistill_api.student import Adapter, AdapterType, PrunedFrom, Student
from kubedistill_api.teachers import Batch, External, ModelRef, Teacher
from kubedistill_api.training import Attention, HiddenStates, Objective, ObjectiveType, Training
from kubedistill_trainer.core.footprint import Size
from kubedistill_trainer.core.gates import Compared
from kubedistill_trainer.report.card import ancestor, front_matter, obligations
from kubedistill_trainer.report.headline import headline
from kubedistill_trainer.report.lineage import Origin, lineage

BIG = Teacher(name="big", model=ModelRef(uri="hf://acme/big", revision="main"), batch=Batch(gpus=0))
API = Teacher(name="api", external=External(url="https://api.example/v1", model="large", terms_accepted=True))
PRUNED = Student(pruned_from=PrunedFrom(teacher="big", layers=2))
GIVEN = Student(model=ModelRef(uri="s3://acme/base"))


def a_ledger(accepted: int, **reasons: int) -> Ledger:
    counts = [RejectReason(reason=reason, count=count) for reason, count in reasons.items()]
    return Ledger(accepted=accepted, rejected=sum(reasons.values()), top_reasons=counts)


def an_origin(**changes: Any) -> Origin:
    common = {"input_digest": "sha256:in", "output_digest": "sha256:out"}
    found = ResolvedModel(role="teacher:big", uri="hf://acme/big", revision="12fd25f")
    parts = {
        "spec_digest": "sha256:spec",
        "teachers": [BIG],
        "student": PRUNED,
        "data": Data(train=DataRef(uri="file:///train.jsonl"), validation=DataRef(uri="file:///valid.jsonl")),
        "generation": Generation(signal=Signal.TOP_K, top_k=32),
        "training": Training(objective=Objective(type=ObjectiveType.FORWARD_KL, soft_weight=1.0)),
        "prepare": PrepareResult(folder="p", estimate=Estimate(), models=[found], **common),
        "generates": [GenerateResult(folder="a", teacher="big", ledger=a_ledger(90, Empty=1, Refusal=2), **common)],
        "train": TrainResult(
            folder="t", steps=80, loss=1.0, micro_batch_size=1, parameters=99_000_000, layers_kept=[0, 3], **common
        ),
    }
    return Origin(**(parts | changes))


def test_every_line_is_there_for_a_pruned_student() -> None:
    lines = dict(lineage(an_origin()))
    assert lines["Teacher"] == "big: hf://acme/big, revision 12fd25f"
    assert lines["Student"] == "2 layers of big (0, 3), 99.0 M parameters"
    assert lines["Prompts"] == "file:///train.jsonl and file:///valid.jsonl"
    assert lines["Teacher's answers"].startswith("90 accepted, with the 32 likeliest tokens at each position")
    assert lines["Training"] == "ForwardKL (weight 1), 80 steps of 16, learning rate 2e-05, BF16, seed 42"
    assert lines["Digest of the spec"] == "sha256:spec"


def test_a_mixture_is_told_with_its_share() -> None:
    training = Training(objective=Objective(type=ObjectiveType.SKEW_KL))
    assert dict(lineage(an_origin(training=training)))["Training"].startswith("SkewKL (weight 0.75, beta 0.1), ")


def test_what_is_matched_inside_is_told_with_its_weight() -> None:
    objective = Objective(hidden_states=HiddenStates(weight=2), attention=Attention(weight=0.5))
    line = dict(lineage(an_origin(training=Training(objective=objective))))["Training"]
    assert line.startswith("CrossEntropy, hidden states Last (weight 2), attention (weight 0.5), ")


def test_a_revision_that_was_not_resolved_is_the_one_that_was_asked_for() -> None:
    unresolved = an_origin(prepare=an_origin().prepare.model_copy(update={"models": []}))
    assert dict(lineage(unresolved))["Teacher"] == "big: hf://acme/big, revision main"


def test_a_server_is_named_with_its_terms() -> None:
    lines = lineage(an_origin(teachers=[API], student=GIVEN))
    assert ("Teacher", "api: large at https://api.example/v1, its terms were accepted for this use") in lines


@pytest.mark.parametrize("kind", AdapterType)
def test_a_given_student_with_an_adapter_says_so(kind: AdapterType) -> None:
    student = Student(model=ModelRef(uri="s3://acme/base"), adapter=Adapter(type=kind, rank=8))
    assert (
        dict(lineage(an_origin(student=student)))["Student"] == f"s3://acme/base, 99.0 M parameters, {kind} of rank 8"
    )


def test_ledgers_of_several_teachers_are_added_up() -> None:
    first = an_origin().generates[0]
    second = first.model_copy(update={"ledger": a_ledger(10, Refusal=5, Truncated=4)})
    ledger = an_origin(generates=[first, second]).ledger
    assert (ledger.accepted, ledger.rejected) == (100, 12)
    assert [(r.reason, r.count) for r in ledger.top_reasons] == [("Refusal", 7), ("Truncated", 4), ("Empty", 1)]


@pytest.mark.parametrize(
    ("student", "expected"),
    [pytest.param(PRUNED, "hf://acme/big", id="pruned"), pytest.param(GIVEN, "s3://acme/base", id="given")],
)
def test_the_weights_descend_from(student: Student, expected: str) -> None:
    assert ancestor(student, [API, BIG]) == expected


def test_only_a_hub_model_is_a_base_model_that_hubs_can_link_to() -> None:
    assert front_matter(PRUNED, [BIG])["base_model"] == ["acme/big"]
    assert "base_model" not in front_matter(GIVEN, [BIG])


def test_the_terms_of_every_teacher_are_named_and_the_ancestors_once() -> None:
    lines = obligations(PRUNED, [BIG, API])
    assert len(lines) == 2
    assert "hf://acme/big" in lines[0]
    assert "termsAccepted: true" in lines[1]


def test_the_headline_says_how_large_and_how_close() -> None:
    sizes = {"Student": Size(99_000_000, 1), "Teacher": Size(132_000_000, 1)}
    comparison = [Compared(Metric.LATENCY, 1.0), Compared(Metric.TEACHER_KL, 0.7, 3.1), Compared(Metric.PERPLEXITY, 6)]
    assert headline(comparison, sizes, (20, 30)) == (
        "The student has 99.0 M parameters in 20 of the teacher's 30 layers, 75 % of the teacher's. It is 0.70 nats "
        "away from its teacher (3.10 nats before training) and reads the teacher's answers with a perplexity of 6.00."
    )


def test_the_headline_of_several_teachers_speaks_of_all_of_them() -> None:
    comparison = [Compared(Metric.TEACHER_KL, 0.7), Compared(Metric.PERPLEXITY, 6)]
    assert headline(comparison, {"Student": Size(99_000_000, 1)}, (20, 30), teachers=2) == (
        "The student has 99.0 M parameters in 20 of one teacher's 30 layers. It is 0.70 nats away from its teachers "
        "and reads the teachers' answers with a perplexity of 6.00."
    )


def test_of_several_teachers_each_is_told_with_its_part_of_the_answers() -> None:
    common = {"input_digest": "sha256:in", "output_digest": "sha256:out"}
    made = [
        GenerateResult(folder=name, teacher=name, ledger=a_ledger(accepted), **common)
        for name, accepted in (("big", 90), ("api", 1500))
    ]
    lines = [value for label, value in lineage(an_origin(teachers=[BIG, API], generates=made)) if label == "Teacher"]
    assert lines == [
        "big: hf://acme/big, revision 12fd25f, 90 of the answers",
        "api: large at https://api.example/v1, its terms were accepted for this use, 1,500 of the answers",
    ]


def test_a_headline_with_nothing_to_say_is_empty() -> None:
    assert headline([], {}, None) == ""

"""Evaluate measures real models, judges, and leaves what people and Publish read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kubedistill_api.base import Task
from kubedistill_api.evaluation import Compare, Gate, GateOf, Metric, Operator
from kubedistill_api.exits import Exit
from kubedistill_api.results import EvaluateResult, FailedResult, termination_message
from kubedistill_api.status import GateOutcome, Score
from kubedistill_trainer import runtime
from kubedistill_trainer.errors import BadConfiguration, BadData, NotFound, Stopped
from kubedistill_trainer.report.content import SCORECARD
from kubedistill_trainer.stages import evaluate
from kubedistill_trainer.store import manifests

pytestmark = pytest.mark.slow

FORCED = (Metric.TEACHER_KL, Metric.TEACHER_AGREEMENT, Metric.PERPLEXITY)


def by_metric(result: EvaluateResult) -> dict[str, Score]:
    return {score.metric: score for score in result.scores}


def test_every_metric_is_measured_on_real_models_and_the_student_is_better_than_before(world: Any) -> None:
    everything = [metric for metric in Metric if metric is not Metric.ACCURACY]
    found = by_metric(world.measuring(*everything).evaluate())
    assert list(found) == everything
    kl, agreement = found[Metric.TEACHER_KL], found[Metric.TEACHER_AGREEMENT]
    assert float(kl.student) < float(kl.baseline)
    assert (kl.teacher, agreement.teacher, kl.gate) == ("0.000", "1.000", GateOutcome.PASSED)
    assert float(agreement.student) > float(agreement.baseline)
    perplexity = found[Metric.PERPLEXITY]
    assert float(perplexity.teacher) < float(perplexity.student) < float(perplexity.baseline)
    assert float(perplexity.retained) == pytest.approx(float(perplexity.teacher) / float(perplexity.student), abs=0.002)
    assert float(found[Metric.ROUGE].student) >= float(found[Metric.ROUGE].baseline)
    assert all(float(found[metric].student) > 0 for metric in (Metric.LATENCY, Metric.THROUGHPUT, Metric.MEMORY))
    assert all(float(found[metric].teacher) > 0 for metric in (Metric.LATENCY, Metric.THROUGHPUT))


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_a_teacher_held_against_itself_agrees_everywhere_and_is_no_distance_away(world: Any, packing: bool) -> None:
    itself = world.train(world.teacher).measuring(*FORCED, Metric.EXACT_MATCH)
    hyper = itself.run.training.hyperparameters.model_copy(update={"packing": packing})
    itself = itself.asking(training=itself.run.training.model_copy(update={"hyperparameters": hyper}))
    found = by_metric(itself.evaluate())
    assert found[Metric.TEACHER_AGREEMENT].student == "1.000"
    assert found[Metric.TEACHER_KL].student == "0.000"
    assert found[Metric.PERPLEXITY].student == found[Metric.PERPLEXITY].teacher
    assert found[Metric.EXACT_MATCH].student == "1.000"
    samples = [json.loads(line) for line in itself.read("samples.jsonl").splitlines()]
    assert {sample["match"] for sample in samples} == {"Same"}


def test_the_untrained_student_is_neither_better_nor_worse_than_itself(world: Any) -> None:
    found = by_metric(world.train(world.student()).measuring(*FORCED).evaluate())
    assert all(found[metric].student == found[metric].baseline for metric in FORCED)
    assert found[Metric.TEACHER_KL].gate is GateOutcome.PASSED


def test_a_student_that_got_worse_is_refused_with_its_scores_and_leaves_its_report(world: Any) -> None:
    student = world.student()
    student.lm_head.weight.data.neg_()
    worse = world.train(student).measuring(Metric.TEACHER_KL)
    with pytest.raises(BadConfiguration, match="is worse than the untrained one") as caught:
        worse.evaluate()
    assert caught.value.reason == "GateFailed"
    assert caught.value.scores[0].gate is GateOutcome.FAILED
    assert "is worse than the untrained one" in worse.read("report.html")
    assert manifests.load(world.context.workspace, "evaluated") is None


def test_a_gate_that_fails_ends_the_stage_for_good_and_tells_the_operator_the_scores(world: Any) -> None:
    gate = Gate(metric=Metric.TEACHER_AGREEMENT, operator=Operator.AT_LEAST, value=0.999)
    failing = world.measuring(Metric.TEACHER_AGREEMENT, gates=[gate])
    result = runtime.execute(failing.run, failing.context, evaluate)
    assert isinstance(result, FailedResult)
    assert (result.reason, Exit(result.exit_code).permanent) == ("GateFailed", True)
    assert result.scores[0].metric == Metric.TEACHER_AGREEMENT
    assert "report.html" in result.message
    assert len(termination_message(result)) <= 4096


def test_a_gate_that_warns_lets_the_model_through_and_says_so(world: Any) -> None:
    gate = Gate(
        metric=Metric.PERPLEXITY, of=GateOf.RETAINED_SHARE, operator=Operator.ABOVE, value=2.0, on_failure="Warn"
    )
    result = world.measuring(Metric.PERPLEXITY, gates=[gate]).evaluate()
    assert by_metric(result)[Metric.PERPLEXITY].gate is GateOutcome.WARNED


def test_without_the_teachers_logprobs_the_text_alone_is_judged(text_world: Any) -> None:
    found = by_metric(text_world.measuring(*FORCED).evaluate())
    assert list(found) == [Metric.PERPLEXITY]
    assert found[Metric.PERPLEXITY].gate is GateOutcome.PASSED
    assert found[Metric.PERPLEXITY].teacher == ""


def test_the_metric_that_is_always_judged_is_shown_even_if_nobody_asked_for_it(world: Any) -> None:
    assert list(by_metric(world.measuring(Metric.ROUGE).evaluate())) == [Metric.ROUGE, Metric.TEACHER_KL]


def test_the_untrained_student_is_not_asked_if_it_is_not_compared_with(world: Any) -> None:
    alone = world.measuring(Metric.ROUGE, Metric.LATENCY, compare_with=[])
    found = by_metric(alone.evaluate())
    assert (found[Metric.ROUGE].baseline, found[Metric.ROUGE].teacher, found[Metric.LATENCY].teacher) == ("", "", "")
    assert json.loads(alone.read("samples.jsonl").splitlines()[0])["before"] is None


def test_only_so_many_prompts_are_answered_but_all_answers_are_read(world: Any) -> None:
    few = world.measuring(Metric.ROUGE, max_rows=5)
    few.evaluate()
    assert len(few.read("samples.jsonl").splitlines()) == 5
    notes = " ".join(json.loads(few.read("scores.json"))["notes"])
    assert "over 12 of the teacher's answers" in notes
    assert "to 5 of these prompts" in notes
    assert re.search(
        r"Cut off before their end: \d of 5 answers of the trained student \(\d of the untrained one's\)\.", notes
    )


def test_two_evaluations_of_the_same_weights_say_the_same(world: Any) -> None:
    same = world.measuring(*FORCED, Metric.ROUGE, Metric.BLEU)
    first = same.evaluate()
    samples = same.read("samples.jsonl")
    assert same.evaluate().scores == first.scores
    assert same.read("samples.jsonl") == samples


def test_labels_decide_accuracy_and_the_verdict(world: Any, relabelled: Any) -> None:
    labelled = relabelled(world.train(world.teacher), task=Task.QUESTION_ANSWERING)
    found = by_metric(labelled.measuring(Metric.ACCURACY).evaluate())
    assert (found[Metric.ACCURACY].student, found[Metric.ACCURACY].teacher) == ("0.500", "0.500")
    matches = [json.loads(line)["match"] for line in labelled.read("samples.jsonl").splitlines()]
    assert sorted(matches) == ["Right"] * 6 + ["Wrong"] * 6


def test_the_report_shows_what_the_stages_before_said(world: Any) -> None:
    result = world.evaluate()
    page = world.read("report.html")
    for text in ("3 of the teacher&#39;s 4 layers", "revision abc123", "Truncated", "reset the router", "step 2: 2.50"):
        assert text in page
    assert result.report == "evaluated/report.html"
    assert SCORECARD.validate_json(world.read("scores.json")).headline == result.message
    assert "| Perplexity |" in world.read("report.md")


def test_a_finished_evaluation_is_not_made_again(world: Any) -> None:
    asked = world.measuring(Metric.PERPLEXITY)
    first = runtime.execute(asked.run, asked.context, evaluate)
    again = runtime.execute(asked.run, asked.context, evaluate)
    assert isinstance(first, EvaluateResult)
    assert isinstance(again, EvaluateResult)
    assert again.reused
    assert again.scores == first.scores


def test_progress_ends_where_it_said_it_would(world: Any) -> None:
    world.measuring(Metric.ROUGE).evaluate()
    progress = world.context.progress.report().progress
    assert progress.done == progress.total == 4 * 12


def test_sigterm_stops_it_without_leaving_a_result(world: Any) -> None:
    world.context.stopping.set()
    with pytest.raises(Stopped):
        world.evaluate()
    assert manifests.load(world.context.workspace, "evaluated") is None


def test_no_held_out_answer_is_said_in_a_sentence(world: Any) -> None:
    world.context.workspace.remove("answers/shards/valid-00000.parquet")
    with pytest.raises(BadData, match=r"raise data\.validationFraction"):
        world.evaluate()


def test_a_stage_that_has_not_run_is_named(world: Any) -> None:
    world.context.workspace.remove("trained/manifest.json")
    with pytest.raises(NotFound, match="holds no finished Train"):
        world.evaluate()


def test_the_student_alone_needs_no_baseline_for_its_gate(world: Any) -> None:
    result = world.measuring(Metric.TEACHER_KL, compare_with=[Compare.TEACHER]).evaluate()
    assert result.scores[0].gate is GateOutcome.PASSED


def test_each_row_is_held_against_its_own_teacher(world: Any, two_teachers: Any) -> None:
    """The student is the first teacher itself: at no distance from its answers, and far from the other's."""
    shared = two_teachers(world.train(world.teacher)).measuring(*FORCED, Metric.EXACT_MATCH, Metric.LATENCY)
    whole = by_metric(shared.evaluate())
    card = SCORECARD.validate_json(shared.read("scores.json"))
    own, others = ({found.metric: found for found in card.by_teacher[name]} for name in ("toy", "other"))
    assert own[Metric.TEACHER_KL].student == pytest.approx(0, abs=1e-3)
    assert own[Metric.TEACHER_AGREEMENT].student == own[Metric.EXACT_MATCH].student == 1
    assert others[Metric.TEACHER_KL].student > 0.1
    assert others[Metric.TEACHER_AGREEMENT].student < 1
    assert (own[Metric.EXACT_MATCH].teacher, others[Metric.EXACT_MATCH].teacher) == (1, 1)
    between = sorted(found[Metric.TEACHER_KL].student for found in (own, others))
    assert between[0] < float(whole[Metric.TEACHER_KL].student) < between[1]
    assert whole[Metric.TEACHER_KL].teacher == "0.000"
    assert whole[Metric.LATENCY].teacher == "", "there is no such thing as the teacher's speed"
    named = {json.loads(line)["teacher_name"] for line in shared.read("samples.jsonl").splitlines()}
    assert named == {"toy", "other"}
    assert any("6 of toy, 6 of other" in note for note in card.notes)
    assert "one teacher's 4 layers" in card.headline


def test_the_numbers_of_a_teacher_among_others_are_those_it_has_alone(world: Any, two_teachers: Any) -> None:
    shared = two_teachers(world).measuring(*FORCED, Metric.ROUGE)
    shared.evaluate()
    card = SCORECARD.validate_json(shared.read("scores.json"))
    for name, folder in (("toy", "answers"), ("other", "answers-2")):
        alone = shared.asking(answers=[folder])
        alone.evaluate()
        found = SCORECARD.validate_json(alone.read("scores.json"))
        assert list(found.by_teacher) == [name]
        for one, other in zip(found.comparison, card.by_teacher[name], strict=True):
            assert one.metric is other.metric
            assert one.student == pytest.approx(other.student, rel=1e-4)
            assert one.baseline == pytest.approx(other.baseline, rel=1e-4)

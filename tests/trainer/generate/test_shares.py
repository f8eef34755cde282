"""Several teachers: every prompt is exactly one teacher's, as the weights say, in every process and every run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teaching.work import prompt_row

from kubedistill_api.digests import generate_digest, share
from kubedistill_api.documents import parse_job
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.run import GenerateRun, JobIdentity, read_run
from kubedistill_trainer.errors import BadData
from kubedistill_trainer.generation.plan import share_of
from kubedistill_trainer.preparation import sharing
from kubedistill_trainer.store.rows import PromptRow

WEIGHTS = st.lists(st.floats(1e-9, 1000, exclude_min=True), min_size=1, max_size=4)
ROWS = [prompt_row(f"Question {number}?") for number in range(2000)]


def a_spec(*weights: float, **changes: object) -> DistillationJobSpec:
    teachers = [
        {"name": f"t{place}", "weight": weight, "model": {"uri": f"file:///t{place}"}, "batch": {"gpus": 0}}
        for place, weight in enumerate(weights)
    ]
    spec = {
        "teachers": teachers,
        "student": {"model": {"uri": "file:///s"}},
        "data": {"train": {"uri": "file:///d.jsonl"}},
        "output": {"uri": "file:///out"},
        **changes,
    }
    document = {"apiVersion": "kubedistill.io/v1alpha1", "kind": "DistillationJob", "metadata": {"name": "j"}}
    return parse_job({**document, "spec": spec}).spec


def shares(spec: DistillationJobSpec) -> list[tuple[float, float]]:
    return [share(spec, teacher.name) for teacher in spec.teachers]


@given(WEIGHTS)
def test_shares_lie_end_to_end_and_cover_everything(weights: list[float]) -> None:
    found = shares(a_spec(*weights))
    assert found[0][0] == 0.0
    assert found[-1][1] == 1.0
    assert [end for _, end in found[:-1]] == [begin for begin, _ in found[1:]]
    for (begin, end), weight in zip(found, weights, strict=True):
        assert end - begin == pytest.approx(weight / sum(weights), abs=1e-9)


@given(WEIGHTS, st.lists(st.text(min_size=1), min_size=1, max_size=50))
def test_every_prompt_is_exactly_one_teachers(weights: list[float], prompts: list[str]) -> None:
    spec = a_spec(*weights)
    rows = [prompt_row(text) for text in prompts]
    taken = [row.row_id for teacher in spec.teachers for row in share_of(rows, *share(spec, teacher.name))]
    assert sorted(taken) == sorted(row.row_id for row in rows)


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (2, 1, 1), (1, 1, 1, 7)], ids=str)
def test_prompts_are_shared_as_the_weights_say(weights: tuple[float, ...]) -> None:
    """Within four standard deviations of a fair draw."""
    spec = a_spec(*weights)
    for teacher in spec.teachers:
        part = teacher.weight / sum(weights)
        found = len(share_of(ROWS, *share(spec, teacher.name)))
        assert abs(found - part * len(ROWS)) < 4 * (len(ROWS) * part * (1 - part)) ** 0.5


@given(WEIGHTS)
def test_a_share_is_the_same_after_the_run_file(weights: list[float]) -> None:
    """The operator writes it as JSON, and the stage reads it: not a bit may be lost at a border."""
    spec = a_spec(*weights)
    for teacher in spec.teachers:
        begin, end = share(spec, teacher.name)
        run = GenerateRun(
            job=JobIdentity(namespace="n", name="j", uid="u", spec_digest="sha256:s"),
            workspace="file:///w",
            folder="answers/t-1",
            input_digest="sha256:i",
            task=spec.task,
            teacher=teacher,
            share_from=begin,
            share_to=end,
            generation=spec.generation,
            prepared="prepared",
        )
        back = read_run(run.model_dump_json(by_alias=True))
        assert isinstance(back, GenerateRun)
        assert (back.share_from, back.share_to) == (begin, end)


def test_another_weight_asks_only_those_teachers_anew_whose_share_it_moves() -> None:
    before, after = a_spec(1, 1, 2), a_spec(2, 0.0000001, 2)
    digests = [
        [generate_digest(spec, teacher.name, "sha256:p", [], "u") for teacher in spec.teachers]
        for spec in (before, after)
    ]
    same = [one == other for one, other in zip(*digests, strict=True)]
    assert same == [share(before, f"t{place}") == share(after, f"t{place}") for place in range(3)]
    assert len(set(digests[0])) == 3


@pytest.fixture
def few() -> list[PromptRow]:
    return ROWS[:20]


def test_a_teacher_without_prompts_is_refused_before_the_first_is_started(few: list[PromptRow]) -> None:
    with pytest.raises(BadData) as error:
        sharing.check(a_spec(1000, 0.001), few, few)
    assert error.value.reason == "NoPrompts"
    assert "teacher t1 (weight 0.001 of 1000, 20 prompts in all): raise its weight" in error.value.message


def test_what_each_of_several_teachers_answers_is_told(few: list[PromptRow]) -> None:
    notes = sharing.check(a_spec(1, 1), few, [])
    assert len(notes) == 2
    assert all("none that is held out: it is not compared" in note for note in notes)
    assert sharing.check(a_spec(1), few, few) == []


@pytest.mark.parametrize(("limit", "takes"), [(10, "5 minutes"), (100, "0 minutes")], ids=["slow", "fast"])
def test_how_long_a_limit_makes_it_last_is_told_before(few: list[PromptRow], limit: int, takes: str) -> None:
    external = {"url": "https://t.example/v1", "model": "m", "termsAccepted": True, "requestsPerMinute": limit}
    spec = a_spec(1, teachers=[{"name": "t", "external": external}], generation={"samplesPerPrompt": 2})
    later = prompt_row("And?", {"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"})
    (note,) = sharing.check(spec, few, [*few[:3], later])
    assert note == f"Teacher t takes {limit} requests a minute: 50 answers last at least {takes}."


def test_how_long_a_limit_of_tokens_may_make_it_last_is_told_before(few: list[PromptRow]) -> None:
    external = {"url": "https://t.example/v1", "model": "m", "termsAccepted": True, "tokensPerMinute": 1000}
    spec = a_spec(1, teachers=[{"name": "t", "external": external}], generation={"maxTokens": 500})
    (note,) = sharing.check(spec, few, [])
    assert "takes 1000 tokens a minute: 20 answers last 10 minutes if each has 500 tokens" in note

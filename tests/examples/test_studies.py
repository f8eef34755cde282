"""examples/studies: what is derived is what would have been stored, and what is shown is what was measured."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablations.plots import plot
from ablations.points import BASE, STUDIES, Point, named, plan
from ablations.prompts import held_out_prompts, training_prompts
from ablations.renormalised import forward_kl_renormalised
from ablations.results import Line, Results
from ablations.signals import cut, with_k
from ablations.tables import paired_spread, rows_of, spread, table
from kubedistill_trainer.core.signals import Logprobs, Supervision, TopK, top_k
from kubedistill_trainer.store.shards import AnswerRow, Signal

VOCABULARY, STORED = 64, 32
K_STUDY = next(study for study in STUDIES if study.name == "k")


def stored(logits_NV: torch.Tensor, k: int, dtype: type[np.floating] = np.float64) -> Signal:
    """What a teacher of these logits gives for its token 0."""
    seen = top_k(logits_NV, torch.zeros(len(logits_NV), dtype=torch.long), k)
    return Signal(
        seen.ids_NK.numpy().astype(np.int32),
        seen.logprobs_NK.numpy().astype(dtype),
        seen.tail_N.numpy().astype(np.float32),
        seen.target_N.numpy().astype(np.float32),
    )


def some_logits(seed: int, spread: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return spread * torch.randn(5, VOCABULARY, generator=random, dtype=torch.float64)


@given(seed=st.integers(0, 10**6), k=st.integers(1, STORED), spread=st.floats(0.1, 6.0))
def test_a_cut_signal_is_that_of_a_teacher_asked_for_fewer(seed: int, k: int, spread: float) -> None:
    logits_NV = some_logits(seed, spread)
    asked, found = stored(logits_NV, k), cut(stored(logits_NV, STORED), k)
    np.testing.assert_array_equal(found.topk_ids_NK, asked.topk_ids_NK)
    np.testing.assert_allclose(found.topk_logprobs_NK, asked.topk_logprobs_NK, rtol=1e-12)
    np.testing.assert_allclose(found.tail_logprob_N, asked.tail_logprob_N, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.target_logprob_N, asked.target_logprob_N)


@given(seed=st.integers(0, 10**6), k=st.integers(1, STORED - 1))
def test_the_classes_of_a_rounded_cut_signal_sum_to_one(seed: int, k: int) -> None:
    """As they are read: candidates that were rounded are taken back to what the tail leaves over, before and after."""
    whole = stored(some_logits(seed, 2.0), STORED, np.float16)
    one, other = (
        TopK.from_storage(
            torch.from_numpy(signal.topk_ids_NK),
            torch.from_numpy(signal.topk_logprobs_NK),
            torch.from_numpy(signal.tail_logprob_N),
            torch.from_numpy(signal.target_logprob_N),
        )
        for signal in (whole, cut(whole, k))
    )
    total_N = other.logprobs_NK.exp().sum(-1) + other.tail_N.exp()
    torch.testing.assert_close(total_N, torch.ones_like(total_N))
    kept_NK = one.logprobs_NK.gather(-1, (one.ids_NK[:, None] == other.ids_NK[..., None]).long().argmax(-1))
    torch.testing.assert_close(other.logprobs_NK, kept_NK, rtol=1e-4, atol=1e-4)


def test_a_signal_with_fewer_candidates_than_asked_for_stays_as_it_is() -> None:
    signal = stored(some_logits(0, 1.0), 8)
    assert cut(signal, 8) is signal
    assert cut(signal, 32) is signal


def test_positions_with_fewer_candidates_are_filled_after_the_cut_too() -> None:
    signal = stored(some_logits(0, 1.0), 4)
    ids_NK, logprobs_NK = signal.topk_ids_NK.copy(), signal.topk_logprobs_NK.copy()
    lost_N = np.exp(logprobs_NK[:, 2:]).sum(-1) + np.exp(signal.tail_logprob_N)
    ids_NK[:, 2:], logprobs_NK[:, 2:] = -1, -80.0
    filled = replace(signal, topk_ids_NK=ids_NK, topk_logprobs_NK=logprobs_NK, tail_logprob_N=np.log(lost_N))
    found = cut(filled, 3)
    np.testing.assert_array_equal(found.topk_ids_NK[:, 2], -1)
    np.testing.assert_allclose(found.tail_logprob_N, np.log(lost_N), rtol=1e-5)


def test_text_alone_cannot_be_cut() -> None:
    nothing = np.zeros(0, dtype=np.int32)
    row = AnswerRow("r", 0, "train", "", "[]", "", "stop", "t", nothing, nothing.astype(np.bool_))
    with pytest.raises(ValueError, match="row r has no candidates"):
        with_k(row, 8)


def test_a_student_may_leave_the_teachers_tokens_at_no_cost_if_both_sides_are_renormalised() -> None:
    """What is wrong with that loss, and why it is no choice of the product's."""
    logits_NV = some_logits(1, 2.0)
    teacher = top_k(logits_NV, torch.zeros(5, dtype=torch.long), 8)
    supervision = Supervision(torch.zeros(5, dtype=torch.long), teacher)
    gone = Logprobs(teacher.logprobs_NK - 20.0, torch.full((5,), -1e-9), teacher.target_N)
    assert float(forward_kl_renormalised(gone, supervision).total) == pytest.approx(0.0, abs=1e-6)


def test_a_thousand_prompts_are_there_each_once_and_none_is_held_out() -> None:
    training, held_out = training_prompts(), held_out_prompts()
    assert len(training) == 1000
    assert len(held_out) == 60
    assert max(Counter([*training, *held_out]).values()) == 1


def test_the_first_prompts_are_a_fair_sample_of_all() -> None:
    """Written by hand and made of templates in about the same shares."""
    templates = {
        "Murra vacuum",
        "Trindle thermostat",
        "Okovi doorbell",
        "Pelliq pitcher",
        "Solvane lamp",
        "Inkrow notebook",
    }
    shares = [
        sum(any(name in prompt for name in templates) for prompt in training_prompts()[:count]) / count
        for count in (100, 1000)
    ]
    assert abs(shares[0] - shares[1]) < 0.12


def test_every_study_holds_the_base_and_no_row_twice() -> None:
    for study in STUDIES:
        points = [point for _, point in study.points]
        assert BASE in points, study.name
        assert len(set(points)) == len(points), study.name
        assert len({label for label, _ in study.points}) == len(points), study.name


def test_what_two_studies_share_is_trained_once() -> None:
    points = plan(STUDIES, [1, 2])
    assert len(points) == len(set(points))
    assert len([point for point in points if point.seed == 1]) == len({p for study in STUDIES for _, p in study.points})


def test_the_base_comes_first_at_every_seed_then_one_seed_of_everything_the_dearest_last() -> None:
    points = plan(STUDIES, [1, 2, 3])
    assert points[:3] == [replace(BASE, seed=seed) for seed in (1, 2, 3)]
    rest = points[3:]
    assert [point.seed for point in rest] == sorted(point.seed for point in rest)
    assert [point.rows for point in rest if point.seed == 1][-1] == 1000


def test_only_text_at_temperature_one_is_read_by_the_sampled_tail() -> None:
    """Elsewhere it is biased; and reverse KL refuses it."""
    for point in plan(STUDIES, [1]):
        if point.tail == "Sampled" and point.objective != "CrossEntropy":
            assert point.temperature == 1.0
            assert point.objective != "ReverseKL"


def test_a_study_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"colour: write some of .*objectives"):
        named(["k", "colour"])


def line(point: Point, kl: float, agreement: float = 0.5) -> Line:
    figures = {"forward_kl": kl, "reverse_kl": 2 * kl, "agreement": agreement, "cross_entropy": 3 + kl, "rouge_l": 0.2}
    cost = {"steps": 25, "tokens": 1, "targets": 1, "seconds": 1.0, "cpu_seconds": 1.0}
    machine = {"cpu": "a CPU", "threads": 1, "python": "3", "torch": "2", "transformers": "5"}
    return Line(point, figures, "abc", cost, machine)


def at(k: int, seed: int) -> Point:
    return replace(BASE, k=k, seed=seed)


LINES = [line(at(32, 1), 1.0), line(at(32, 2), 1.2), line(at(8, 1), 1.1, 0.6), line(at(8, 2), 1.4)]


def test_a_table_shows_means_over_seeds_and_differences_seed_by_seed() -> None:
    shown = table(K_STUDY, rows_of(K_STUDY, LINES)).splitlines()
    assert shown[0].startswith("| `topK` | KL(teacher ‖ student) | against the base |")
    assert shown[2:] == [
        "| 8 | 1.250 | +0.150 (+0.100 … +0.200) | 2.500 | 4.250 | **0.550** | **0.20** |",
        "| 32 | **1.100** | the base | **2.200** | **4.100** | 0.500 | **0.20** |",
        "",
        "Seeds 1, 2.",
    ]


def test_a_table_shows_the_seeds_that_all_of_its_rows_have() -> None:
    """Else the mean of one row would be that of lucky seeds."""
    shown = table(K_STUDY, rows_of(K_STUDY, [*LINES, line(at(1, 1), 0.9)])).splitlines()
    assert shown[2].startswith("| 1 | **0.900** | −0.100 |")
    assert shown[3].startswith("| 8 | 1.100 | +0.100 |")
    assert shown[-1] == "Seed 1."
    assert rows_of(K_STUDY, [line(at(1, 1), 0.9), line(at(8, 2), 0.9)]) == [], "nothing to compare"


def test_the_spread_of_seeds_is_pooled_over_the_points_that_have_several() -> None:
    """Of 1.0 and 1.2 the variance is 0.02, of 1.1 and 1.4 it is 0.045; of the differences +0.1 and +0.2 it is 0.005."""
    assert spread(LINES) == pytest.approx(math.sqrt((0.02 + 0.045) / 2))
    assert paired_spread(LINES) == pytest.approx(math.sqrt(0.005))
    assert spread(LINES[:1]) is None


def test_a_plot_has_a_dot_for_each_seed_and_writes_out_what_is_far_off() -> None:
    far = [*LINES, line(at(128, 1), 50.0), line(at(128, 2), 60.0)]
    root = ElementTree.fromstring(plot("K", rows_of(K_STUDY, far), "forward_kl", "KL"))
    names = {"svg": "http://www.w3.org/2000/svg"}
    titles = [each.text for each in root.findall(".//svg:circle/svg:title", names)]
    assert titles == ["1.100", "1.400", "1.000", "1.200"]
    assert [each.text for each in root.findall(".//svg:g/svg:text", names)] == ["8", "32", "128", "55.00 →"]


def test_results_go_on_after_a_line_that_was_cut_off(tmp_path: Path) -> None:
    results = Results(tmp_path / "new")
    results.add(LINES[0])
    with results.path.open("a") as file:
        file.write(LINES[1].as_json()[:40])
    assert results.lines() == [LINES[0]]
    results.add(LINES[2])
    assert results.lines() == [LINES[0], LINES[2]]
    assert results.missing([at(32, 1), at(8, 1), at(1, 1)], "abc") == [at(1, 1)]


def test_results_of_other_answers_are_not_gone_on_with(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(LINES[0])
    with pytest.raises(ValueError, match=r"other answers \(abc, here xyz\).*write another --results"):
        results.missing([BASE], "xyz")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """examples/studies/report.py, which is no package."""
    path = Path(__file__).resolve().parents[2] / "examples" / "studies" / "report.py"
    spec = importlib.util.spec_from_file_location("report_studies", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_studies"] = module
    spec.loader.exec_module(module)
    return module


def test_the_document_shows_what_is_in_the_results(report: ModuleType) -> None:
    for path, content in report.into_docs(Results(report.RESULTS).lines()).items():
        assert path.read_text(encoding="utf-8") == content, "run examples/studies/report.py"


def test_no_path_of_a_machine_is_in_the_results(report: ModuleType) -> None:
    lines = Results(report.RESULTS).lines()
    assert len({line.answers for line in lines}) == 1
    assert {key for line in lines for key in line.machine} <= {"cpu", "threads", "python", "torch", "transformers"}


def test_a_report_of_own_results_stands_beside_them(report: ModuleType, tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert report.main(["--results", str(tmp_path)]) == 2, "nothing is there"
    for each in LINES:
        results.add(each)
    assert report.main(["--results", str(tmp_path)]) == 0
    shown = (tmp_path / "studies.md").read_text()
    assert "![How many candidates?](./k.svg)" in shown
    assert "| 8 | 1.250 |" in shown
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["k.svg", "tail.svg"], "one row alone is no study"


def test_a_part_of_the_document_of_which_nothing_is_measured_is_said(report: ModuleType) -> None:
    document = "<!-- study: k -->\nold\n<!-- end of study -->"
    assert report.filled(document, {"k": "new"}) == "<!-- study: k -->\nnew\n<!-- end of study -->"
    with pytest.raises(ValueError, match="a part for k"):
        report.filled(document, {})

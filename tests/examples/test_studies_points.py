"""A point of examples/studies from the prompts to its figures, with a toy for a teacher."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from toys.example import load_make_toy

from ablations import answers as asking
from ablations.answers import Corpus
from ablations.measures import HeldOut, Ruler, compared
from ablations.points import BASE, RENORMALISED
from ablations.signals import with_k
from ablations.training import drawn, trained
from kubedistill_trainer.stages import train_rank

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
STUDIES = Path(__file__).resolve().parents[2] / "examples" / "studies"
PROMPTS = [
    f"The {thing} is broken. What now?" for thing in ("lamp", "bell", "pump", "fan", "door", "key", "bag", "cup")
]
POINT = replace(BASE, layers=2, prompts=8, k=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    toys = load_make_toy()
    teacher = toys.make_toy(tmp_path_factory.mktemp("models") / "toy", toys.Toy(vocabulary=512))
    return Corpus(teacher, tmp_path_factory.mktemp("work"), PROMPTS, ["Is it dry?", "Is it old?"], max_tokens=8, k=64)


@pytest.fixture(scope="module")
def run() -> ModuleType:
    """examples/studies/run.py, which is no package."""
    spec = importlib.util.spec_from_file_location("run_studies", STUDIES / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_studies"] = module
    spec.loader.exec_module(module)
    return module


def test_cut_answers_are_those_of_a_teacher_asked_for_fewer_candidates(corpus: Corpus) -> None:
    """Stored ones: two candidates whose logprobs were rounded to one may stand for each other."""
    asked = {row.row_id: row for row in asking.answers(replace(corpus, work=corpus.work / "k8", k=8), 1.0, "train")}
    found = [with_k(row, 8) for row in asking.answers(corpus, 1.0, "train")]
    assert len(found) == len(PROMPTS)
    for row in found:
        there, here = asked[row.row_id].signal, row.signal
        assert there is not None
        assert here is not None
        np.testing.assert_array_equal(row.input_ids, asked[row.row_id].input_ids)
        np.testing.assert_array_equal(here.target_logprob_N, there.target_logprob_N)
        np.testing.assert_allclose(np.sort(here.topk_logprobs_NK), np.sort(there.topk_logprobs_NK))
        np.testing.assert_allclose(here.tail_logprob_N, there.tail_logprob_N, atol=0.002)


def test_a_point_is_trained_and_measured_and_leaves_nothing(run: ModuleType, corpus: Corpus) -> None:
    prepared = run.Prepared.of(corpus, [0.0, 1.0])
    line = run.run_point(POINT, corpus, prepared)
    assert line.answers == prepared.digest == run.Prepared.of(corpus, [1.0]).digest
    assert line.cost["steps"] == 1
    assert line.figures["forward_kl"] > 0
    assert line.figures["cross_entropy"] > 0
    assert not list((corpus.work / "points").iterdir())


def test_the_renormalised_loss_is_the_products_for_one_training_only(corpus: Corpus) -> None:
    rows, before = asking.answers(corpus, 1.0, "train"), train_rank.loss_of  # type: ignore[attr-defined]
    with trained(replace(POINT, tail=RENORMALISED), corpus, rows, [1.0, 0.5, 0.2, 0.1]) as student:
        losses = (student.model.parent / "losses.jsonl").read_text()
    assert "ForwardKL" not in losses, "the product's own loss names its parts"
    assert train_rank.loss_of is before  # type: ignore[attr-defined]


def test_a_teacher_measured_against_itself_is_no_distance_away(corpus: Corpus) -> None:
    held_out = HeldOut(asking.answers(corpus, 1.0, "valid"), asking.answers(corpus, 0.0, "valid"))
    figures = Ruler(corpus.teacher, held_out).measure(corpus.teacher)
    assert figures.forward_kl == pytest.approx(0.0, abs=1e-6)
    assert figures.reverse_kl == pytest.approx(0.0, abs=1e-6)
    assert figures.agreement == 1.0
    assert figures.rouge_l == 1.0


def test_the_measure_is_the_definition() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])
    sums = compared(p.log()[None], 5 + q.log()[None], torch.tensor([1]))
    expected = [(p * (p / q).log()).sum(), (q * (q / p).log()).sum(), torch.tensor(0.0), torch.tensor(0.3).log()]
    torch.testing.assert_close(sums, torch.stack(expected).double(), rtol=1e-5, atol=1e-6)


def test_fewer_prompts_of_a_seed_are_among_its_more(corpus: Corpus) -> None:
    rows = asking.answers(corpus, 1.0, "train")
    some, more = (drawn(rows, replace(POINT, prompts=count)) for count in (3, 6))
    assert [row.row_id for row in some] == [row.row_id for row in more[:3]]
    assert [row.row_id for row in drawn(rows, replace(POINT, seed=2))] != [row.row_id for row in drawn(rows, POINT)]
    with pytest.raises(ValueError, match="there are 8 answers, not 100"):
        drawn(rows, replace(POINT, prompts=100))


def test_without_a_teacher_it_is_said_where_one_comes_from(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.main(["--teacher", str(tmp_path)]) == 2
    assert "run examples/models/fetch_smollm2.py" in capsys.readouterr().err


def test_two_runs_do_not_work_in_one_folder(
    run: ModuleType, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second one would sweep what the first is at."""
    with run._alone(tmp_path):
        assert run.main(["--teacher", str(corpus.teacher), "--work", str(tmp_path)]) == 2
    assert "Another run is at work in" in capsys.readouterr().err

"""Evaluate: student before and after training and its teacher, on the same held-out prompts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from kubedistill_api.evaluation import Compare, Metric
from kubedistill_api.identity import digest
from kubedistill_api.results import EvaluateResult, Success
from kubedistill_api.run import EvaluateRun
from kubedistill_api.status import GateOutcome
from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.comparison import Measured, by_teacher, compare, teacher_reading
from kubedistill_trainer.core.footprint import Size
from kubedistill_trainer.core.gates import judge, scores
from kubedistill_trainer.core.scores import Reading
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.evaluation.meter import Candidate, Meter
from kubedistill_trainer.models import end_ids, load_model, torch_dtype
from kubedistill_trainer.report.content import SCORECARD, Report, Sample, Scorecard
from kubedistill_trainer.report.headline import headline
from kubedistill_trainer.report.lineage import lineage
from kubedistill_trainer.report.page import as_html, as_markdown
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.held_out import HeldOut, gather, side_by_side
from kubedistill_trainer.stages.history import losses_of, model_folder
from kubedistill_trainer.store.lengths import answer_lengths
from kubedistill_trainer.store.manifests import FileEntry, entry
from kubedistill_trainer.students import build_student, fetch_source

SHOWN = 60
"""Samples on the page; all of them are in samples.jsonl."""


def run(run: EvaluateRun, context: StageContext) -> Success:
    """Measure, compare, judge, show.

    1. Gather what the stages before left: the teacher's held-out answers, results, the trained weights.
    2. Measure one model after the other: untrained student, trained student, teacher.
    3. Compare and judge. 4. Write scores, samples and report, whatever the gates say. 5. Refuse, or commit.

    Raises:
        BadData: no held-out prompt has an accepted answer.
        BadConfiguration: a gate does not hold (reason GateFailed, with the scores).
    """
    held_out = gather(run, context)
    before, after, teacher = measure(run, held_out, context)
    samples = side_by_side(held_out, before, after)
    card = judged(run, held_out, (before, after, teacher), context)
    files = write(run, card, describe(run, card, held_out, samples, context), samples, context)
    return conclude(run, card, files, context)


def measure(run: EvaluateRun, held_out: HeldOut, context: StageContext) -> tuple[Measured, Measured, Measured]:
    """Untrained student, trained student and teacher."""
    asks_before = Compare.STUDENT in run.evaluation.compare_with
    timed = bool({Metric.LATENCY, Metric.THROUGHPUT} & set(run.evaluation.metrics))
    total = 2 * len(held_out.rows) + (1 + asks_before) * len(held_out.asked)
    meter = Meter(held_out.exam, say=sayer(context), tick=ticker(total, context))
    before = meter.measure(untrained(run, held_out, context), answers=asks_before)
    after = meter.measure(trained(run, held_out, context), answers=True, speed=timed)
    if Compare.TEACHER not in run.evaluation.compare_with:
        return before, after, Measured()
    near = teacher_at_hand(run, held_out, context) if timed else None
    readings = {name: teacher_reading(examples) for name, examples in held_out.exam.examples.items()}
    left = {name: reading for name, reading in readings.items() if reading is not None}
    found = held_out.origin.resolved(f"teacher:{run.teachers[0].name}") if len(run.teachers) == 1 else None
    teacher = Measured(
        reading=sum(left.values(), Reading()) if left else None,
        readings=left,
        answers=held_out.by.teacher,
        size=Size(found.parameters, found.size_bytes) if found and found.parameters else None,
        speed=meter.time(near) if near else None,
    )
    return before, after, teacher


def untrained(run: EvaluateRun, held_out: HeldOut, context: StageContext) -> Candidate:
    """The student as training found it."""
    path = fetch_source(run, context)
    dtype, device = torch_dtype(run.training.precision), device_of(run)
    return Candidate(
        "untrained student",
        lambda: build_student(run, context, dtype, device).model,
        end_ids(held_out.exam.tokenizer, path),
    )


def trained(run: EvaluateRun, held_out: HeldOut, context: StageContext) -> Candidate:
    """The student as training left it."""
    return saved("trained student", run, held_out, model_folder(run.trained, context))


def teacher_at_hand(run: EvaluateRun, held_out: HeldOut, context: StageContext) -> Candidate | None:
    """The teacher itself, where it is the only one and its weights are here anyway: the student was pruned from it."""
    alone = run.student.pruned_from is not None and len(run.teachers) == 1
    return saved("teacher", run, held_out, fetch_source(run, context)) if alone else None


def saved(name: str, run: EvaluateRun, held_out: HeldOut, path: Path) -> Candidate:
    """A model of a local folder, in the training's precision and on its kind of device."""
    dtype, device = torch_dtype(run.training.precision), device_of(run)
    return Candidate(name, lambda: load_model(path, dtype, device), end_ids(held_out.exam.tokenizer, path))


def device_of(run: EvaluateRun) -> str:
    """Where models are measured: on a GPU if the training had one and this pod has one too."""
    return "cuda" if run.training.gpus_per_node > 0 and torch.cuda.is_available() else "cpu"


def judged(
    run: EvaluateRun, held_out: HeldOut, models: tuple[Measured, Measured, Measured], context: StageContext
) -> Scorecard:
    """The comparison, its verdicts, and what a reader must know to judge them."""
    before, after, teacher = models
    comparison = compare(run.evaluation.metrics, held_out.by, before, after, teacher)
    sizes = {who: m.size for who, m in (("Student", after), ("Teacher", teacher)) if m.size}
    return Scorecard(
        headline=headline(comparison, sizes, layers(run, held_out, context), len(run.teachers)),
        comparison=comparison,
        verdicts=judge(comparison, run.evaluation.gates),
        sizes=sizes,
        speeds={who: m.speed for who, m in (("Student", after), ("Teacher", teacher)) if m.speed},
        notes=[*notes(run, held_out), *endings(before, after)],
        by_teacher=by_teacher(run.evaluation.metrics, held_out.by, *models) if len(run.teachers) > 1 else {},
    )


def layers(run: EvaluateRun, held_out: HeldOut, context: StageContext) -> tuple[int, int] | None:
    """How many of the teacher's layers the student keeps, and how many there are; None if it is not pruned."""
    if run.student.pruned_from is None:
        return None
    config = json.loads((fetch_source(run, context) / "config.json").read_bytes())
    return len(held_out.origin.train.layers_kept), int(config.get("num_hidden_layers", 0))


def notes(run: EvaluateRun, held_out: HeldOut) -> list[str]:
    """How the numbers were taken."""
    labelled = len(held_out.by.labelled)
    unlabelled = len(held_out.asked) - labelled
    said = [
        f"Perplexity, agreement and KL: over {len(held_out.rows):,} of the teacher's answers to held-out prompts, "
        f"{sum(example.targets for example in every_example(held_out)):,} tokens.",
        f"The other scores: over the greedy answers to {len(held_out.asked):,} of these prompts"
        + (f", {labelled:,} of them with a label." if labelled else "."),
    ]
    if len(run.teachers) > 1:
        counts = Counter(held_out.by.names)
        whose = ", ".join(f"{counts[each.name]} of {each.name}" for each in run.teachers)
        said.append(f"Each prompt is held against the answer of its own teacher: {whose}.")
    if unlabelled:
        said.append("Where a prompt has no label, the teacher's answer counts as the expected one.")
    if labelled and run.generation.filters.matches_labels(run.task):
        said.append("Prompts that the teacher got wrong are not among them (requireLabelMatch).")
    if held_out.by.guidance.instruction:
        said.append("The teacher was told more than the students: how to reason, or how long to write (docs/tasks.md).")
    return said


def endings(before: Measured, after: Measured) -> list[str]:
    """Whether the students know where to stop: one that does not answers at its server's limit, whatever its scores."""
    if not after.answers:
        return []
    cut = f"{after.unended:,} of {len(after.answers):,} answers of the trained student"
    was = f" ({before.unended:,} of the untrained one's)" if before.answers else ""
    how = "half as much again as the teacher's and 16 tokens, at most maxTokens"
    return [f"Cut off before their end: {cut}{was}. An answer may get {how}."]


def every_example(held_out: HeldOut) -> list[Example]:
    """All teachers' answers, to be read."""
    return [example for examples in held_out.exam.examples.values() for example in examples]


def describe(
    run: EvaluateRun, card: Scorecard, held_out: HeldOut, samples: Sequence[Sample], context: StageContext
) -> Report:
    """Everything that the report shows."""
    training, validation = losses_of(run.trained, context)
    lengths = answer_lengths(context.workspace, run.answers)
    return Report(
        job=f"{run.job.namespace}/{run.job.name}",
        task=run.task,
        card=card,
        training_loss=training,
        validation_loss=validation,
        answer_lengths=[answer for _, answer in lengths],
        prompt_lengths=[prompt for prompt, _ in lengths],
        ledger=held_out.origin.ledger,
        estimate=held_out.origin.prepare.estimate,
        lineage=lineage(held_out.origin),
        samples=samples[:SHOWN],
        samples_elsewhere=max(0, len(samples) - SHOWN),
    )


def write(
    run: EvaluateRun, card: Scorecard, report: Report, samples: Sequence[Sample], context: StageContext
) -> dict[str, FileEntry]:
    """Write what people and Publish will read."""
    contents = {
        "scores.json": SCORECARD.dump_json(card, indent=2),
        "samples.jsonl": "".join(f"{json.dumps(asdict(s), ensure_ascii=False)}\n" for s in samples).encode(),
        "report.html": as_html(report).encode(),
        "report.md": as_markdown(report).encode(),
    }
    for name, data in contents.items():
        context.workspace.write_bytes(f"{run.folder}/{name}", data)
    return {name: entry(data) for name, data in contents.items()}


def conclude(run: EvaluateRun, card: Scorecard, files: Mapping[str, FileEntry], context: StageContext) -> Success:
    """Refuse if a gate says so; else make the evaluation visible."""
    shown = scores(card.comparison, card.verdicts)
    failed = [verdict.sentence for verdict in card.verdicts if verdict.outcome is GateOutcome.FAILED]
    if failed:
        where = context.workspace.uri(f"{run.folder}/report.html")
        raise BadConfiguration(
            "GateFailed", f"Nothing is published. {' '.join(failed)} The report shows more: {where}", scores=shown
        )
    result = EvaluateResult(
        input_digest=run.input_digest,
        output_digest=digest({name: file.sha256 for name, file in files.items()}),
        folder=run.folder,
        message=card.headline,
        scores=shown,
        report=f"{run.folder}/report.html",
    )
    return context.commit(result, files)


def sayer(context: StageContext) -> Callable[[str], None]:
    """Says what is being done, in the progress and in the log."""

    def say(message: str) -> None:
        context.check_stopping()
        context.progress.update(message=message)
        context.log.info(message)

    return say


def ticker(total: int, context: StageContext) -> Callable[[int], None]:
    """Counts answers that were read or written, and stops if it must."""
    context.progress.update(done=0, total=total, unit="answers")
    done = 0

    def tick(answers: int) -> None:
        nonlocal done
        done += answers
        context.progress.update(done=done)
        context.check_stopping()

    return tick

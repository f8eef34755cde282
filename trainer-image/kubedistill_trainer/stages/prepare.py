"""Prepare: everything that can be known before anything expensive starts.

<prepared>/train.parquet, valid.parquet   see store.rows
<prepared>/tokenizer/, teachers/<name>/   tokenizers, with the chat templates that are used
<prepared>/report.md                      for people
<prepared>/rejected.jsonl                 rows that were left out, each with its reason; also if Prepare then fails
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kubedistill_api.base import Stage
from kubedistill_api.digests import generate_digest
from kubedistill_api.generation import Signal
from kubedistill_api.identity import StageKey, digest, stage_folder
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.results import GenerateResult, PrepareResult
from kubedistill_api.run import PrepareRun
from kubedistill_api.status import ResolvedModel
from kubedistill_api.teachers import ModelRef
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.core.rows import Row
from kubedistill_trainer.errors import BadConfiguration, BadData, StageError
from kubedistill_trainer.generation.books import falls_short
from kubedistill_trainer.models import tokenizer_digest
from kubedistill_trainer.preparation import (
    choosing,
    files,
    fitting,
    labels,
    looking,
    rehearsing,
    report,
    sharing,
    trainable,
    trying,
    writing,
)
from kubedistill_trainer.preparation.choosing import Choice
from kubedistill_trainer.preparation.expecting import estimate, plan_of, shapes_beside, student_shape
from kubedistill_trainer.preparation.files import Reading
from kubedistill_trainer.preparation.forms import RawRow
from kubedistill_trainer.preparation.left_out import FILE, LeftOut, left_out
from kubedistill_trainer.preparation.looking import Look
from kubedistill_trainer.preparation.measuring import Lengths, with_special_tokens
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.train_plan import Plan
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import FileEntry, Manifest
from kubedistill_trainer.store.workspace import Workspace

LOOK_EVERY = 10_000
"""Rows between two looks at the signal."""
WARNINGS = 5
"""Sentences that go into the result; the report has all."""


def run(run: PrepareRun, context: StageContext) -> PrepareResult:
    """Prepare the job.

    1. Refuse what the image cannot do. 2. Read the data whole. 3. Choose rows and split them. 4. Look at the models,
    and rehearse the formats of the output. 5. Leave out what is too long. 6. Estimate. 7. Try the output and external
    teachers. 8. Commit, and say which answers are there already.

    Raises:
        BadConfiguration, BadData, NotFound: with a sentence that says what to write instead.
        Transient: a store, a hub or a teacher does not answer now.
        Stopped: SIGTERM; nothing was committed.
    """
    spec = run.spec
    _refuse(spec)
    with left_out(context.scratch) as (out, rejected):
        try:
            return _prepared(run, context, out, rejected)
        except BadData as error:
            raise _with_rejected(error, run, context, out, rejected) from error


def _prepared(run: PrepareRun, context: StageContext, out: LeftOut, rejected: Path) -> PrepareResult:
    """Steps 2 to 8."""
    spec = run.spec
    _begin(0, "reading the data", context)
    train = files.read(spec.data.train, spec.data.columns, context.scratch)
    valid = files.read(spec.data.validation, spec.data.columns, context.scratch) if spec.data.validation else None
    choice = choosing.choose(
        spec.data, spec.task, _watched(train, context), _watched(valid, context) if valid else None, out
    )
    _begin(1, "looking at the models", context)
    student, teachers = _looks(spec, context)
    notes = train.notes + (valid.notes if valid else []) + looking.settle_templates(spec, student, teachers)
    if spec.generation.signal is Signal.TOP_K:
        looking.check_tokens(student, teachers)
    looking.check_heads(spec, teachers)
    if spec.training.objective.attention is not None:
        looking.check_attentions(student, teachers)
    trainable.check_student(student, spec.training.hyperparameters)
    if spec.student.in_four_bits:
        trainable.check_four_bits(student, on_gpus=spec.training.gpus_per_node > 0)
    fitting.check_student(spec, student_shape(spec, student), plan_of(spec), shapes_beside(spec, teachers))
    rehearsing.check_formats(spec.output, student, context)
    _begin(2, "measuring the prompts", context)
    lengths = Lengths(student.tokenizer)
    choosing.fit(choice, _stopping(lengths.measured, context), _prompt_limit(spec, teachers), out)
    _check_volume(spec, student, len(choice.train), context)
    notes += labels.check_all(spec, choice.train, choice.valid) + _specials(choice, student)
    if len(spec.teachers) > 1 or spec.teachers[0].external is not None:  # else there is nothing to share or to pace
        notes += sharing.check(spec, *([writing.stored(row) for row in side] for side in (choice.train, choice.valid)))
    _begin(3, "trying the output and the teachers", context)
    trying.check_output(run)
    trying.check_external(spec)
    _begin(4, "writing", context)
    prompts = [lengths(row) for row in choice.train]
    expected = estimate(spec, student, teachers, prompts, len(choice.valid))
    models = [look.resolved for look in (*teachers.values(), student)]
    facts = report.Facts(expected, rehearsing.published(spec, student), models, notes)
    text = report.render(choice, out, prompts, facts)
    output_digest = _digest(choice, student, teachers)
    result = PrepareResult(
        input_digest=run.input_digest,
        output_digest=output_digest,
        folder=run.folder,
        message=f"{len(choice.train)} prompts to train on, {len(choice.valid)} held out.",
        estimate=expected,
        models=models,
        dropped_rows=out.unusable,
        warnings=_warnings(choice, out, notes, context.workspace.uri(f"{run.folder}/{FILE}")),
        answers=_ready_answers(run, output_digest, models, context.workspace),
        report=f"{run.folder}/report.md",
    )
    written = writing.write(run.folder, choice, student, teachers, text, context) | _leave(run, context, out, rejected)
    committed = context.commit(
        result,
        written,
        {"inputs": {"train": train.fingerprint, "valid": valid.fingerprint if valid else []}},
    )
    assert isinstance(committed, PrepareResult)
    context.progress.update(done=5, message="done")
    return committed


def unchanged(run: PrepareRun, context: StageContext, manifest: Manifest) -> bool:
    """Whether data and models are those that were read, and the answers that were found are still all there are."""
    data = run.spec.data
    if any(ref.uri.startswith("https://") for ref in (data.train, data.validation) if ref):
        return False
    now = {
        "train": files.fingerprint(data.train.uri),
        "valid": files.fingerprint(data.validation.uri) if data.validation else [],
    }
    if now != manifest.meta.get("inputs") or not isinstance(manifest.result, PrepareResult):
        return False
    if not looking.unmoved(manifest.result.models):
        return False
    found = _ready_answers(run, manifest.output_digest, manifest.result.models, context.workspace)
    return manifest.result.answers == found


def _watched(reading: Reading, context: StageContext) -> Iterator[RawRow]:
    """The rows, with a look at the signal and a word on progress now and then."""
    for number, row in enumerate(reading.rows()):
        if number % LOOK_EVERY == LOOK_EVERY - 1:
            context.check_stopping()
            context.progress.update(message=f"reading the data, {number + 1:,} rows")
        yield row


def _stopping(
    measured: Callable[[Sequence[Row]], list[int | str]], context: StageContext
) -> Callable[[Sequence[Row]], list[int | str]]:
    """The same, unless the stage is to stop."""

    def check_and_measure(rows: Sequence[Row]) -> list[int | str]:
        context.check_stopping()
        return measured(rows)

    return check_and_measure


def _leave(run: PrepareRun, context: StageContext, out: LeftOut, rejected: Path) -> dict[str, FileEntry]:
    """The rows that were left out, in the workspace. Those of an earlier attempt go."""
    target = f"{run.folder}/{FILE}"
    if not out.counts:
        context.workspace.remove(target)
        return {}
    out.flush()
    context.workspace.put(rejected, target)
    return {FILE: manifests.entry_of(rejected)}


def _with_rejected(error: BadData, run: PrepareRun, context: StageContext, out: LeftOut, rejected: Path) -> BadData:
    """The same error, with the place where all rows that were left out so far are kept.

    What an earlier run committed is not touched, and a store that fails now does not hide the error.
    """
    if not out.counts or manifests.load(context.workspace, run.folder) is not None:
        return error
    try:
        _leave(run, context, out, rejected)
    except StageError as failure:
        context.log.warning("the rows that were left out could not be kept: %s", failure)
        return error
    where = context.workspace.uri(f"{run.folder}/{FILE}")
    return BadData(error.reason, f"{error.message} All with their reasons: {where}", ledger=error.ledger)


def _begin(done: int, message: str, context: StageContext) -> None:
    """Go on to the next check, unless the stage is to stop."""
    context.check_stopping()
    context.log.info(message)
    context.progress.update(done=done, total=5, unit="checks", message=message)


def _refuse(spec: DistillationJobSpec) -> None:
    if owned := spec.training.deepspeed.owned():
        fields = ", ".join(f"training.{field}" for field in dict.fromkeys(owned.values()))
        raise BadConfiguration(
            "OwnedDeepSpeedKey",
            f"training.deepspeed.config sets {', '.join(owned)}, which the spec's own fields write: leave it out, and "
            f"write {fields} instead.",
        )


def _check_volume(spec: DistillationJobSpec, student: Look, prompts: int, context: StageContext) -> None:
    """By the fewest answers that can go on to the training."""
    rows = max(1, math.ceil(prompts * spec.generation.samples_per_prompt * spec.generation.min_yield))
    checkpoints = len(Plan.of(spec.training, rows).milestones)
    fitting.check_volume(spec, student_shape(spec, student), plan_of(spec), checkpoints, context.workspace)


def _looks(spec: DistillationJobSpec, context: StageContext) -> tuple[Look, dict[str, Look]]:
    teachers = {
        teacher.name: looking.look(f"teacher:{teacher.name}", teacher.model, context)
        for teacher in spec.teachers
        if teacher.model is not None
    }
    pruned = spec.student.pruned_from
    if pruned is None:
        assert spec.student.model is not None, "a rule of the API"
        return looking.look("student", spec.student.model, context), teachers
    source = teachers[pruned.teacher]
    if pruned.layers >= source.shape.layers:
        raise BadConfiguration(
            "TooManyLayers",
            f"student.prunedFrom.layers is {pruned.layers}, but {source.ref.uri} has {source.shape.layers} layers: "
            "write fewer.",
        )
    ref: ModelRef = source.ref
    return looking.look("student", ref, context), teachers


def _prompt_limit(spec: DistillationJobSpec, teachers: Mapping[str, Look]) -> int:
    """Tokens that leave room for one token in the student, and for its instruction and a whole answer in every teacher.

    Raises:
        BadConfiguration: no prompt at all would leave that room.
    """
    limits = [spec.training.hyperparameters.max_sequence_length - 1]
    instruction = Guidance.of(spec.task, spec.generation, spec.data.labels).instruction
    for teacher in spec.teachers:
        look = teachers.get(teacher.name)
        asked = teacher.serving.max_model_len if teacher.serving else None
        context = asked or (look.positions if look else None)
        if look and look.positions and asked and asked > look.positions:
            raise BadConfiguration(
                "ContextTooLong",
                f"serving.maxModelLen is {asked}, but {look.ref.uri} takes {look.positions} tokens: write that.",
            )
        if context is not None:
            told = len(look.tokenizer.encode(f"\n\n{instruction}")) if look and instruction else 0
            limits.append(context - spec.generation.max_tokens - told)
    if min(limits) < 1:
        raise BadConfiguration(
            "NoRoomForPrompts",
            f"generation.maxTokens is {spec.generation.max_tokens}, which leaves no room for a prompt in the teacher's "
            "context: write a smaller maxTokens, or a larger serving.maxModelLen.",
        )
    return min(limits)


def _specials(choice: Choice, student: Look) -> list[str]:
    found = with_special_tokens((*choice.train, *choice.valid), student.tokenizer)
    note = f"{found} rows have special tokens of the tokenizer in their text; check that this is meant."
    return [note] if found else []


def _ready_answers(
    run: PrepareRun, prepared: str, models: Sequence[ResolvedModel], workspace: Workspace
) -> list[GenerateResult]:
    """The answers that need not be asked for.

    Raises:
        BadData: some are there, and too few of them can be used: the teacher would be started in vain.
    """
    ready = []
    for teacher in run.spec.teachers:
        wanted = generate_digest(run.spec, teacher.name, prepared, models, run.job.uid)
        key = StageKey(Stage.GENERATE, teacher.name)
        found = manifests.load(workspace, stage_folder(run.job.namespace, run.job.name, key, wanted))
        if found is not None and found.input_digest == wanted and isinstance(found.result, GenerateResult):
            _check_enough(found.result, run.spec.generation.min_yield)
            ready.append(found.result)
    return ready


def _check_enough(found: GenerateResult, min_yield: float) -> None:
    ledger = found.ledger
    total = ledger.accepted + ledger.rejected
    if falls_short(ledger.rejected, total, min_yield):
        top = f", most others were rejected as {ledger.top_reasons[0].reason}" if ledger.top_reasons else ""
        raise BadData(
            "YieldTooLow",
            f"The answers of teacher {found.teacher} are there already: {ledger.accepted} of {total} can be used{top}, "
            f"and generation.minYield asks for {min_yield:.0%}. Write a lower minYield, or change the prompts, "
            "generation.maxTokens or the filters; reuse: Never asks the teacher again.",
            ledger=ledger,
        )


def _digest(choice: Choice, student: Look, teachers: Mapping[str, Look]) -> str:
    """Of all that later stages read: rows in order, tokens and templates."""
    return digest(
        {
            "rows": [[row.row_id for row in side] for side in (choice.train, choice.valid)],
            "tokens": [tokenizer_digest(look.tokenizer) for look in (student, *teachers.values())],
            "templates": [look.tokenizer.chat_template for look in (student, *teachers.values())],
        }
    )


def _warnings(choice: Choice, out: LeftOut, notes: Sequence[str], rejected: str) -> list[str]:
    """The file first, so that it is named whatever is cut off."""
    told = [f"Left out: {'; '.join(out.sentences())}. Each with its reason: {rejected}"] if out.counts else []
    beyond = [f"{choice.beyond} rows are beyond data.maxRows."] if choice.beyond else []
    return [*told, *out.shown[:1], *beyond, *notes][:WARNINGS]

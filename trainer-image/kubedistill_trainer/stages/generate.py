"""Generate: one teacher's answers, in shards that are committed one by one.

1. Plan: which prompts are this teacher's, in which shards, and which of those this worker makes.
2. Look what is committed already; those shards are never made again.
   A look ends here, unless nothing but the merge is left: it says how many are missing.
3. Open the teacher and keep it busy; every shard is committed as soon as its last answer is there.
4. Whoever finds all shards in place merges: the ledger, the copies for people, the manifest.

Every worker's result is valid, and all have the same output digest: a folder is named by its inputs and each of its
shards is made once, so the input digest names the answers. The ledger counts what is committed when a worker ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from kubedistill_api.base import Stage
from kubedistill_api.generation import Signal
from kubedistill_api.identity import digest
from kubedistill_api.results import GenerateResult
from kubedistill_api.run import GenerateRun
from kubedistill_trainer.core.guidance import Guidance
from kubedistill_trainer.errors import BadData, StageError, Stopped
from kubedistill_trainer.generation.assembly import Assembler
from kubedistill_trainer.generation.books import Books, ShardMaker, Tally, check_yield, falls_short
from kubedistill_trainer.generation.exchanges import Wanted
from kubedistill_trainer.generation.plan import ShardPlan, of_worker, plan_shards, share_of
from kubedistill_trainer.models import end_ids, fetch_pinned, load_tokenizer, tokenizer_digest
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import FileEntry, Manifest
from kubedistill_trainer.store.rows import SPLITS, Split, fetch_tokenizer, read_prompts
from kubedistill_trainer.store.shards import (
    RejectedRow,
    Shard,
    ShardMeta,
    commit_shard,
    read_meta,
    read_shard,
    shard_path,
)
from kubedistill_trainer.teachers.opening import check_engine, open_teacher
from kubedistill_trainer.teachers.protocol import Sampling

_Key: TypeAlias = tuple[Split, int]
"""Of a shard."""


def run(run: GenerateRun, context: StageContext) -> GenerateResult:
    """See the module."""
    plans = _plan(run, context)
    committed = _committed(run, context, plans)
    mine = [plan for plan in of_worker(plans, context.worker, run.workers) if _key(plan) not in committed]
    context.log.info("%d of %d shards are committed, %d are made here", len(committed), len(plans), len(mine))
    if run.look_only and len(committed) < len(plans):
        return _result(run, committed, plans, "The teacher has to be asked.")
    if mine:
        _generate(run, context, plans, mine, committed)
        committed = _committed(run, context, plans)
    if len(committed) < len(plans):
        return _result(run, committed, plans, "Other workers make the rest.")
    return _merge(run, context, plans, committed)


def unchanged(run: GenerateRun, context: StageContext, manifest: Manifest) -> bool:
    """Whether finished answers are enough: `minYield` shapes no answer, and may be higher than when they were made."""
    found = manifest.result
    if not isinstance(found, GenerateResult):
        return False
    ledger = found.ledger
    return not falls_short(ledger.rejected, ledger.accepted + ledger.rejected, run.generation.min_yield)


def sampling_of(run: GenerateRun) -> Sampling:
    """How the run asks for answers."""
    generation = run.generation
    k = generation.top_k if generation.signal is Signal.TOP_K else 0
    return Sampling(generation.temperature, generation.top_p, generation.max_tokens, k)


def guidance_of(run: GenerateRun) -> Guidance:
    """How the run leads its teacher to answers."""
    return Guidance.of(run.task, run.generation, run.labels)


def _plan(run: GenerateRun, context: StageContext) -> list[ShardPlan]:
    rows = {
        split: share_of(read_prompts(context.workspace, run.prepared, split), run.share_from, run.share_to)
        for split in SPLITS
    }
    if not rows["train"]:
        raise BadData(
            "NoPrompts", f"No training prompt falls into the share of teacher {run.teacher.name}: use fewer teachers."
        )
    return plan_shards(rows, run.generation.shards)


def _committed(run: GenerateRun, context: StageContext, plans: Sequence[ShardPlan]) -> dict[_Key, Tally]:
    there = set(context.workspace.list(f"{run.folder}/shards"))
    paths = {_key(plan): shard_path(run.folder, plan.split, plan.index) for plan in plans}
    return {
        key: Tally.of(read_meta(context.workspace.read_bytes(path))) for key, path in paths.items() if path in there
    }


def _generate(
    run: GenerateRun,
    context: StageContext,
    plans: Sequence[ShardPlan],
    mine: Sequence[ShardPlan],
    committed: Mapping[_Key, Tally],
) -> None:
    """Ask the teacher for all that is missing of this worker's shards."""
    samples, generation = run.generation.samples_per_prompt, run.generation
    total = sum(len(plan.rows) for plan in plans) * samples
    share = sum(len(plan.rows) for plan in of_worker(plans, context.worker, run.workers)) * samples
    before = sum(
        (committed[_key(p)] for p in of_worker(plans, context.worker, run.workers) if _key(p) in committed), Tally()
    )
    elsewhere = sum(committed.values(), Tally())
    tools = _tools(run, context)
    context.progress.update(done=before.done, total=share, unit="answers", message=f"asking {run.teacher.name}")

    def ended(tally: Tally) -> None:
        here = before + tally
        context.progress.update(done=here.done, ledger=here.ledger(), tokens=tally.tokens)
        check_yield(elsewhere + tally, total, generation.min_yield, books.example)

    def commit(shard: Shard) -> None:
        first = commit_shard(context.workspace, run.folder, shard)
        where = f"{shard.meta.split}-{shard.meta.index:05}"
        context.log.info("shard %s: %s, %d accepted", where, "committed" if first else "was there", shard.meta.accepted)

    books = Books(
        mine,
        samples,
        Wanted(run.task, generation.filters, run.labels, generation.seed, guidance_of(run)),
        tools.maker,
        commit,
        ended,
        smoke=not committed,
    )
    opened = open_teacher(run, sampling_of(run), tools.teacher_tokenizer, tools.model)
    try:
        opened.teacher.answer(books, context.stopping)
    except StageError:
        _leave_rejected(run, context, books.rejected)
        raise
    finally:
        opened.teacher.close()
        books.close()
    if context.stopping.is_set():
        raise Stopped


@dataclass(frozen=True)
class _Tools:
    """What making and reading answers needs of Prepare's output."""

    maker: ShardMaker
    teacher_tokenizer: Path | None
    model: Path | None


def _tools(run: GenerateRun, context: StageContext) -> _Tools:
    student = fetch_tokenizer(context.workspace, run.prepared, context.scratch)
    tokenizer = load_tokenizer(student)
    spec, sampling = run.teacher, sampling_of(run)
    own = fetch_tokenizer(context.workspace, run.prepared, context.scratch, spec.name) if spec.model else None
    assembler = Assembler(
        tokenizer,
        end_ids(tokenizer, student),
        end_ids(load_tokenizer(own), own) if own else (),
        top_k=sampling.k > 0,
    )
    meta = ShardMeta(
        split="train",
        index=0,
        teacher=spec.name,
        k=sampling.k,
        tokenizer_digest=tokenizer_digest(tokenizer),
        sampling={**sampling.__dict__, "seed": run.generation.seed},
    )
    maker = ShardMaker(meta, assembler, run.max_sequence_length, run.generation.filters.deduplicate)
    model = None
    if spec.batch is not None and spec.model is not None:
        check_engine(spec.batch)
        context.progress.update(message="loading the teacher")
        model = fetch_pinned(spec.model, f"teacher:{spec.name}", run.prepared, context)
    return _Tools(maker, own, model)


def _merge(
    run: GenerateRun, context: StageContext, plans: Sequence[ShardPlan], committed: Mapping[_Key, Tally]
) -> GenerateResult:
    """Check the yield of the whole, write the copies for people, and make it all visible."""
    tally = sum(committed.values(), Tally())
    workspace, folder = context.workspace, run.folder
    context.progress.update(message="merging")
    paths = [shard_path(folder, plan.split, plan.index) for plan in plans]
    check_yield(tally, tally.done, run.generation.min_yield, _some_rejected(run, context, paths))
    if not tally.accepted:
        raise BadData("NoAnswers", "No answer can be used: there is nothing to train on.", ledger=tally.ledger())
    files: dict[str, FileEntry] = {}
    answers, rejected = context.scratch / "answers.jsonl", context.scratch / "rejected.jsonl"
    context.scratch.mkdir(parents=True, exist_ok=True)
    with answers.open("w") as accepted_lines, rejected.open("w") as rejected_lines:
        for path in paths:
            data = workspace.read_bytes(path)
            files[path.removeprefix(f"{folder}/")] = manifests.entry(data)
            meta, rows = read_shard(data)
            for row in rows:
                line = {"row_id": row.row_id, "sample": row.sample, "split": row.split, "teacher": row.teacher}
                line |= {"messages": json.loads(row.messages), "finish_reason": row.finish_reason}
                line |= {"label": row.label} if row.label else {}
                line |= {"written": row.written} if row.written else {}
                accepted_lines.write(json.dumps(line, ensure_ascii=False) + "\n")
            if meta.rejected:
                rejected_lines.write(workspace.read_bytes(f"{folder}/{meta.rejected}").decode())
    for copy in (answers, rejected):
        workspace.put(copy, f"{folder}/{copy.name}")
        files[copy.name] = manifests.entry_of(copy)
        copy.unlink()
    result = _result(run, committed, plans, f"{tally.accepted} of {tally.done} answers can train.")
    finished = context.commit(result, files, {"ledger": dict(tally.reasons) | {"Accepted": tally.accepted}})
    assert isinstance(finished, GenerateResult)
    return finished


def _result(
    run: GenerateRun, committed: Mapping[_Key, Tally], plans: Sequence[ShardPlan], message: str
) -> GenerateResult:
    """What is there by now, whoever made it."""
    tally, missing = sum(committed.values(), Tally()), len(plans) - len(committed)
    said = f"{len(committed)} of {len(plans)} shards are there. {message}" if missing else message
    return GenerateResult(
        stage=Stage.GENERATE,
        teacher=run.teacher.name,
        input_digest=run.input_digest,
        output_digest=digest({"answers": run.input_digest}),
        folder=run.folder,
        ledger=tally.ledger(),
        tokens_generated=tally.tokens,
        missing_shards=missing,
        message=said,
    )


def _leave_rejected(run: GenerateRun, context: StageContext, rejected: Sequence[RejectedRow]) -> None:
    """What was rejected before the stage gave up, for people."""
    if rejected:
        lines = "".join(f"{row.as_json()}\n" for row in rejected)
        context.workspace.write_bytes(f"{run.folder}/rejected/given-up-{context.worker}.jsonl", lines.encode())


def _some_rejected(run: GenerateRun, context: StageContext, paths: Sequence[str]) -> RejectedRow | None:
    """A rejected row of the most frequent reason."""
    return next(_rejected_rows(run, context, paths), None)


def _rejected_rows(run: GenerateRun, context: StageContext, paths: Sequence[str]) -> Iterator[RejectedRow]:
    metas = [read_meta(context.workspace.read_bytes(path)) for path in paths]
    reasons = sum((Tally.of(meta) for meta in metas), Tally()).reasons
    for meta in metas:
        if meta.rejected:
            for line in context.workspace.read_bytes(f"{run.folder}/{meta.rejected}").splitlines():  # str has more ends
                row = RejectedRow(**json.loads(line))
                if row.reason == reasons.most_common(1)[0][0]:
                    yield row


def _key(plan: ShardPlan) -> _Key:
    return (plan.split, plan.index)

"""The student before training: given weights, or a teacher with fewer layers, and adapters on top of either.

Which layers a pruned student keeps is measured once, by the first attempt to train, and recorded in the training's
folder. Whoever builds the student later, to resume, to export or to evaluate, keeps the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from kubedistill_api.base import Tolerant
from kubedistill_api.run import EvaluateRun, TrainRun
from kubedistill_api.student import Adapter, ChooseLayers, PrunedFrom
from kubedistill_trainer import four_bits
from kubedistill_trainer.core.pruning import BlockInfluence, decoder_layers, evenly_spaced, most_influential, prune
from kubedistill_trainer.errors import BadConfiguration, NotFound
from kubedistill_trainer.models import fetch_pinned, load_model, load_tokenizer
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store.rows import fetch_tokenizer
from kubedistill_trainer.store.shards import AnswerRow, read_answers

RECORD = "student.json"
SAMPLE_TOKENS = 4096
"""Tokens that block influence is measured on. It is a mean over tokens and settles within a few hundred."""
SAMPLE_LENGTH = 512
"""Of each row at most so many."""


class Student(NamedTuple):
    """A model and what goes with it."""

    model: Any
    """A causal language model of transformers, in evaluation mode."""
    tokenizer: Any
    kept_layers: tuple[int, ...]
    """Of the teacher, for a pruned student; else empty."""


class Record(Tolerant):
    """How a pruned student was made."""

    kept_layers: list[int]
    """Of the teacher, in order."""
    block_influence: list[float] = []
    """Of each of the teacher's layers: 1 - cos of its input and output, a mean over tokens. Empty: not measured."""


def build_student(
    run: TrainRun | EvaluateRun, context: StageContext, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Student:
    """The student before training, without adapters.

    Raises:
        NotFound: a model or the tokenizer is not there.
        BadConfiguration: the student has fewer token rows than its tokenizer has tokens, or layers that the teacher
            does not have.
    """
    tokenizer = load_tokenizer(fetch_tokenizer(context.workspace, run.prepared, context.scratch))
    pruned = run.student.pruned_from
    if pruned is None:
        model = load_model(fetch_source(run, context), dtype, device)
        return Student(fitting(model, tokenizer), tokenizer, ())
    model = load_model(fetch_source(run, context), dtype, device)
    kept = _kept_layers(model, run, pruned, context)
    return Student(fitting(prune(model, kept), tokenizer), tokenizer, kept)


def start_folder(run: TrainRun, context: StageContext, dtype: torch.dtype) -> tuple[Path, tuple[int, ...]]:
    """The student before training as a local folder that every rank loads, and the layers that were kept.

    `dtype` is what a GPU measures in, and the type of the folder: bfloat16, or float32 where that would round what is
    trained in float32. A CPU measures in float32, which is faster there.

    Raises what `build_student` raises.
    """
    if run.student.model is not None:
        return fetch_source(run, context), ()
    on_gpu = run.training.gpus_per_node > 0 and torch.cuda.is_available()
    student = build_student(run, context, dtype if on_gpu else torch.float32, "cuda" if on_gpu else "cpu")
    folder, kept = context.scratch / "start", student.kept_layers
    student.model.save_pretrained(folder)
    del student
    torch.cuda.empty_cache()  # a rank of its own needs what this process would keep
    return folder, kept


def load_start(run: TrainRun, start: Path, dtype: torch.dtype, device: str) -> Any:
    """The student before training as a rank loads it: on the CPU, or, in four bits, where it is trained.

    Raises:
        NotFound: as `load_model`.
        BadConfiguration: this machine cannot compute with four bits.
    """
    return four_bits.load(start, dtype, device) if run.student.in_four_bits else load_model(start, dtype)


def fetch_source(run: TrainRun | EvaluateRun, context: StageContext) -> Path:
    """What the student starts from, at the commit that Prepare found: given weights, or the teacher that is pruned.

    Raises:
        NotFound, Transient: as `fetch_model`.
        BadConfiguration: the teacher has no weights.
    """
    pruned = run.student.pruned_from
    if pruned is None:
        assert run.student.model is not None, "a rule of the API"
        return fetch_pinned(run.student.model, "student", run.prepared, context)
    ref = next((teacher.model for teacher in run.teachers if teacher.name == pruned.teacher), None)
    if ref is None:
        raise BadConfiguration(
            "TeacherWithoutWeights",
            f"student.prunedFrom names the teacher {pruned.teacher}, which has no model: write its model.uri.",
        )
    return fetch_pinned(ref, f"teacher:{pruned.teacher}", run.prepared, context)


def with_adapter(model: Any, adapter: Adapter, seed: int) -> Any:
    """The model with new low-rank adapters; everything else is frozen. The same seed gives the same adapters.

    Raises:
        BadConfiguration: the model has no modules of these names.
    """
    from peft import LoraConfig, get_peft_model

    modules = adapter.target_modules
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if modules == ["all-linear"] else list(modules),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BadConfiguration(
            "AdapterModulesUnknown",
            f"The student has no modules called {', '.join(modules)}: write student.adapter.targetModules: "
            "[all-linear], or names of its linear layers.",
        ) from error


def _kept_layers(model: Any, run: TrainRun | EvaluateRun, pruned: PrunedFrom, context: StageContext) -> tuple[int, ...]:
    """The recorded choice, or a new one, recorded by whoever makes it first."""
    name = f"{run.folder if isinstance(run, TrainRun) else run.trained}/{RECORD}"
    recorded = _recorded(context, name)
    if recorded is None:
        context.workspace.create(name, _choice(model, run, pruned, context).model_dump_json(by_alias=True).encode())
        recorded = _recorded(context, name)
    assert recorded is not None, "it was written above"
    return tuple(recorded.kept_layers)


def _recorded(context: StageContext, name: str) -> Record | None:
    try:
        return Record.model_validate_json(context.workspace.read_bytes(name))
    except (NotFound, ValidationError):
        return None


def _choice(model: Any, run: TrainRun | EvaluateRun, pruned: PrunedFrom, context: StageContext) -> Record:
    layers = len(decoder_layers(model))
    if pruned.layers >= layers:
        raise BadConfiguration(
            "NothingToPrune",
            f"student.prunedFrom keeps {pruned.layers} layers of the teacher {pruned.teacher}, which has {layers}: "
            "write fewer.",
        )
    if pruned.choose is ChooseLayers.EVENLY_SPACED:
        return Record(kept_layers=list(evenly_spaced(layers, pruned.layers)))
    context.progress.update(message="measuring which layers matter")
    scores = influence(model, read_answers(context.workspace, run.answers, "train"))
    context.log.info("block influence: %s", " ".join(f"{layer}:{score:.3f}" for layer, score in enumerate(scores)))
    return Record(kept_layers=list(most_influential(scores, pruned.layers)), block_influence=list(scores))


def influence(model: Any, rows: Iterable[AnswerRow], tokens: int = SAMPLE_TOKENS) -> tuple[float, ...]:
    """Block influence of a model's layers, measured on prompts and answers of about so many tokens.

    Raises ValueError if there are no rows.
    """
    with torch.no_grad(), BlockInfluence(model) as measured:
        for ids in _sample([row.input_ids[:SAMPLE_LENGTH].tolist() for row in sorted(rows, key=_key)], tokens):
            model.get_decoder()(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    return measured.scores


def _key(row: AnswerRow) -> tuple[str, int]:
    """Ids are digests: in their order, rows are as good as drawn by lot."""
    return row.row_id, row.sample


def _sample(rows: Sequence[Sequence[int]], tokens: int) -> Iterable[Sequence[int]]:
    seen = 0
    for ids in rows:
        if seen >= tokens:
            return
        seen += len(ids)
        yield ids


def fitting(model: Any, tokenizer: Any) -> Any:
    """The model itself.

    Raises:
        BadConfiguration: it has fewer token rows than its tokenizer has tokens.
    """
    rows = model.get_input_embeddings().num_embeddings
    if rows < len(tokenizer):
        raise BadConfiguration(
            "TokenizerTooLarge",
            f"The student has {rows} token embeddings, its tokenizer {len(tokenizer)} tokens: use the tokenizer that "
            "belongs to the student.",
        )
    return model

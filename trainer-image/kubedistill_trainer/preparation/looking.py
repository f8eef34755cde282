"""What can be known of models without their weights: shape, size, tokenizer, chat template, revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubedistill_api import uris
from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.status import ResolvedModel
from kubedistill_api.teachers import BatchEngine, ModelRef
from kubedistill_trainer.core.estimates import ModelShape
from kubedistill_trainer.core.inside import attention_projections
from kubedistill_trainer.errors import BadConfiguration, NotFound
from kubedistill_trainer.models import (
    WEIGHT_SUFFIXES,
    end_ids,
    fetch_model,
    load_tokenizer,
    stored_revision,
    tokenizer_digest,
)
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store.workspace import Workspace

LOADABLE = (".safetensors", ".bin")


@dataclass(frozen=True)
class Look:
    """One model, looked at."""

    role: str
    """`teacher:<name>` or `student`."""
    ref: ModelRef
    folder: Path
    config: Any
    """Its configuration, as Transformers reads it."""
    shape: ModelShape
    positions: int | None
    """Tokens of context that the model was made for; None: it does not say."""
    size_bytes: int
    """Of its weights."""
    tokenizer: Any

    @property
    def resolved(self) -> ResolvedModel:
        """For the status."""
        return ResolvedModel(
            role=self.role,
            uri=self.ref.uri,
            revision=_revision(self.ref, self.folder),
            parameters=self.shape.parameters,
            size_bytes=self.size_bytes,
        )


def look(role: str, ref: ModelRef, context: StageContext) -> Look:
    """Look at a model.

    Raises:
        NotFound: it is not there, has no weights, or has an architecture that transformers does not know.
        Transient: its store is away.
    """
    folder = fetch_model(ref, context, weights=False)
    config = _config(ref, folder)
    shape = _shape(ref, config)
    return Look(
        role=role,
        ref=ref,
        folder=folder,
        config=config,
        shape=shape,
        positions=getattr(config.get_text_config(), "max_position_embeddings", None),
        size_bytes=_size(ref, shape),
        tokenizer=load_tokenizer(folder),
    )


def unmoved(models: Sequence[ResolvedModel]) -> bool:
    """Whether all models are those that were looked at. One of the hub is: it is used at the commit found then.

    Raises Transient: a store is away.
    """
    stored = (model for model in models if not uris.scheme_is(model.uri, ("hf",)))
    return all(stored_revision(model.uri) == model.revision for model in stored)


def settle_templates(spec: DistillationJobSpec, student: Look, teachers: dict[str, Look]) -> list[str]:
    """Give the student a chat template if it has none, and check that all end an answer somehow; notes come back.

    Raises:
        BadConfiguration: no template can be had, or nothing ends an answer.
    """
    notes = []
    if not student.tokenizer.chat_template:
        lender = next((t for t in teachers.values() if t.tokenizer.chat_template and same_tokens(t, student)), None)
        if lender is None:
            raise BadConfiguration(
                "ChatTemplateMissing",
                f"{student.ref.uri} has no chat template, and no teacher with the same tokens has one to lend: use an "
                "instruction-tuned student, or put a chat_template.jinja into the model's folder.",
            )
        student.tokenizer.chat_template = lender.tokenizer.chat_template
        notes.append(f"The student has no chat template; that of {lender.role} is trained.")
    for one in (student, *teachers.values()):
        if not one.tokenizer.chat_template:
            raise BadConfiguration("ChatTemplateMissing", f"{one.ref.uri} has no chat template: it cannot be asked.")
        if not end_ids(one.tokenizer, one.folder):
            raise BadConfiguration("EndTokenMissing", f"{one.ref.uri} has no end token: its answers would not stop.")
    return notes


def check_tokens(student: Look, teachers: dict[str, Look]) -> None:
    """Teacher and student must share one token-to-id map, or stored scores mean other tokens to the student.

    Raises:
        BadConfiguration: they do not; the first difference is named.
    """
    for name, teacher in teachers.items():
        if same_tokens(teacher, student):
            continue
        ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
        token = next((t for t in theirs if ours.get(t) != theirs[t]), None) or next(t for t in ours if t not in theirs)
        raise BadConfiguration(
            "TokenizersDiffer",
            f"signal: TopK needs one tokenizer, but the token {token!r} is {theirs.get(token)} to teacher {name} and "
            f"{ours.get(token)} to the student: choose a student of the teacher's family, or write signal: Text.",
        )


def check_attentions(student: Look, teachers: dict[str, Look]) -> None:
    """Where attentions are compared, both models must make queries, keys and values each for itself.

    Raises:
        BadConfiguration: one of them does not.
    """
    for one in (student, *teachers.values()):
        try:
            attention_projections(without_weights(one.ref, _config(one.ref, one.folder)))
        except ValueError as error:
            raise BadConfiguration(
                "AttentionUnsupported",
                f"Attentions cannot be compared, {error} ({one.ref.uri}): leave training.objective.attention out.",
            ) from error


def check_heads(spec: DistillationJobSpec, teachers: dict[str, Look]) -> None:
    """vLLM shares the attention heads of every layer evenly among the GPUs of one copy of the model.

    Raises:
        BadConfiguration: they cannot be shared so.
    """
    for name, look in teachers.items():
        serving, batch = spec.teacher(name).serving, spec.teacher(name).batch
        field, gpus = "serving.parallelism.tensor", serving.parallelism.tensor if serving else 1
        if batch is not None and batch.engine is BatchEngine.VLLM:
            field, gpus = "batch.gpus", max(1, batch.gpus)
        heads = getattr(look.config.get_text_config(), "num_attention_heads", 0)
        keys = getattr(look.config.get_text_config(), "num_key_value_heads", None) or heads
        if heads and not _shared_evenly(heads, keys, gpus):
            most = max(number for number in range(1, gpus) if _shared_evenly(heads, keys, number))
            raise BadConfiguration(
                "HeadsIndivisible",
                f"{field} is {gpus}, but the {heads} attention heads of {look.ref.uri} (and {keys} of keys) cannot be "
                f"shared evenly among {gpus} GPUs: write a number that divides them, such as {most}.",
            )


def _shared_evenly(heads: int, keys: int, gpus: int) -> bool:
    """As vLLM shares them: each GPU has as many; fewer heads of keys than GPUs are held by several."""
    return heads % gpus == 0 and (keys % gpus == 0 or gpus % keys == 0)


def same_tokens(one: Look, other: Look) -> bool:
    """Whether equal ids mean equal tokens; sizes alone do not tell."""
    return tokenizer_digest(one.tokenizer) == tokenizer_digest(other.tokenizer)


def without_weights(ref: ModelRef, config: Any) -> Any:
    """The model on the meta device: all of its modules, none of its numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError) as error:
        raise NotFound(
            "ArchitectureUnknown",
            f"{ref.uri} is a {config.model_type!r}, which this image's transformers cannot train: choose another "
            "model, or an image with a newer transformers.",
        ) from error


def _config(ref: ModelRef, folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise NotFound("ModelUnreadable", f"The configuration of {ref.uri} cannot be read: {text}.") from error


def _shape(ref: ModelRef, config: Any) -> ModelShape:
    return ModelShape.of(without_weights(ref, config))


def _size(ref: ModelRef, shape: ModelShape) -> int:
    if ref.uri.startswith("hf://"):
        return 2 * shape.parameters
    weights = [file for file in Workspace.open(ref.uri).files("") if file.path.endswith(WEIGHT_SUFFIXES)]
    if not any(file.path.endswith(LOADABLE) for file in weights):
        raise NotFound("WeightsMissing", f"{ref.uri} has a config.json but no weights (*.safetensors) beside it.")
    return sum(file.size for file in weights)


def _revision(ref: ModelRef, folder: Path) -> str:
    if uris.scheme_is(ref.uri, ("hf",)):
        return folder.name  # the hub's cache keeps a snapshot under its commit
    return stored_revision(ref.uri)

"""Which teacher a run file asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubedistill_api.run import Endpoint, GenerateRun
from kubedistill_api.teachers import Batch, BatchEngine
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.models import end_ids, load_tokenizer
from kubedistill_trainer.teachers.http import HttpTeacher
from kubedistill_trainer.teachers.protocol import Sampling, Teacher
from kubedistill_trainer.teachers.servers import Server, key_of

SERVED_CONCURRENCY = 128
"""Requests under way at one vLLM, over all workers: enough to fill its batches."""


@dataclass(frozen=True)
class Opened:
    """A teacher, and the tokens that end its answers (none are known of an external one without a tokenizer)."""

    teacher: Teacher
    ends: tuple[int, ...]


def check_engine(batch: Batch) -> None:
    """Look whether a batch engine is here, and its devices, before its model is fetched.

    Raises:
        BadConfiguration: it is not, or they are not those that the spec asks for.
    """
    if batch.engine is BatchEngine.VLLM:
        from kubedistill_trainer.teachers.vllm import check_vllm

        check_vllm(batch.gpus)


def open_teacher(run: GenerateRun, sampling: Sampling, tokenizer: Path | None, model: Path | None) -> Opened:
    """The teacher of a run: a batch engine with the model at `model`, or a client of the run's endpoint.

    Raises:
        BadConfiguration: there is neither an engine nor an endpoint, or the engine does not take the model.
        DeviceOutOfMemory: the model does not fit.
        NotFound: the model cannot be loaded.
    """
    spec = run.teacher
    if spec.batch is not None and model is not None:
        return _in_process(spec.batch, sampling, model)
    tokens: Any = load_tokenizer(tokenizer) if tokenizer is not None else None
    ends = tuple(end_ids(tokens, tokenizer)) if tokens is not None else ()
    return Opened(HttpTeacher(server_of(run), sampling, tokens, ends), ends)


def _in_process(batch: Batch, sampling: Sampling, model: Path) -> Opened:
    if batch.engine is BatchEngine.VLLM:
        from kubedistill_trainer.teachers.vllm import VllmTeacher

        engine = VllmTeacher.load(model, batch, sampling)
        return Opened(engine, engine.ends)
    from kubedistill_trainer.teachers.transformers import TransformersTeacher

    opened = TransformersTeacher.load(model, batch.precision, sampling, batch.batch_size)
    return Opened(opened, opened.ends)


def server_of(run: GenerateRun) -> Server:
    """Where the teacher of a run answers. Limits of an external one are shared evenly by the workers, who have no
    clock in common; there are never more of them than every limit has room for (`Teacher.workers`).
    """
    external, serving = run.teacher.external, run.teacher.serving
    endpoint = run.endpoint or (Endpoint(url=external.url, model=external.model) if external is not None else None)
    if endpoint is None:
        raise BadConfiguration("NoEndpoint", f"The run file does not say where teacher {run.teacher.name} answers.")
    if external is not None:
        return Server(
            url=endpoint.url,
            model=endpoint.model,
            api_key=key_of(run.teacher.name),
            concurrency=max(1, external.max_concurrency // run.workers),
            requests_per_minute=_part(external.requests_per_minute, run.workers),
            tokens_per_minute=_part(external.tokens_per_minute, run.workers),
        )
    replicas = serving.replicas if serving is not None else 1
    idle = float(serving.idle_timeout_seconds) if serving is not None else 600.0
    patience = 2 * idle  # the operator replaces an idle teacher first; a new worker would only wait for the same one
    return Server(
        url=endpoint.url,
        model=endpoint.model,
        token_ids=True,
        concurrency=max(8, SERVED_CONCURRENCY * replicas // run.workers),
        request_seconds=max(60.0, idle),
        patience_seconds=patience,
    )


def _part(limit: int | None, workers: int) -> int | None:
    return max(1, limit // workers) if limit is not None else None

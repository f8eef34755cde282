"""What the teacher answers, once for all studies: through Generate, with its transformers engine in this process.

`<work>/prepared/`                the prompts and the tokenizer, as Prepare leaves them
`<work>/answers/<temperature>/`   Generate's folder for each temperature of sampling
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.prompts import SYSTEM
from kubedistill_api.base import Stage, Task
from kubedistill_api.generation import Generation
from kubedistill_api.run import GenerateRun, JobIdentity
from kubedistill_api.teachers import Teacher
from kubedistill_trainer.models import load_tokenizer
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import generate
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.rows import PromptRow, Split, to_parquet
from kubedistill_trainer.store.shards import AnswerRow, read_answers
from kubedistill_trainer.store.workspace import Workspace

NAME = "teacher"
PREPARED = "prepared"
STORED_K = 128
"""The most that Generate stores. Fewer candidates are cut out of these: see `signals`."""
SEED = 20
JOB = JobIdentity(namespace="studies", name="studies", uid="studies", spec_digest="sha256:studies")


@dataclass(frozen=True)
class Corpus:
    """Whose answers, and to what."""

    teacher: Path
    """A model's folder."""
    work: Path
    """A folder that keeps the answers."""
    training: Sequence[str]
    """Prompts."""
    held_out: Sequence[str]
    """Prompts."""
    max_tokens: int = 40
    k: int = STORED_K
    """Candidates that are stored."""

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.work.absolute().as_uri())


def context_of(stage: Stage, workspace: Workspace, scratch: Path) -> StageContext:
    """Services for a stage without its runtime."""
    return StageContext(workspace, scratch, ProgressBoard(stage), threading.Event())


def teacher_of(corpus: Corpus) -> Teacher:
    """The teacher as a spec names it."""
    return Teacher.model_validate(
        {
            "name": NAME,
            "model": {"uri": corpus.teacher.absolute().as_uri()},
            "batch": {"engine": "Transformers", "gpus": 0, "batchSize": 64, "precision": "FP32"},
        }
    )


def generation_of(temperature: float, k: int, max_tokens: int) -> Generation:
    """Nothing is filtered: all temperatures then have answers to the same prompts."""
    return Generation.model_validate(
        {
            "signal": "TopK",
            "topK": k,
            "temperature": temperature,
            "maxTokens": max_tokens,
            "shards": 8,
            "seed": SEED,
            "filters": {
                "dropTruncated": False,
                "dropRefusals": False,
                "dropRepetitive": False,
                "deduplicate": False,
            },
        }
    )


def answers(corpus: Corpus, temperature: float, split: Split) -> list[AnswerRow]:
    """The teacher's answers; it is asked where they are not there yet. What was answered before a stop stays.

    Raises:
        StageError: as Generate.
    """
    folder = f"answers/{temperature:g}"
    if manifests.load(corpus.workspace, folder) is None:
        _prepare(corpus)
        run = _run(corpus, folder, generation_of(temperature, corpus.k, corpus.max_tokens))
        generate.run(run, context_of(Stage.GENERATE, corpus.workspace, corpus.work / "scratch"))
    return list(read_answers(corpus.workspace, [folder], split))


def digest_of(rows: Sequence[AnswerRow]) -> str:
    """Of the tokens that were written. Another machine may sample others, with which no figure can be compared."""
    tokens = sorted((row.row_id, row.input_ids.tolist()) for row in rows)
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:12]


def _run(corpus: Corpus, folder: str, generation: Generation) -> GenerateRun:
    return GenerateRun(
        job=JOB,
        workspace=corpus.workspace.root,
        folder=folder,
        input_digest="sha256:studies",
        task=Task.CONVERSATION,
        teacher=teacher_of(corpus),
        generation=generation,
        prepared=PREPARED,
    )


def _prepare(corpus: Corpus) -> None:
    """What Prepare leaves for Generate and Train."""
    place, tokenizer = corpus.workspace, load_tokenizer(corpus.teacher)
    for split, prompts in (("train", corpus.training), ("valid", corpus.held_out)):
        place.write_bytes(f"{PREPARED}/{split}.parquet", to_parquet([_row(prompt) for prompt in prompts]))
    for name in ("tokenizer", f"teachers/{NAME}"):
        tokenizer.save_pretrained(corpus.work / PREPARED / name)


def _row(prompt: str) -> PromptRow:
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    messages = json.dumps(chat, ensure_ascii=False)
    row_id = hashlib.sha256(messages.encode()).hexdigest()
    return PromptRow(row_id, messages, "", row_id)

"""Prepared prompts without Prepare, and the services of a stage without its runtime."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from kubedistill_api.base import Stage
from kubedistill_trainer.progress import ProgressBoard
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store.rows import PromptRow, to_parquet
from kubedistill_trainer.store.workspace import Workspace


def prompt_row(text: str, *more: dict[str, Any], label: str = "") -> PromptRow:
    """A prompt, and messages that follow it."""
    messages = json.dumps([{"role": "user", "content": text}, *more])
    row_id = hashlib.sha256(messages.encode()).hexdigest()
    return PromptRow(row_id, messages, label, row_id)


def context_of(workspace: Workspace, scratch: Path, worker: int = 0) -> StageContext:
    return StageContext(workspace, scratch, ProgressBoard(Stage.GENERATE), threading.Event(), worker=worker)


def prepare(place: Workspace, tiny_folder: Path, rows: list[PromptRow]) -> None:
    place.write_bytes("prepared/train.parquet", to_parquet(rows))
    place.write_bytes("prepared/valid.parquet", to_parquet([prompt_row(f"Held out {i}?") for i in range(4)]))
    for name in ("tokenizer", "teachers/t"):
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            place.write_bytes(f"prepared/{name}/{file}", (tiny_folder / file).read_bytes())

"""What Prepare leaves for the stages after it: rows, tokenizers, the report."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubedistill_trainer.core.rows import Row
from kubedistill_trainer.preparation.choosing import Choice
from kubedistill_trainer.preparation.looking import Look
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import FileEntry, entry
from kubedistill_trainer.store.rows import TEACHERS, TOKENIZER, PromptRow, write_parquet


def write(
    folder: str, choice: Choice, student: Look, teachers: Mapping[str, Look], text: str, context: StageContext
) -> dict[str, FileEntry]:
    """Everything but the manifest; what was written, by path relative to the folder."""
    written = {"report.md": text.encode()}
    for target, look in ((TOKENIZER, student), *((f"{TEACHERS}/{name}", look) for name, look in teachers.items())):
        written |= {f"{target}/{name}": data for name, data in _tokenizer_files(look, context.scratch).items()}
    for path, data in written.items():
        context.workspace.write_bytes(f"{folder}/{path}", data)
    entries = {path: entry(data) for path, data in written.items()}
    for split, rows in (("train", choice.train), ("valid", choice.valid)):
        local = context.scratch / f"{split}.parquet"
        write_parquet(local, map(stored, rows))
        context.workspace.put(local, f"{folder}/{local.name}")
        entries[local.name] = manifests.entry_of(local)
        local.unlink()
    return entries


def _tokenizer_files(look: Look, scratch: Path) -> dict[str, bytes]:
    """The tokenizer with its template, and the configurations that say how an answer ends."""
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        look.tokenizer.save_pretrained(name)
        found = {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}
    for extra in ("generation_config.json", "config.json"):
        source = look.folder / extra
        if source.is_file():
            found[extra] = source.read_bytes()
    return found


def stored(row: Row) -> PromptRow:
    """A row as later stages read it, with the hash of its request that shares it out among the teachers."""
    messages: list[dict[str, Any]] = [message.as_dict() for message in row.messages]
    request = json.dumps([messages, [dict(tool) for tool in row.tools]], sort_keys=True, ensure_ascii=False)
    return PromptRow(
        row_id=row.row_id,
        messages=json.dumps(messages, ensure_ascii=False),
        label=row.label or "",
        prompt_hash=hashlib.sha256(request.encode("utf-8", "surrogatepass")).hexdigest(),
        tools=json.dumps([dict(tool) for tool in row.tools], ensure_ascii=False) if row.tools else "",
    )

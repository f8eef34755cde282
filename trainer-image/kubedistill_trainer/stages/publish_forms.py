"""The formats that Publish makes of the merged weights: ONNX and GGUF.

Torch is imported only when one of them is asked for.
"""

from __future__ import annotations

from pathlib import Path

from kubedistill_api.output import Format
from kubedistill_api.run import PublishRun
from kubedistill_trainer.chats import prompt_ids
from kubedistill_trainer.errors import BadConfiguration, Transient
from kubedistill_trainer.models import load_tokenizer
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages.history import model_folder
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.manifests import FileEntry, entries_of
from kubedistill_trainer.store.rows import read_prompts

PROMPTS = 4
"""Held-out prompts that a format is tried on."""
TOKENS = 64
"""Of each prompt, the first so many."""


def gguf_name(run: PublishRun) -> str:
    """The name of the GGUF file, as llama.cpp's users expect it."""
    return f"{run.job.name}-{run.output.gguf_type}.gguf"


def make(form: Format, run: PublishRun, context: StageContext, target: Path) -> str:
    """Write a format to a new folder and check that it computes the model; how close it is comes back, as a sentence.

    Raises:
        BadConfiguration: it does not. Nothing is published.
        Transient: the merged weights are not what Train wrote.
    """
    from kubedistill_trainer.formats import gguf_file, onnx_graph
    from kubedistill_trainer.formats.parity import NotTheModel

    context.check_stopping()
    context.progress.update(message=f"writing {form}")
    model = model_folder(run.trained, context)
    _check_source(model, run, context)
    texts = _texts(model, run, context)
    try:
        if form is Format.GGUF:
            target.mkdir(parents=True)
            file = target / gguf_name(run)
            gguf_file.write(model, file, run.job.name, run.output.gguf_type)
            context.progress.update(message=f"checking {form}")
            parity = gguf_file.verify(model, file, run.output.gguf_type, texts)
        else:
            onnx_graph.write(model, target)
            context.progress.update(message=f"checking {form}")
            parity = onnx_graph.verify(model, target, texts)
    except NotTheModel as error:
        raise BadConfiguration(
            f"{form}NotTheModel",
            f"Nothing was published: the {form} that was written does not compute the trained model: {error}. Leave "
            f"{form} out of output.formats; the other formats do not depend on it.",
        ) from error
    context.log.info("%s: %s", form, parity)
    return str(parity)


def refuse_if_different(found: FileEntry | None, expected: FileEntry, uri: str) -> None:
    """Raises Transient if a file is not the one that Train committed."""
    if found != expected:
        raise Transient(
            "TrainedModelDiffers",
            f"{uri} is not what Train wrote; nothing was published. If it stays so, remove that folder and run again.",
        )


def _check_source(model: Path, run: PublishRun, context: StageContext) -> None:
    trained = manifests.load(context.workspace, run.trained)
    found = entries_of(model)
    for path, entry in (trained.files if trained else {}).items():
        if path.startswith("model/"):
            refuse_if_different(
                found.get(path.removeprefix("model/")), entry, context.workspace.uri(f"{run.trained}/{path}")
            )


def _texts(model: Path, run: PublishRun, context: StageContext) -> list[list[int]]:
    """The first held-out prompts, as the model sees them."""
    tokenizer = load_tokenizer(model)
    return [
        prompt_ids(tokenizer, row.chat, row.tool_list)[:TOKENS]
        for row in read_prompts(context.workspace, run.prepared, "valid")[:PROMPTS]
    ]

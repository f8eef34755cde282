"""Publish: the model goes where it was asked for, is read back, and only then has an address."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from kubedistill_api.identity import short
from kubedistill_api.output import Format
from kubedistill_api.results import PublishResult, Success
from kubedistill_api.run import PublishRun
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.report.card import ModelCard, as_readme
from kubedistill_trainer.report.content import SCORECARD
from kubedistill_trainer.runtime import StageContext
from kubedistill_trainer.stages import publish_forms
from kubedistill_trainer.stages.history import origin_of
from kubedistill_trainer.store import manifests
from kubedistill_trainer.store.artifacts import Artifact, Owner, look, publish
from kubedistill_trainer.store.manifests import FileEntry, Manifest, entries_of
from kubedistill_trainer.store.workspace import Workspace

REPORT = "report.html"
CARD = "README.md"
FOLDERS = {Format.MERGED: "", Format.ADAPTER: "adapter", Format.ONNX: "onnx", Format.GGUF: "gguf"}
"""Where a format goes at the output."""
TRAINED = {Format.MERGED: "model", Format.ADAPTER: "adapter"}
"""Where a format that Train made is in the training's folder. The others are made here, of the merged weights."""


def run(run: PublishRun, context: StageContext) -> Success:
    """Publish the trained student.

    1. Stage its files: the formats that Train made, the model card, the report. 2. Hold them against what Train
    committed. 3. Make the other formats of the merged weights, and check that each computes the model. 4. Put all at
    the output as one, read back and compared (see `store.artifacts`). 5. Commit.

    Raises:
        BadConfiguration: the output holds something that this job may not replace, a format was never made, or one that
            was made here is not the model.
        Transient: what was read is not what was written.
    """
    staged = context.scratch / "publish" / short(run.input_digest)
    shutil.rmtree(staged, ignore_errors=True)
    try:
        stage_files(run, context, staged)
        check_against_training(run, context, entries_of(staged))
        checks = {
            str(form): publish_forms.make(form, run, context, staged / FOLDERS[form])
            for form in formats_of(run)
            if form not in TRAINED
        }
        plan = Artifact.of(Owner.of(run.job), [str(form) for form in formats_of(run)], entries_of(staged))
        artifact = publish(
            Workspace.open(run.output.uri, context.scratch),
            staged,
            plan,
            run.output.overwrite,
            context.scratch,
            ticker(2 * plan.size_bytes, context),
        )
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return conclude(run, artifact, checks, context)


def formats_of(run: PublishRun) -> list[Format]:
    """The formats asked for, each once."""
    return list(dict.fromkeys(run.output.formats))


def unchanged(run: PublishRun, context: StageContext, manifest: Manifest) -> bool:
    """Whether what was published is still there, so that an earlier result may be repeated."""
    found = look(Workspace.open(run.output.uri, context.scratch))
    recorded = manifest.result.digest if isinstance(manifest.result, PublishResult) else ""
    return found.whole and found.artifact is not None and found.artifact.digest == recorded


def stage_files(run: PublishRun, context: StageContext, staged: Path) -> None:
    """What is there already of that which will be published, in one local folder."""
    context.progress.update(message="gathering the model's files")
    for form in formats_of(run):
        if form not in TRAINED:
            continue
        source = TRAINED[form]
        if not context.workspace.exists(f"{run.trained}/{source}"):
            raise BadConfiguration(
                "FormatNotMade", f"Training left no {source} to publish as {form}: write output.formats: [Merged]."
            )
        context.workspace.fetch(f"{run.trained}/{source}", staged / FOLDERS[form])
    context.workspace.fetch(f"{run.evaluated}/{REPORT}", staged / REPORT)
    (staged / CARD).write_text(readme(run, context))


def readme(run: PublishRun, context: StageContext) -> str:
    """The model card."""
    return as_readme(
        ModelCard(
            name=run.job.name,
            task=run.spec.task,
            uri=run.output.uri,
            formats=formats_of(run),
            gguf=publish_forms.gguf_name(run),
            card=SCORECARD.validate_json(context.workspace.read_bytes(f"{run.evaluated}/scores.json")),
            origin=origin_of(run, context),
        )
    )


def check_against_training(run: PublishRun, context: StageContext, files: Mapping[str, FileEntry]) -> None:
    """The files must be those that Train committed: a disk may have failed since.

    Raises:
        Transient: one differs, or is missing.
    """
    trained = manifests.load(context.workspace, run.trained)
    for form in formats_of(run):
        source = TRAINED.get(form, "")
        for path, entry in (trained.files if trained and source else {}).items():
            if path.startswith(f"{source}/"):
                there = posixpath.join(FOLDERS[form], path.removeprefix(f"{source}/"))
                publish_forms.refuse_if_different(
                    files.get(there), entry, context.workspace.uri(f"{run.trained}/{path}")
                )


def conclude(run: PublishRun, artifact: Artifact, checks: Mapping[str, str], context: StageContext) -> Success:
    """Say where the model is. Not before: everything is there and was read back."""
    formats = formats_of(run)
    # Without the merged weights a single format's folder is the model; several have only the output in common.
    inside = FOLDERS[formats[0]] if len(formats) == 1 else ""
    model_uri = posixpath.join(run.output.uri.rstrip("/"), inside).rstrip("/")
    result = PublishResult(
        input_digest=run.input_digest,
        output_digest=artifact.digest,
        folder=run.folder,
        message=f"The model is at {model_uri}.",
        model_uri=model_uri,
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        formats=artifact.formats,
        report_uri=f"{run.output.uri.rstrip('/')}/{REPORT}",
        dataset_uri=context.workspace.uri(posixpath.commonpath(run.answers)) if run.answers else "",
    )
    return context.commit(result, artifact.files, {"checks": dict(checks)})


def ticker(total: int, context: StageContext) -> Callable[[int], None]:
    """Counts bytes that were written or read back, and stops between files if it must."""
    context.progress.update(done=0, total=total, unit="bytes", message="uploading and reading back")
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        context.progress.update(done=done)
        context.check_stopping()

    return tick

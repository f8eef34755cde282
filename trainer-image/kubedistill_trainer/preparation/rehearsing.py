"""The formats of the output, before anything expensive starts: can they be written, how large will they be?

Everything but the weights is written and read back. Torch's exporter and the GGUF package are imported only if they are
asked for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.output import Format, Output
from kubedistill_trainer.core import estimates
from kubedistill_trainer.errors import BadConfiguration
from kubedistill_trainer.preparation.looking import Look
from kubedistill_trainer.runtime import StageContext


def check_formats(output: Output, student: Look, context: StageContext) -> None:
    """Raises BadConfiguration if the student cannot be published in a format that is asked for."""
    for form, objection in ((Format.GGUF, _gguf_objection), (Format.ONNX, _onnx_objection)):
        if form not in output.formats:
            continue
        context.log.info("rehearsing %s", form)
        if why := objection(student, context.scratch):
            raise BadConfiguration(
                "FormatImpossible",
                f"{student.ref.uri} cannot be published as {form}: {why}. Leave {form} out of output.formats, or "
                "choose another student.",
            )


def published(spec: DistillationJobSpec, student: Look) -> Sequence[tuple[str, int]]:
    """Each format, and the bytes that it will have; what Publish needs of memory comes last."""
    shape = student.shape
    if spec.student.pruned_from is not None:
        shape = shape.pruned(spec.student.pruned_from.layers)
    sizes = [
        (f"size as {form}", estimates.published_bytes(shape, form, spec.output.gguf_type))
        for form in dict.fromkeys(spec.output.formats)
        if form is not Format.ADAPTER
    ]
    return [*sizes, ("memory of Publish", estimates.publishing_bytes(shape, spec.output.formats))]


def _gguf_objection(student: Look, scratch: Path) -> str:
    from kubedistill_trainer.formats import gguf_file
    from kubedistill_trainer.formats.parity import NotTheModel

    if why := gguf_file.objection(student.config, student.tokenizer):
        return why
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            gguf_file.rehearse(Path(folder) / "vocabulary.gguf", student.config, student.tokenizer)
        except NotTheModel as error:
            return str(error)
    return ""


def _onnx_objection(student: Look, _: Path) -> str:
    from kubedistill_trainer.formats import onnx_graph

    return onnx_graph.objection(student.config)

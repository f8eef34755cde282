"""What can only be known by doing it once: a file at the output, and an answer of every external teacher."""

from __future__ import annotations

from kubedistill_api.job import DistillationJobSpec
from kubedistill_api.run import PrepareRun
from kubedistill_trainer.errors import BadConfiguration, NotFound
from kubedistill_trainer.store import artifacts
from kubedistill_trainer.store.workspace import Workspace
from kubedistill_trainer.teachers.servers import Server, check_server, key_of


def check_output(run: PrepareRun) -> None:
    """Whether the output is free (or ours) and can be written to.

    Raises:
        BadConfiguration: it is taken, or there is no such place.
        NotFound: access to it is refused.
        Transient: its store is away, or full.
    """
    uri = run.spec.output.uri
    output = Workspace.open(uri)
    try:
        problem = artifacts.objection(artifacts.look(output), artifacts.Owner.of(run.job), run.spec.output.overwrite)
        if not problem:
            probe = f".kubedistill-probe-{run.job.uid}"
            output.write_bytes(probe, b"")
            output.remove(probe)
    except NotFound as error:
        if error.reason != "FileNotFound":
            raise  # it is said already which right or key is missing
        raise BadConfiguration(
            "OutputNotWritable",
            f"{uri} cannot be written: a folder or bucket above it is missing, or is a file ({error.message}) "
            "Write another output.uri, or make the bucket.",
        ) from error
    if problem:
        raise BadConfiguration(
            "OutputTaken", f"{uri} cannot be written: {problem}. Write another output.uri, or overwrite: IfOwned."
        )


def check_external(spec: DistillationJobSpec) -> None:
    """Whether every external teacher answers; raises what `check_server` raises."""
    for teacher in spec.teachers:
        if teacher.external is not None:
            key = key_of(teacher.name)
            check_server(Server(url=teacher.external.url, model=teacher.external.model, api_key=key))

"""A published model is whole or invisible, and nobody else's file is ever touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kubedistill_api.output import Overwrite
from kubedistill_trainer.errors import BadConfiguration, Transient
from kubedistill_trainer.store.artifacts import (
    CLAIM,
    MANIFEST,
    Artifact,
    Claim,
    Found,
    Owner,
    look,
    objection,
    publish,
    read_back,
)
from kubedistill_trainer.store.manifests import entries_of
from kubedistill_trainer.store.workspace import FileInfo, Workspace

OURS = Owner(namespace="team", name="support", uid="uid-1", spec_digest="sha256:1")
OUR_NEXT = OURS.model_copy(update={"uid": "uid-2", "spec_digest": "sha256:2"})
THEIRS = Owner(namespace="team", name="other", uid="uid-3", spec_digest="sha256:3")


class Crash(BaseException):
    """The process is gone: nothing that handles errors may see it."""


class Watched(Workspace):
    """A real workspace that calls back after every write."""

    def __init__(self, inner: Workspace, after_write: Callable[[str, str], None]) -> None:
        self.inner, self.root, self.after_write = inner, inner.root, after_write

    def local_path(self, rel: str) -> Path | None:
        return self.inner.local_path(rel)

    def read_bytes(self, rel: str) -> bytes:
        return self.inner.read_bytes(rel)

    def exists(self, rel: str) -> bool:
        return self.inner.exists(rel)

    def files(self, rel: str) -> list[FileInfo]:
        return self.inner.files(rel)

    def fetch(self, rel: str, local: Path) -> None:
        self.inner.fetch(rel, local)

    def write_bytes(self, rel: str, data: bytes) -> None:
        self.inner.write_bytes(rel, data)
        self.after_write("write", rel)

    def create(self, rel: str, data: bytes) -> bool:
        made = self.inner.create(rel, data)
        self.after_write("create", rel)
        return made

    def remove(self, rel: str) -> None:
        self.inner.remove(rel)
        self.after_write("remove", rel)

    def put(self, local: Path, rel: str) -> None:
        self.inner.put(local, rel)
        self.after_write("put", rel)


def crash_after(writes: int) -> Callable[[str, str], None]:
    """A callback that ends the process after so many writes."""
    count = 0

    def callback(_what: str, _path: str) -> None:
        nonlocal count
        count += 1
        if count == writes:
            raise Crash

    return callback


def a_model(folder: Path, content: str = "weights", extra: str = "") -> Path:
    """A small folder in the shape of a published model."""
    (folder / "adapter").mkdir(parents=True)
    (folder / "model.safetensors").write_text(content * 1000)
    (folder / "config.json").write_text("{}")
    (folder / "adapter" / "adapter_model.safetensors").write_text(content)
    if extra:
        (folder / extra).write_text(extra)
    return folder


def plan_of(staged: Path, owner: Owner = OURS) -> Artifact:
    return Artifact.of(owner, ["Merged", "Adapter"], entries_of(staged))


def contents(output: Workspace) -> dict[str, bytes]:
    return {path: output.read_bytes(path) for path in output.list("")}


def assert_whole_or_invisible(output: Workspace, scratch: Path) -> bool:
    """Whether there is a model; and if there is one, that it is whole."""
    found = look(output)
    if found.artifact is None:
        assert MANIFEST not in found.files
        return False
    read_back(output, found.artifact.files, scratch)
    return True


def test_what_is_published_is_listed_with_its_digests(output: Workspace, tmp_path: Path) -> None:
    staged = a_model(tmp_path / "staged")
    artifact = publish(output, staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    assert set(output.list("")) == {"config.json", "model.safetensors", "adapter/adapter_model.safetensors", MANIFEST}
    written = json.loads(output.read_bytes(MANIFEST))
    assert written["digest"] == artifact.digest
    assert written["owner"] == {"namespace": "team", "name": "support", "uid": "uid-1", "specDigest": "sha256:1"}
    assert written["files"]["config.json"]["size"] == 2
    assert assert_whole_or_invisible(output, tmp_path)


def test_a_crash_after_any_write_leaves_no_partial_model_and_the_next_attempt_finishes_it(
    output: Workspace, tmp_path: Path
) -> None:
    staged = a_model(tmp_path / "staged")
    plan = plan_of(staged)
    for writes in range(1, 100):
        try:
            publish(Watched(output, crash_after(writes)), staged, plan, Overwrite.NEVER, tmp_path)
        except Crash:
            assert_whole_or_invisible(output, tmp_path)
        else:
            break
        publish(output, staged, plan, Overwrite.NEVER, tmp_path)
        assert set(output.list("")) == {*plan.files, MANIFEST}
        assert assert_whole_or_invisible(output, tmp_path)
        output.remove("")
    assert writes == 1 + len(["claim", "withdraw manifest", *plan.files, "manifest", "remove claim"])


def test_what_a_killed_attempt_was_copying_does_not_stay_with_the_model(tmp_path: Path) -> None:
    """In a folder: a bucket keeps no drafts."""
    folder = tmp_path / "output"
    output = Workspace.open(folder.as_uri())
    (folder / "adapter").mkdir(parents=True)
    for draft in (".draft-0123", "adapter/.draft-4567"):
        (folder / draft).write_bytes(b"half")
    staged = a_model(tmp_path / "staged")
    plan = plan_of(staged)
    publish(output, staged, plan, Overwrite.NEVER, tmp_path)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*plan.files, MANIFEST}


def test_a_crash_while_replacing_never_shows_a_mixture_of_two_models(output: Workspace, tmp_path: Path) -> None:
    old, new = a_model(tmp_path / "old", extra="old-only.txt"), a_model(tmp_path / "new", "better")
    before, after = plan_of(old), plan_of(new, OUR_NEXT)
    for writes in range(1, 100):
        publish(output, old, before, Overwrite.NEVER, tmp_path)
        try:
            publish(Watched(output, crash_after(writes)), new, after, Overwrite.IF_OWNED, tmp_path)
        except Crash:
            if assert_whole_or_invisible(output, tmp_path):
                assert look(output).artifact in (before, after)
        else:
            break
        publish(output, new, after, Overwrite.IF_OWNED, tmp_path)
        assert set(output.list("")) == {*after.files, MANIFEST}
        output.remove("")
    assert "old-only.txt" not in output.list("")
    assert writes > len(after.files) + 3


def test_publishing_the_same_again_writes_nothing(output: Workspace, tmp_path: Path) -> None:
    staged = a_model(tmp_path / "staged")
    publish(output, staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    written: list[str] = []
    watched = Watched(output, lambda what, path: written.append(f"{what} {path}"))
    again = publish(watched, staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    assert again == plan_of(staged)
    assert written == [f"remove {CLAIM}"]


def test_a_file_that_reads_back_differently_is_never_published(output: Workspace, tmp_path: Path) -> None:
    staged = a_model(tmp_path / "staged")

    def corrupt(what: str, path: str) -> None:
        if what == "put" and path == "model.safetensors":
            output.write_bytes(path, b"bits rot")

    with pytest.raises(Transient, match=r"model\.safetensors was written with 7000 bytes .* read back with 8"):
        publish(Watched(output, corrupt), staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    assert MANIFEST not in output.list("")


def test_a_file_that_vanished_is_never_published(output: Workspace, tmp_path: Path) -> None:
    staged = a_model(tmp_path / "staged")

    def lose(what: str, path: str) -> None:
        if what == "put" and path == "model.safetensors":
            output.remove("config.json")

    with pytest.raises(Exception, match=r"config\.json"):
        publish(Watched(output, lose), staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    assert MANIFEST not in output.list("")


def test_two_jobs_that_publish_at_once_do_not_mix(output: Workspace, tmp_path: Path) -> None:
    ours, theirs = a_model(tmp_path / "ours"), a_model(tmp_path / "theirs", "their weights")
    their_plan = plan_of(theirs, THEIRS)

    class Slow(Watched):
        def create(self, rel: str, data: bytes) -> bool:
            publish(output, theirs, their_plan, Overwrite.NEVER, tmp_path)
            return super().create(rel, data)

    # They finish between our look and our claim, so that we get the claim: looking again must tell.
    with pytest.raises(BadConfiguration, match="team/other"):
        publish(Slow(output, lambda *_: None), ours, plan_of(ours), Overwrite.NEVER, tmp_path)
    assert look(output) == Found(their_plan.paths | {MANIFEST}, artifact=their_plan, whole=True)
    assert assert_whole_or_invisible(output, tmp_path)


def test_a_model_that_lost_a_file_since_is_made_whole_by_its_own_job(output: Workspace, tmp_path: Path) -> None:
    staged = a_model(tmp_path / "staged")
    publish(output, staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    output.write_bytes("config.json", b"")
    publish(output, staged, plan_of(staged), Overwrite.NEVER, tmp_path)
    assert look(output).whole


@pytest.mark.parametrize("overwrite", list(Overwrite))
def test_a_folder_with_somebodys_files_is_refused_and_left_as_it_is(
    output: Workspace, tmp_path: Path, overwrite: Overwrite
) -> None:
    output.write_bytes("thesis.txt", b"years of work")
    staged = a_model(tmp_path / "staged")
    with pytest.raises(BadConfiguration, match=r"thesis\.txt did not come from this job"):
        publish(output, staged, plan_of(staged), overwrite, tmp_path)
    assert contents(output) == {"thesis.txt": b"years of work"}


def test_a_file_that_somebody_put_beside_the_model_survives_its_replacement(output: Workspace, tmp_path: Path) -> None:
    old, new = a_model(tmp_path / "old"), a_model(tmp_path / "new", "better")
    publish(output, old, plan_of(old), Overwrite.NEVER, tmp_path)
    output.write_bytes("NOTES.md", b"a person wrote this")
    publish(output, new, plan_of(new, OUR_NEXT), Overwrite.IF_OWNED, tmp_path)
    assert output.read_bytes("NOTES.md") == b"a person wrote this"


CLAIMED = Claim(owner=OURS, files=["config.json"])
DONE = Artifact.of(OURS, ["Merged"], {})
FILES = frozenset({"config.json"})
OBJECTIONS = [
    pytest.param(Found(), OURS, Overwrite.NEVER, "", id="an empty folder is free"),
    pytest.param(Found(FILES | {CLAIM}, claim=CLAIMED), OURS, Overwrite.NEVER, "", id="our own claim goes on"),
    pytest.param(
        Found(FILES | {CLAIM}, claim=CLAIMED),
        OUR_NEXT,
        Overwrite.NEVER,
        "job team/support",
        id="a claim of an earlier job of our name is not ours",
    ),
    pytest.param(
        Found(FILES | {CLAIM}, claim=CLAIMED), OUR_NEXT, Overwrite.IF_OWNED, "", id="unless IfOwned says that it is"
    ),
    pytest.param(
        Found(frozenset({MANIFEST}), artifact=DONE), OURS, Overwrite.NEVER, "there already", id="never means never"
    ),
    pytest.param(
        Found(frozenset({MANIFEST}), artifact=DONE), OUR_NEXT, Overwrite.IF_OWNED, "", id="our name may replace"
    ),
    pytest.param(
        Found(frozenset({MANIFEST}), artifact=DONE),
        THEIRS,
        Overwrite.IF_OWNED,
        "belongs to job team/support",
        id="another name may not",
    ),
    pytest.param(Found(FILES), OURS, Overwrite.IF_OWNED, "not empty", id="unmarked files are somebody's"),
    pytest.param(
        Found(frozenset({CLAIM, MANIFEST}), claim=Claim(owner=OURS, files=[])),
        OURS,
        Overwrite.NEVER,
        "kubedistill.json did not come from this job",
        id="an unreadable manifest is somebody's, claim or not",
    ),
]


@pytest.mark.parametrize(("found", "owner", "overwrite", "why"), OBJECTIONS)
def test_who_may_write_where(found: Found, owner: Owner, overwrite: Overwrite, why: str) -> None:
    assert (why in objection(found, owner, overwrite)) if why else objection(found, owner, overwrite) == ""

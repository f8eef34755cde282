"""A workspace keeps the same promises in a folder and in a bucket."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from storing import writers
from storing.processes import Mortal
from storing.volumes import a_volume_of

from kubedistill_api import uris
from kubedistill_api.environment import CLAIM_ROOT
from kubedistill_api.exits import Exit
from kubedistill_trainer.errors import BadConfiguration, NotFound, Transient
from kubedistill_trainer.store.workspace import BucketWorkspace, Workspace

pytestmark = pytest.mark.timeout(300)

NAMES = [
    "plain.txt",
    "deep/er/and/deeper.bin",
    "a-b/x",
    "a/b/x",
    "with blank.txt",
    "per%20cent+plus=equal&and.txt",
    "ünï-日本.json",
    ".hidden",
]


class TestFiles:
    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_written_is_read_and_listed(self, place: Workspace, name: str) -> None:
        place.write_bytes(name, b"content")
        assert place.read_bytes(name) == b"content"
        assert place.exists(name)
        assert place.list("") == [name]
        around, rel = Workspace.around(place.uri(name))
        assert around.read_bytes(rel) == b"content"

    @pytest.mark.parametrize("prefix", ["run#7/a", "what?x=1", "100%", "a;b&c"])
    def test_a_workspace_may_lie_below_any_name(self, place: Workspace, prefix: str, tmp_path: Path) -> None:
        below = Workspace.open(f"{place.root}/{prefix}")
        below.write_bytes("folder/file", b"content")
        assert place.list("") == [f"{prefix}/folder/file"]
        assert below.list("") == ["folder/file"]
        assert below.read_bytes("folder/file") == b"content"
        below.fetch("folder", tmp_path / "copy")
        assert contents(tmp_path / "copy") == {"file": b"content"}
        below.remove("folder")
        assert place.list("") == []

    @pytest.mark.parametrize("size", [0, 1, 7 * 2**20])
    def test_any_size_comes_back(self, place: Workspace, size: int) -> None:
        data = writers.noise("any", size)
        place.write_bytes("file", data)
        assert place.read_bytes("file") == data
        assert [file.size for file in place.files("")] == [size]

    def test_a_file_is_replaced_and_its_version_tells(self, place: Workspace) -> None:
        place.write_bytes("file", b"old")
        before = place.files("file")[0]
        place.write_bytes("file", b"new")
        after = place.files("file")[0]
        assert place.read_bytes("file") == b"new"
        assert (after.path, after.size) == (before.path, before.size)
        assert after.version != before.version

    def test_a_listing_is_sorted_by_path_and_knows_folders_from_prefixes(self, place: Workspace) -> None:
        for name in ("a/2", "a/1", "a-b/1", "ab", "b"):
            place.write_bytes(name, b"")
        assert place.list("") == ["a-b/1", "a/1", "a/2", "ab", "b"]
        assert place.list("a") == ["a/1", "a/2"]
        assert place.list("ab") == ["ab"]
        assert place.list("nothing") == []

    def test_a_folder_is_there_as_long_as_something_is_in_it(self, place: Workspace) -> None:
        assert not place.exists("folder")
        place.write_bytes("folder/deep/file", b"")
        assert place.exists("folder")
        assert place.exists("folder/deep")
        assert not place.exists("fold")
        place.remove("folder/deep/file")
        assert not place.exists("folder/deep")

    def test_removing_takes_a_file_or_a_whole_folder_and_nothing_beside_it(self, place: Workspace) -> None:
        for name in ("folder/1", "folder/deep/2", "folder-beside/3", "folder.txt"):
            place.write_bytes(name, b"")
        place.remove("folder")
        place.remove("folder.txt")
        place.remove("never there")
        assert place.list("") == ["folder-beside/3"]

    def test_more_files_than_one_listing_holds_are_listed_and_removed(self, place: Workspace, tmp_path: Path) -> None:
        names = [f"many/{number:04}" for number in range(1100)]
        with ThreadPoolExecutor(16) as threads:
            list(threads.map(lambda name: place.write_bytes(name, b""), names))
        assert place.list("many") == names
        place.remove("many")
        assert place.list("") == []

    @pytest.mark.parametrize(
        "action",
        [
            lambda place, tmp_path: place.read_bytes("missing"),
            lambda place, tmp_path: place.read_bytes("folder"),
            lambda place, tmp_path: place.read_bytes("folder/file/below"),
            lambda place, tmp_path: place.fetch("missing", tmp_path / "copy"),
        ],
        ids=["a file", "a folder read as a file", "below a file", "a copy"],
    )
    def test_what_is_not_there_is_named(
        self, place: Workspace, tmp_path: Path, action: Callable[[Workspace, Path], None]
    ) -> None:
        place.write_bytes("folder/file", b"")
        with pytest.raises(NotFound) as error:
            action(place, tmp_path)
        assert error.value.reason == "FileNotFound"
        assert place.root in error.value.message

    def test_a_folder_goes_there_and_back(self, place: Workspace, tmp_path: Path) -> None:
        source = tmp_path / "source"
        for name in ("one", "deep/two", "deep/er/three"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(writers.noise(name, 1000))
        place.put(source, "kept/model")
        assert place.list("kept") == ["kept/model/deep/er/three", "kept/model/deep/two", "kept/model/one"]
        place.fetch("kept/model", tmp_path / "copy")
        assert contents(tmp_path / "copy") == contents(source)
        place.fetch("kept/model/one", tmp_path / "new folder" / "one")
        assert (tmp_path / "new folder" / "one").read_bytes() == (source / "one").read_bytes()

    def test_a_folder_goes_to_the_root_too(self, place: Workspace, tmp_path: Path) -> None:
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "file").write_bytes(b"x")
        place.put(tmp_path / "source", "")
        place.put(tmp_path / "source" / "file", "other")
        assert place.list("") == ["file", "other"]
        place.fetch("", tmp_path / "copy")
        assert contents(tmp_path / "copy") == {"file": b"x", "other": b"x"}


class TestFirstWriter:
    def test_the_second_is_told_and_the_first_content_stays(self, place: Workspace) -> None:
        assert place.create("shard", b"first")
        assert not place.create("shard", b"second")
        assert place.read_bytes("shard") == b"first"

    def test_of_many_threads_one_is_first(self, place: Workspace) -> None:
        for round_number in range(4):
            start = threading.Barrier(8)

            def make(writer: int, name: str = f"{round_number}", start: threading.Barrier = start) -> bool:
                start.wait()
                return place.create(name, writers.content_of(str(writer), name, 20_000))

            with ThreadPoolExecutor(8) as threads:
                won = list(threads.map(make, range(8)))
            assert won.count(True) == 1
            expected = writers.content_of(str(won.index(True)), f"{round_number}", 20_000)
            assert place.read_bytes(f"{round_number}") == expected

    def test_of_many_processes_one_is_first_and_each_file_is_whole(
        self, place: Workspace, new_uri: Callable[[str], str]
    ) -> None:
        names = [f"shards/{number:02}" for number in range(20)]
        arguments = (new_uri("workspace"), names)
        racers = {writer: Mortal(writers.create_all, *arguments, writer, 50_000) for writer in ("a", "b", "c", "d")}
        won = {writer: racer.finish()[1:] for writer, racer in racers.items()}
        assert sorted(name for names_won in won.values() for name in names_won) == names
        for writer, names_won in won.items():
            for name in names_won:
                assert place.read_bytes(name) == writers.content_of(writer, name, 50_000)


class TestTornWrites:
    def test_a_reader_sees_the_old_content_or_the_new(self, place: Workspace, new_uri: Callable[[str], str]) -> None:
        place.write_bytes("file", writers.signed(-1, 300_000))
        writer = Mortal(writers.replace_for_ever, new_uri("workspace"), "file", 300_000)
        writer.ready()
        seen = set()
        until = time.monotonic() + 2
        while time.monotonic() < until:
            data = place.read_bytes("file")
            assert writers.verifies(data)
            seen.add(data[:32])
        writer.kill()
        assert len(seen) > 2, "the writer wrote nothing meanwhile"
        assert place.list("") == ["file"]

    @pytest.mark.parametrize("kind", ["folder"], indirect=True)
    def test_a_write_that_fails_in_the_middle_leaves_nothing(self, place: Workspace, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"x" * 100_000)
        local = place.local_path("")
        assert local is not None
        place.write_bytes("file", b"old")
        for write in (
            lambda: place.write_bytes("file", b"x" * 100_000),
            lambda: place.create("new", b"x" * 100_000),
            lambda: place.put(tmp_path / "source", "put"),
        ):
            with files_of_at_most(50_000), pytest.raises(Transient):
                write()
        assert place.read_bytes("file") == b"old"
        assert [path.name for path in local.iterdir()] == ["file"]

    def test_a_full_volume_is_named_and_left_as_it_was(self, tmp_path: Path) -> None:
        with a_volume_of(tmp_path / "volume", "64k") as folder:
            place = Workspace.open(folder.as_uri())
            place.write_bytes("file", b"old")
            with pytest.raises(Transient) as error:
                place.write_bytes("file", b"x" * 100_000)
            assert (error.value.reason, error.value.exit_code) == ("VolumeFull", Exit.TRANSIENT)
            assert "ask for a larger volume" in error.value.message
            assert contents(folder) == {"file": b"old"}

    def test_what_a_killed_writer_left_is_neither_listed_nor_there_nor_fetched(self, tmp_path: Path) -> None:
        """In a folder: a bucket keeps no drafts."""
        local = tmp_path / "place"
        place = Workspace.open(local.as_uri())
        place.write_bytes("folder/file", b"whole")
        (local / "folder" / ".draft-0123").write_bytes(b"ha")
        (local / "other").mkdir()
        (local / "other" / ".draft-4567").write_bytes(b"ha")
        assert place.list("") == ["folder/file"]
        assert not place.exists("other")
        place.fetch("", tmp_path / "copy")
        assert contents(tmp_path / "copy") == {"folder/file": b"whole"}

    @pytest.mark.parametrize(
        "write",
        [
            lambda place, local: place.write_bytes("new/folder/file", b"x"),
            lambda place, local: place.create("new/folder/file", b"x"),
            lambda place, local: place.put(local, "new/folder/file"),
            lambda place, local: place.put(local.parent, "new/folder"),
        ],
        ids=["write", "create", "put-a-file", "put-a-folder"],
    )
    def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_return(
        self, tmp_path: Path, write: Callable[[Workspace, Path], None]
    ) -> None:
        """Which calls are made is watched, not replaced: what a power cut leaves no test can see."""
        root, local = tmp_path / "place", tmp_path / "local" / "file"
        local.parent.mkdir()
        local.write_bytes(b"x")
        root.mkdir()
        place = Workspace.open(root.as_uri())
        calls: list[tuple[str, str]] = []

        def note(frame: FrameType, event: str, function: Any) -> None:
            if event == "c_call" and function in (os.fsync, os.replace, os.link):
                path = frame.f_locals.get("path") or frame.f_locals["draft"]
                name = "draft" if path.name.startswith(".draft-") else path.relative_to(root).as_posix()
                calls.append((function.__name__, name))

        sys.setprofile(note)
        try:
            write(place, local)
        finally:
            sys.setprofile(None)
        assert calls[:-3] == [("fsync", "new"), ("fsync", ".")], "the folders that were made for it"
        assert [name for _, name in calls[-3:]] == ["draft", "draft", "new/folder"]
        assert [call for call, _ in calls[-3:]] in (["fsync", "replace", "fsync"], ["fsync", "link", "fsync"])

    def test_sweeping_takes_drafts_that_nobody_writes_to_and_no_file(self, tmp_path: Path) -> None:
        local = tmp_path / "place"
        place = Workspace.open(local.as_uri())
        place.write_bytes("folder/deep/file", b"whole")
        place.write_bytes("folder/file", b"whole")
        old, new, near = (local / "folder" / name for name in ("deep/.draft-1", "deep/.draft-2", ".draft-3"))
        for draft in (old, new, near):
            draft.write_bytes(b"ha")
        day_before = time.time() - 25 * 3600
        os.utime(old, (day_before, day_before))
        place.sweep("folder", below=True, untouched_seconds=24 * 3600)
        assert (old.exists(), new.exists(), near.exists()) == (False, True, True)
        place.sweep("folder")
        assert (new.exists(), near.exists()) == (True, False)
        place.sweep("folder", below=True)
        assert not new.exists()
        place.sweep("nothing", below=True)
        assert place.list("") == ["folder/deep/file", "folder/file"]


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit of the kernel: what grows beyond it fails as on a full volume, in the middle of the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # EFBIG instead of the signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def nobody_removes(place: Workspace, pattern: str) -> Iterator[None]:
    """A policy of the bucket."""
    assert isinstance(place, BucketWorkspace)
    bucket, _, prefix = place.prefix.partition("/")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject"}
    policy = {"Version": "2012-10-17", "Statement": [deny | {"Resource": f"arn:aws:s3:::{bucket}/{prefix}/{pattern}"}]}
    place.fs.call_s3("put_bucket_policy", Bucket=bucket, Policy=json.dumps(policy))
    try:
        yield
    finally:
        place.fs.call_s3("delete_bucket_policy", Bucket=bucket)


UNREACHABLE = "http://127.0.0.1:9"
"""Nobody listens there."""


@pytest.mark.s3
class TestRefusals:
    """What a user gets wrong about a bucket ends the stage with a sentence, not with a retry."""

    @pytest.fixture
    def bucket(self, s3_bucket: str) -> str:
        return s3_bucket

    @pytest.mark.parametrize(
        "action",
        [
            lambda place, tmp_path: place.read_bytes("file"),
            lambda place, tmp_path: place.write_bytes("file", b""),
            lambda place, tmp_path: place.create("file", b""),
            lambda place, tmp_path: place.files("folder"),
            lambda place, tmp_path: place.exists("file"),
            lambda place, tmp_path: place.remove("folder"),
            lambda place, tmp_path: place.fetch("file", tmp_path / "copy"),
            lambda place, tmp_path: place.put(Path(__file__), "file"),
        ],
        ids=["read", "write", "create", "files", "exists", "remove", "fetch", "put"],
    )
    @pytest.mark.parametrize(
        "variable", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"], ids=["wrong secret", "unknown key"]
    )
    def test_refused_credentials_are_named_by_whatever_comes_first(
        self,
        bucket: str,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        variable: str,
        action: Callable[[Workspace, Path], object],
    ) -> None:
        monkeypatch.setenv(variable, "wrong")
        with pytest.raises(NotFound) as error:
            action(Workspace.open(f"{bucket}/folder"), tmp_path)
        assert (error.value.reason, error.value.exit_code) == ("AccessDenied", Exit.NOT_FOUND)
        assert f"{bucket}/folder" in error.value.message
        assert "spec.credentials" in error.value.message

    # Only what reads: SeaweedFS makes a bucket that an administrator writes to.
    @pytest.mark.parametrize(
        "action",
        [
            lambda place, tmp_path: place.read_bytes("file"),
            lambda place, tmp_path: place.files("folder"),
            lambda place, tmp_path: place.list(""),
            lambda place, tmp_path: place.exists("file"),
            lambda place, tmp_path: place.exists(""),
            lambda place, tmp_path: place.remove("folder"),
            lambda place, tmp_path: place.fetch("file", tmp_path / "copy"),
        ],
        ids=["read", "files", "list", "exists", "exists at all", "remove", "fetch"],
    )
    def test_a_bucket_that_is_not_there_is_named(
        self, bucket: str, tmp_path: Path, action: Callable[[Workspace, Path], object]
    ) -> None:
        with pytest.raises(NotFound) as error:
            action(Workspace.open("s3://no-such-bucket/folder"), tmp_path)
        assert (error.value.reason, error.value.exit_code) == ("FileNotFound", Exit.NOT_FOUND)
        assert "s3://no-such-bucket/folder" in error.value.message
        assert "bucket" in error.value.message.replace("s3://no-such-bucket", "")

    def test_a_file_that_may_not_be_removed_is_named(self, bucket: str, tmp_path: Path) -> None:
        """A server answers such a request with 200, and the refusal in its body."""
        place = Workspace.open(f"{bucket}/{tmp_path.name}")
        place.write_bytes("locked/file", b"")
        place.write_bytes("free/file", b"")
        with nobody_removes(place, "locked/*"), pytest.raises(NotFound) as error:
            place.remove("")
        assert error.value.reason == "AccessDenied"
        assert "locked/file" in error.value.message
        assert place.list("") == ["locked/file"]

    @pytest.mark.slow
    def test_of_two_who_upload_in_parts_one_is_first(self, bucket: str, tmp_path: Path) -> None:
        place = Workspace.open(f"{bucket}/{tmp_path.name}")
        data = bytes(101 * 2**20)  # above 100 MiB s3fs uploads in parts
        with ThreadPoolExecutor(2) as threads:
            won = list(threads.map(lambda writer: place.create("file", writer + data), [b"0", b"1"]))
        assert sorted(won) == [False, True]
        assert place.read_bytes("file") == str(won.index(True)).encode() + data
        assert not place.create("file", b"late")

    def test_no_credentials_at_all_are_refused(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "none"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(NotFound) as error:
            Workspace.open(f"{bucket}/folder").read_bytes("file")
        assert error.value.reason == "AccessDenied"
        assert "spec.credentials" in error.value.message


@pytest.mark.slow
def test_a_store_that_is_away_is_a_reason_to_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": UNREACHABLE,
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Transient) as error:
        Workspace.open("s3://bucket/folder").read_bytes("file")
    assert (error.value.reason, error.value.exit_code) == ("StoreUnavailable", Exit.TRANSIENT)
    assert "s3://bucket/folder" in error.value.message


@pytest.mark.parametrize("uri", ["gs://bucket/x", "relative/path", "file://relative", "file:///a%00b"])
def test_a_uri_that_cannot_be_opened_says_what_to_write(uri: str) -> None:
    with pytest.raises(BadConfiguration) as error:
        Workspace.open(uri)
    assert "write " in error.value.message
    with pytest.raises(BadConfiguration, match="write "):
        Workspace.around(f"{uri}/name")


@pytest.mark.parametrize("name", ["my prompts.jsonl", "50%20off", "Grüße#1?"])
def test_a_folder_is_opened_however_its_uri_is_written_and_tells_uris_that_open_again(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / name).write_bytes(b"x")
    for uri in ((tmp_path / name).as_uri(), uris.of_path(str(tmp_path / name))):
        place = Workspace.open(uri)
        assert place.list("") == [name]
        around, rel = Workspace.around(place.uri(name))
        assert (rel, around.read_bytes(rel)) == (name, b"x")


def test_escapes_in_the_path_of_a_claim_are_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLAIM_ROOT, str(tmp_path))
    assert Workspace.open("pvc://claim/a%20b").local_path("c%20d") == tmp_path / "claim" / "a%20b" / "c%20d"

"""The user's files are told by content and read row by row; what cannot be read is named with its place."""

from __future__ import annotations

import datetime
import gzip
import io
import ipaddress
import json
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kubedistill_api import uris
from kubedistill_api.data import DataRef
from kubedistill_trainer.errors import BadData, NotFound, Transient
from kubedistill_trainer.preparation import files
from kubedistill_trainer.preparation.files import Reading
from kubedistill_trainer.preparation.forms import BATCH, RawRow
from kubedistill_trainer.store.workspace import Workspace

ROWS: list[dict[str, Any]] = [{"prompt": f"Grüße, {n}? 你好 \u2028 \U0001f600", "label": str(n)} for n in range(5)]


def lines(rows: list[dict[str, Any]] = ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]] = ROWS, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def reading(place: Path, **columns: str) -> Reading:
    return files.read(DataRef(uri=f"file://{place}"), columns, place.parent / "scratch")


def read(place: Path, data: bytes, **columns: str) -> list[RawRow]:
    (place / "data").write_bytes(data)
    return list(reading(place / "data", **columns).rows())


@pytest.mark.parametrize("name", ["my prompts.jsonl", "50%20off.jsonl", "Grüße.jsonl"])
def test_a_file_is_found_however_its_uri_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(lines())
    found = [
        files.read(DataRef(uri=uri), {}, tmp_path / "scratch")
        for uri in ((tmp_path / name).as_uri(), uris.of_path(str(tmp_path / name)))
    ]
    assert [len(list(each.rows())) for each in found] == [len(ROWS)] * 2
    assert found[0].fingerprint == found[1].fingerprint


SAME = {
    "json-lines": lines(),
    "no-line-end-at-the-end": lines().rstrip(b"\n"),
    "windows-line-ends": lines().replace(b"\n", b"\r\n"),
    "blank-lines": b"\n \n" + lines().replace(b"\n", b"\n\n"),
    "byte-order-mark": b"\xef\xbb\xbf" + lines(),
    "escaped": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "blanks-around": lines().replace(b"{", b"\t {").replace(b"}\n", b"} \n"),
    "gzip": gzip.compress(lines()),
    "gzip-in-two-parts": gzip.compress(lines(ROWS[:2])) + gzip.compress(lines(ROWS[2:])),
    "zstd": zstd(lines()),
    "array": json.dumps(ROWS).encode(),
    "array-over-many-lines": b"\n\n" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode() + b"\n",
    "array-with-a-byte-order-mark": b"\xef\xbb\xbf" + json.dumps(ROWS).encode(),
    "array-in-gzip": gzip.compress(json.dumps(ROWS, indent=1).encode()),
    "parquet": parquet(),
    "parquet-in-row-groups": parquet(row_group_size=2, compression="zstd"),
    "parquet-in-gzip": gzip.compress(parquet()),
}


@pytest.mark.parametrize("data", SAME.values(), ids=SAME)
def test_the_same_rows_are_read_whatever_form_they_have(tmp_path: Path, data: bytes) -> None:
    found = read(tmp_path, data)
    assert [row.value for row in found] == ROWS
    assert not any(row.error for row in found)
    assert len({row.place for row in found}) == 5


def test_lines_and_rows_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    assert [row.place[-6:] for row in read(tmp_path, b"\n" + lines())] == [f"line {n}" for n in range(2, 7)]
    assert [row.place[-5:] for row in read(tmp_path, parquet())] == [f"row {n}" for n in range(1, 6)]
    assert [row.place[-5:] for row in read(tmp_path, json.dumps(ROWS).encode())] == [f"row {n}" for n in range(1, 6)]


NOTED = {
    "windows": (lines().replace(b"\n", b"\r\n"), "Windows line ends"),
    "blank": (b"\n" + lines().replace(b"\n", b"\n\n", 1), "2 blank lines"),
    "mark": (b"\xef\xbb\xbf" + lines(), "byte order mark"),
}


@pytest.mark.parametrize(("data", "words"), NOTED.values(), ids=NOTED)
def test_what_was_put_right_is_noted(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "data").write_bytes(data)
    read = reading(tmp_path / "data")
    assert len(list(read.rows())) == 5
    assert [words in note for note in read.notes] == [True]


GOOD = b'{"prompt": "fine"}\n'
BROKEN = {
    "no-json": (b'{"prompt": "no end\n', "column 12: this is not JSON", "no end"),
    "two-values": (b'{"prompt": "a"} {"prompt": "b"}\n', "column 17: this is not JSON (Extra data)", '{"prompt": "b"}'),
    "no-utf-8": ('{"prompt": "né '.encode() + b'\xe9"}\n', "column 16: this is not UTF-8", "n"),
    "a-key-twice": (b'{"prompt": "a", "prompt": "b"}\n', "column 17: the key 'prompt' stands twice", "prompt"),
    "a-key-twice-inside": (b'{"messages": [{"role": "user", "role": "x"}]}\n', "the key 'role' stands twice", "role"),
    "nested-without-end": (b'{"prompt": ' + b"[" * 100_000 + b"\n", "nested too deeply", "[["),
    "a-number-without-end": (b'{"prompt": "a", "label": ' + b"9" * 5000 + b"}\n", "number that is too long", "999"),
}


@pytest.mark.parametrize(("line", "error", "kept"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named_with_its_column_and_kept_and_the_others_are_read(
    tmp_path: Path, line: bytes, error: str, kept: str
) -> None:
    first, broken, last = read(tmp_path, GOOD + line + GOOD)
    assert (first.value, last.value) == ({"prompt": "fine"}, {"prompt": "fine"})
    assert error in broken.error
    assert broken.place.endswith("line 2")
    assert kept in str(broken.value)


@pytest.mark.parametrize("line", [b"nonsense\n", b"# prompts of May\n"], ids=["word", "note"])
def test_a_first_line_that_is_broken_is_no_other_form(tmp_path: Path, line: bytes) -> None:
    first, second = read(tmp_path, line + GOOD)
    assert "column 1" in first.error
    assert second.value == {"prompt": "fine"}


def test_a_key_that_stands_twice_breaks_one_row_of_an_array(tmp_path: Path) -> None:
    found = read(tmp_path, b'[{"prompt": "a"}, {"prompt": "b", "prompt": "c"}, {"prompt": "d"}]')
    assert [row.error for row in found] == ["", "the key 'prompt' stands twice", ""]


UNREADABLE = {
    "empty": (b"", ["is empty", "one JSON object a line"]),
    "blank": (b"\n \n\r\n", ["is empty"]),
    "an-empty-array": (b" [ ]\n", ["is empty"]),
    "parquet-without-rows": (parquet([{"prompt": "a"}][:0]), ["is empty"]),
    "csv": (b"question,answer\nWhat?,That\n", ["neither JSON lines", "line 1", "'question,answer'", "of CSV make"]),
    "text": (b"\n\nWhat is it?\n", ["neither JSON lines", "line 3", "'What is it?'"]),
    "zip": (b"PK\x03\x04....", ["a zip archive", "gzip and zstd are unpacked"]),
    "utf-16": ('{"prompt": "a"}'.encode("utf-16"), ["UTF-16"]),
    "xz": (b"\xfd7zXZ\x00\x00", ["packed with xz"]),
    "arrow": (b"ARROW1\x00\x00", ["an Arrow file", "Parquet"]),
    "gzip-cut-off": (gzip.compress(lines() * 50)[:-20], ["broken gzip file"]),
    "gzip-damaged": (gzip.compress(lines(), mtime=0)[:40] + b"\xff" * 60, ["broken gzip file"]),
    "zstd-damaged": (zstd(lines())[:30] + b"\xff" * 60, ["broken zstd file"]),
    "parquet-cut-off": (parquet()[:-30], ["broken Parquet file"]),
    "parquet-damaged": (parquet()[:40] + b"\xff" * 120 + parquet()[160:], ["broken Parquet file"]),
    "array-cut-off": (b'[\n{"prompt": "a"},\n{"prompt": "b"}', ["JSON array", "line 3, column 16"]),
    "array-broken": (b'\n[{"prompt": "a"},\n {"prompt" "b"}]', ["line 3, column 12", "not JSON"]),
    "array-with-more": (b'[{"prompt": "a"}]\nmore', ["line 2, column 1", "Extra data"]),
    "array-not-utf-8": (b'[{"prompt": "a"},\n{"prompt": "\xe9"}]', ["line 2, column 13", "not UTF-8"]),
}


@pytest.mark.parametrize(("data", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_says_what_to_write(tmp_path: Path, data: bytes, words: list[str]) -> None:
    with pytest.raises(BadData) as raised:
        read(tmp_path, data)
    assert [word for word in words if word not in raised.value.message] == []
    assert str(tmp_path) in raised.value.message


def test_a_folder_is_read_in_the_order_of_its_paths_without_what_tools_leave_there(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    for name, content in {
        "b/part-2.jsonl": lines(ROWS[2:3]),
        "b/part-10.json": json.dumps(ROWS[1:2]).encode(),
        "a.parquet": parquet(ROWS[:1]),
        "c.jsonl.gz": gzip.compress(lines(ROWS[3:])),
        "d-empty.jsonl": b"",
        "_SUCCESS": b"",
        ".cache/huggingface/c.jsonl.metadata": b"etag",
        "b/.part-2.crc": b"\x00\x01",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    whole = reading(folder)
    assert [row.value for row in whole.rows()] == ROWS
    passed_over, empty = whole.notes
    assert passed_over.startswith("3 files that begin with . or _ were passed over, such as data/")
    assert empty.endswith("d-empty.jsonl is empty; it was passed over.")


def test_a_disk_that_fails_is_no_broken_file(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").symlink_to("/proc/self/mem")  # can be opened, and gives an I/O error
    with pytest.raises(Transient, match="cannot be read now"):
        list(reading(tmp_path / "data.jsonl").rows())


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "_data.csv").write_bytes(lines())
    assert len(list(reading(tmp_path / "_data.csv").rows())) == 5


def test_of_parquet_only_the_fields_that_count_are_read(tmp_path: Path) -> None:
    wide = [{"question": "a", "answer": "b", "embedding": [0.5] * 9, "id": 7}]
    assert [row.value for row in read(tmp_path, parquet(wide), prompt="question", label="answer")] == [
        {"question": "a", "answer": "b"}
    ]
    [unknown] = read(tmp_path, parquet(wide))
    assert set(unknown.value) == {"question", "answer", "embedding", "id"}  # type: ignore[call-overload]


def test_parquet_is_taken_in_batches(tmp_path: Path) -> None:
    rows = [{"prompt": str(number)} for number in range(2 * BATCH + 3)]
    assert [row.value for row in read(tmp_path, parquet(rows))] == rows


@pytest.mark.parametrize(
    "pack", [lines, parquet, lambda rows: gzip.compress(lines(rows), 1)], ids=["lines", "parquet", "gzip"]
)
def test_reading_holds_a_part_of_a_file_at_a_time(
    tmp_path: Path, pack: Callable[[list[dict[str, Any]]], bytes]
) -> None:
    (tmp_path / "data").write_bytes(pack([{"prompt": f"{number} " + "x" * 1000} for number in range(10_000)]))
    tracemalloc.start()
    try:
        count = sum(1 for _ in reading(tmp_path / "data").rows())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 6 * 2**20  # of 10 MB


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=5), st.integers(0, 3))
def test_lines_and_array_say_the_same_of_any_json(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], indent: int
) -> None:
    place = tmp_path_factory.mktemp("any")
    by_line = read(place, "".join(json.dumps(row) + "\n" for row in rows).encode())
    in_array = read(place, json.dumps(rows, indent=indent or None).encode())
    assert [row.value for row in by_line] == [row.value for row in in_array] == rows


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate of this machine, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def served(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, bytes], str]]:
    """An https server on this machine: gives the URL at which it answers so."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[self.path.partition("?")[0]]
            self.send_response(status)
            if status in (301, 302):
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    def answering(status: int, body: bytes) -> str:
        path = f"/{len(answers)}.jsonl"
        answers[path] = (status, body)
        return f"https://127.0.0.1:{server.server_port}{path}"

    yield answering
    server.shutdown()
    server.server_close()


def over_https(url: str, scratch: Path) -> list[RawRow]:
    return list(files.read(DataRef(uri=url), {}, scratch).rows())


def test_a_file_is_read_over_https_in_any_form_and_after_a_redirection(
    served: Callable[[int, bytes], str], tmp_path: Path
) -> None:
    for data in (lines(), gzip.compress(lines()), parquet(), json.dumps(ROWS).encode()):
        url = served(200, data)
        assert [row.value for row in over_https(served(302, url.encode()), tmp_path)] == ROWS
        assert over_https(url, tmp_path)[0].place.startswith(url)
        assert over_https(f"{url}?signature=secret", tmp_path)[0].place.startswith(f"{url}, ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("status", "error"), [(404, NotFound), (403, NotFound), (429, Transient), (503, Transient)], ids=str
)
def test_an_https_server_that_refuses_is_told_from_one_that_is_busy(
    served: Callable[[int, bytes], str], tmp_path: Path, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=f"answers HTTP {status}"):
        over_https(served(status, b"no"), tmp_path)


def test_an_https_server_that_is_away_may_come_back(served: Callable[[int, bytes], str], tmp_path: Path) -> None:
    served(200, b"")
    with pytest.raises(Transient, match="cannot be reached now"):
        over_https("https://127.0.0.1:9/data.jsonl", tmp_path)


@pytest.mark.s3
def test_a_folder_of_a_bucket_is_read_like_any_other(s3_bucket: str, tmp_path: Path) -> None:
    bucket = Workspace.open(s3_bucket)
    for name, content in {"a.parquet": parquet(ROWS[:2]), "b.jsonl.gz": gzip.compress(lines(ROWS[2:]))}.items():
        bucket.write_bytes(f"data/{name}", content)
    bucket.write_bytes("data/_SUCCESS", b"")
    bucket.write_bytes("data-of-others/c.jsonl", lines())
    found = list(files.read(DataRef(uri=f"{s3_bucket}/data"), {}, tmp_path).rows())
    assert [row.value for row in found] == ROWS
    assert found[0].place == f"{s3_bucket}/data/a.parquet, row 1"
    assert list(tmp_path.iterdir()) == []

"""What a URI names."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubedistill_api.uris import Location, below, of_path, overlaps, parse, rebased, split

PLACES = {
    "s3://bucket": Location("s3", "bucket", ""),
    "s3://bucket/": Location("s3", "bucket", ""),
    "s3://bucket/a/b.jsonl": Location("s3", "bucket", "a/b.jsonl"),
    "s3://bucket/run#7/a?b=c.jsonl": Location("s3", "bucket", "run#7/a?b=c.jsonl"),
    "s3://bucket/a%20b;c": Location("s3", "bucket", "a%20b;c"),
    "pvc://claim/what?/x#y": Location("pvc", "claim", "what?/x#y"),
    "hf://acme/big": Location("hf", "acme", "big"),
    "file:///a/b#c?d": Location("file", "", "/a/b#c?d"),
    "hf-dataset://acme/x": Location("hf-dataset", "acme", "x"),
}


@pytest.mark.parametrize(("uri", "place"), PLACES.items(), ids=PLACES.keys())
def test_a_uri_ends_at_its_end_whatever_characters_it_has(uri: str, place: Location) -> None:
    assert parse(uri) == place


@pytest.mark.parametrize(
    ("uri", "words"),
    {
        "relative/path": "has no scheme",
        "://x": "has no scheme",
        "a b://x": "has no scheme",
        "s3:/bucket/x": "has no scheme",
        "file://relative": "is not absolute",
        "file://": "is not absolute",
        "s3://": "names no bucket",
        "pvc:///x": "names no bucket",
        "file:///a%FFb": "no UTF-8: write %25",
        "file:///a%00b": "no file's name can hold: write %2500",
    }.items(),
)
def test_what_is_no_uri_says_what_to_write(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(uri)


DECODED = {
    "file:///data/my%20prompts.jsonl": "/data/my prompts.jsonl",
    "file:///data/my prompts.jsonl": "/data/my prompts.jsonl",
    "file:///data/Gr%C3%BC%C3%9Fe": "/data/Grüße",
    "file:///data/50%25": "/data/50%",
    "file:///data/50%": "/data/50%",
    "file:///data/50%zz": "/data/50%zz",
    "file:///data/a%2520b": "/data/a%20b",
    "file:///data/a+b": "/data/a+b",
    "file:///data/a%23b%3Fc#d?e": "/data/a#b?c#d?e",
    "file:///data/%2e%2e/x": "/data/../x",
    "s3://bucket/my%20prompts.jsonl": "my%20prompts.jsonl",
    "pvc://claim/my%20prompts.jsonl": "my%20prompts.jsonl",
    "hf://acme/my%20model": "my%20model",
    "https://host/my%20prompts.jsonl?x=%20": "my%20prompts.jsonl?x=%20",
}


@pytest.mark.parametrize(("uri", "path"), DECODED.items(), ids=DECODED.keys())
def test_escapes_of_files_are_decoded_and_of_nothing_else(uri: str, path: str) -> None:
    assert parse(uri).path == path


FILE_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@given(st.lists(FILE_NAMES, min_size=2, max_size=4))
def test_every_way_to_write_a_path_is_read_as_that_path(names: list[str]) -> None:
    """Ours, which escapes nothing but `%`, and that of Python, which escapes all that is not plain."""
    folder, path = "/" + "/".join(names[:-1]), "/" + "/".join(names)
    for uri in (of_path(path), Path(path).as_uri(), below(of_path(folder), names[-1]), rebased(of_path(path), "/x")):
        assert parse(uri).path == path
        parent, name = split(uri)
        assert (parse(parent).path, name) == (folder, names[-1])


@pytest.mark.parametrize(
    ("uri", "path"),
    {
        "file://data/x.jsonl": "/my 50%25/data/x.jsonl",
        "file://my%20data/x.jsonl": "/my 50%25/my data/x.jsonl",
        "file://../x.jsonl": "/x.jsonl",
        "file:///a%20b": "/a b",
    }.items(),
)
def test_a_relative_uri_is_below_the_folder_of_its_file_whatever_that_is_called(uri: str, path: str) -> None:
    assert parse(rebased(uri, "/my 50%25")).path == path


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("file:///a%20b", "file:///a b/c", True),
        ("file:///a%2520b", "file:///a%20b", False),
        ("s3://bucket/a%20b", "s3://bucket/a b", False),
        ("s3://bucket", "s3://bucket/x", True),
        ("s3://bucket/x", "s3://bucket/xy", False),
        ("no URI", "s3://bucket", False),
    ],
)
def test_places_overlap_however_they_are_written(one: str, other: str, same: bool) -> None:
    assert overlaps(one, other) is overlaps(other, one) is same

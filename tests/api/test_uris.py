"""What a URI names."""

from __future__ import annotations

import pytest

from kubedistill_api.uris import Location, parse

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
    }.items(),
)
def test_what_is_no_uri_says_what_to_write(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(uri)

"""URIs of models, data, workspaces and outputs: one small parser, and which schemes may stand where."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

MODEL_SCHEMES = ("hf", "s3", "pvc", "file")
DATA_SCHEMES = ("s3", "pvc", "file", "https")
STORE_SCHEMES = ("s3", "pvc", "file")
LATER_SCHEMES = ("gs", "abfs", "hf-dataset")
"""Known, but not built yet: refused with a sentence."""


@dataclass(frozen=True)
class Location:
    """A parsed URI. For `pvc://claim/path` the authority is the claim; for `s3://bucket/key` the bucket."""

    scheme: str
    authority: str
    path: str
    """Without a leading slash, except for `file`, where it is absolute."""


def parse(uri: str) -> Location:
    """Split a URI at its scheme and its first slash.

    Keys of a bucket and names of files may hold any character: `#` and `?` begin nothing, and nothing is decoded.

    Raises:
        ValueError: there is no scheme, or the scheme's authority is missing; the text says what to write.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(f"{uri!r} has no scheme: write for example s3://bucket/path or pvc://claim/path")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(
                f"{uri!r} is not absolute: write file:///absolute/path (relative paths are for the local runner)"
            )
        return Location("file", "", rest)
    authority, _, path = rest.partition("/")
    if not authority:
        raise ValueError(f"{uri!r} names no bucket, claim or owner after '{scheme}://'")
    return Location(scheme, authority, path.lstrip("/"))


def rebased(uri: str, folder: str) -> str:
    """A relative `file://data/x.jsonl` made absolute against a folder; every other URI as it is.

    The local runner reads `file://` paths relative to the job's file, so that examples work in any checkout.
    """
    rest = uri.removeprefix("file://")
    if rest == uri or rest.startswith("/"):
        return uri
    return "file://" + posixpath.normpath(posixpath.join(folder, rest))


def scheme_is(uri: str, schemes: tuple[str, ...]) -> bool:
    """Whether a URI begins with one of the schemes."""
    return uri.startswith(tuple(f"{scheme}://" for scheme in schemes))


def cel_scheme_is(expression: str, schemes: tuple[str, ...]) -> str:
    """The same question in CEL."""
    return f"{expression}.matches('^({'|'.join(schemes)})://')"


def overlaps(one: str, other: str) -> bool:
    """Whether two URIs name the same place or one lies inside the other."""
    a, b = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return a.startswith(b) or b.startswith(a)

"""URIs of models, data, workspaces and outputs: one small parser, and which schemes may stand where."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import unquote

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
    """Without a leading slash, except for `file`, where it is absolute and decoded."""


def parse(uri: str) -> Location:
    """Split a URI at its scheme and its first slash.

    Keys of a bucket and names of files may hold any character: `#` and `?` begin nothing. Of `file` alone %-escapes are
    decoded, as every maker of such URIs writes them; a `%` in a key or in a claim's path is a `%`.

    Raises:
        ValueError: there is no scheme, the scheme's authority is missing, or an escape is of no file's name; the text
            says what to write.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or not re.fullmatch("[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise ValueError(f"{uri!r} has no scheme: write for example s3://bucket/path or pvc://claim/path")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(
                f"{uri!r} is not absolute: write file:///absolute/path (relative paths are for the local runner)"
            )
        return Location("file", "", _decoded(rest))
    authority, _, path = rest.partition("/")
    if not authority:
        raise ValueError(f"{uri!r} names no bucket, claim or owner after '{scheme}://'")
    return Location(scheme, authority, path.lstrip("/"))


def of_path(path: str) -> str:
    """The `file` URI of an absolute path. Only `%` is escaped: all else stands for itself, and is easier read so."""
    return f"file://{_escaped(path)}"


def below(uri: str, path: str) -> str:
    """The URI of a relative path below the folder that a URI names."""
    return f"{uri}/{_escaped(path) if _is_file(uri) else path}" if path else uri


def split(uri: str) -> tuple[str, str]:
    """The URI of the folder that holds what a URI names, and its path there.

    Raises ValueError as `parse`.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    return folder, _decoded(name) if _is_file(uri) else name


def rebased(uri: str, folder: str) -> str:
    """A relative `file://data/x.jsonl` made absolute against a folder (a path); every other URI as it is.

    The local runner reads `file://` paths relative to the job's file, so that examples work in any checkout.
    """
    rest = uri.removeprefix("file://")
    if rest == uri or rest.startswith("/"):
        return uri
    return "file://" + posixpath.normpath(posixpath.join(_escaped(folder), rest))


def scheme_is(uri: str, schemes: tuple[str, ...]) -> bool:
    """Whether a URI begins with one of the schemes."""
    return uri.startswith(tuple(f"{scheme}://" for scheme in schemes))


def cel_scheme_is(expression: str, schemes: tuple[str, ...]) -> str:
    """The same question in CEL."""
    return f"{expression}.matches('^({'|'.join(schemes)})://')"


def overlaps(one: str, other: str) -> bool:
    """Whether two URIs name the same place or one lies inside the other."""
    a, b = _place(one), _place(other)
    return a.startswith(b) or b.startswith(a)


def _place(uri: str) -> str:
    """The same for all URIs of one place; one that cannot be read is a place of its own."""
    try:
        place = parse(uri)
    except ValueError:
        return uri.rstrip("/") + "/"
    return f"{place.scheme}://{place.authority}/{place.path}".rstrip("/") + "/"


def _is_file(uri: str) -> bool:
    return scheme_is(uri, ("file",))


def _escaped(path: str) -> str:
    return path.replace("%", "%25")


def _decoded(path: str) -> str:
    """A `%` that begins no escape stands for itself."""
    try:
        decoded = unquote(path, errors="strict")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} has %-escapes that are no UTF-8: write %25 for a '%' of the name") from error
    if "\0" in decoded:
        raise ValueError(f"{path!r} has a %00, which no file's name can hold: write %2500 for the letters '%00'")
    return decoded

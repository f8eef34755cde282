"""A server that speaks the OpenAI API: where it is, what it says of errors, and whether it answers at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import httpx

from kubedistill_api.environment import TEACHER_API_KEY, teacher_api_key
from kubedistill_trainer.errors import BadConfiguration, NotFound, Transient

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
"""Statuses that may pass: the same request is sent again."""


@dataclass(frozen=True)
class Server:
    """Where the teacher answers, and what it bears."""

    url: str
    """The base URL, ending in `/v1`."""
    model: str
    """The model's name there."""
    api_key: str = field(default="", repr=False)
    token_ids: bool = False
    """It is a vLLM: prompts go as token ids, and answers come as token ids."""
    concurrency: int = 16
    """Requests under way at once, in this process."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of this process; None: no limit."""
    request_seconds: float = 600.0
    """One try may take so long."""
    patience_seconds: float = 1800.0
    """A request is given up after so long, and a server that answers nobody for so long too."""


def key_of(teacher: str) -> str:
    """An external teacher's key, from this process's environment; empty: none is sent.

    A Secret made of a file often ends in a line break, which belongs to no key.

    Raises:
        BadConfiguration: no header can carry it.
    """
    key = (os.environ.get(teacher_api_key(teacher)) or os.environ.get(TEACHER_API_KEY, "")).strip()
    if not (key.isascii() and key.isprintable()):
        raise BadConfiguration(
            "CredentialUnusable",
            f"The key of teacher {teacher} has a line break or a letter in it that no HTTP header can carry: write the "
            "Secret of external.credentialsSecret anew.",
        )
    return key


def a_token(model: str, *, chat: bool) -> tuple[str, dict[str, Any]]:
    """The smallest request there is: its path below the base URL, and its body."""
    if chat:
        return "chat/completions", {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return "completions", {"model": model, "prompt": "Hi", "max_tokens": 1}


def check_server(server: Server) -> None:
    """Ask an external teacher for one short answer.

    Raises:
        NotFound: the credential is refused, or the server has no such model; the sentence has the names it has.
        Transient: it does not answer now.
    """
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    path, body = a_token(server.model, chat=True)
    url = server.url.rstrip("/")
    try:
        with httpx.Client(headers=headers, timeout=60.0) as client:
            reply = client.post(f"{url}/{path}", json=body)
            names = "" if reply.is_success or reply.status_code in (401, 403) else _names(client, url)
    except httpx.TransportError as error:
        raise Transient("TeacherUnavailable", f"{url} does not answer: {error}.") from error
    words = words_of(reply, server.api_key)
    if reply.is_success:
        return
    if reply.status_code in (401, 403):
        raise credential_refused(url, reply.status_code, words)
    if names and server.model not in names.split(", "):
        raise NotFound(
            "TeacherModelNotFound", f"{url} has no model {server.model!r}: write external.model, one of {names}."
        )
    if reply.status_code in RETRIED:
        raise Transient("TeacherUnavailable", f"{url} does not answer now (HTTP {reply.status_code}: {words}).")
    raise BadConfiguration("TeacherRefuses", f"{url} refuses a simple request (HTTP {reply.status_code}: {words}).")


def credential_refused(url: str, status: int, words: str) -> NotFound:
    """What to say of a key that a server does not take."""
    return NotFound(
        "CredentialRefused", f"{url} refuses the credential (HTTP {status}: {words}): check external.credentialsSecret."
    )


def words_of(reply: httpx.Response, secret: str) -> str:
    """What a server says of an error, in one line, without the key that some of them repeat."""
    try:
        said = reply.json()
        error = said.get("error", said) if isinstance(said, dict) else said
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        text = reply.text
    text = text.replace(secret, "***") if secret else text
    return " ".join(text.split())[:300].rstrip(".") or reply.reason_phrase


def _names(client: httpx.Client, url: str) -> str:
    try:
        return ", ".join(str(model["id"]) for model in client.get(f"{url}/models").json()["data"][:20])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""

"""What the local runner asks its processes over HTTP: progress of a stage, a completion of a teacher."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from http.client import HTTPException

from pydantic import ValidationError

from kubedistill_api.progress import ProgressReport
from kubedistill_operator.manifests.teacher import SERVED_NAME

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""These servers are on this machine, whatever proxy the environment names."""


async def progress(port: int) -> ProgressReport | None:
    """What a stage says of itself; None while it does not listen."""
    try:
        return ProgressReport.model_validate_json(
            await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/progress", 1.0)
        )
    except (OSError, HTTPException, ValidationError):
        return None


async def completion(port: int) -> str:
    """Ask a teacher for one token. Empty: it answered; else why it did not."""
    body = json.dumps({"model": SERVED_NAME, "prompt": "Hi", "max_tokens": 1}).encode()
    url = f"http://127.0.0.1:{port}/v1/completions"
    try:
        await asyncio.to_thread(_get, url, 60.0, body)
    except (OSError, HTTPException) as error:
        return f"its server does not answer yet ({error})"
    return ""


def _get(url: str, timeout_seconds: float, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"} if body else {})
    with _DIRECT.open(request, timeout=timeout_seconds) as answer:
        found: bytes = answer.read()
        return found

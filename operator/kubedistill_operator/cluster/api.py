"""One request to the API server in plain values, tried again where that can help.

The official client carries authentication, TLS and the connection pool; its models of objects stay out of the way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.utils.retry import retry_after_seconds

from kubedistill_operator.cluster.errors import RefusedError, UnavailableError
from kubedistill_operator.cluster.kinds import Raw
from kubedistill_operator.core.ports import ConflictError

FIELD_MANAGER = "kubedistill"
TIMEOUT_SECONDS = 15.0
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0)
"""Between tries; the server's Retry-After may make one longer."""
LONGEST_PAUSE_SECONDS = 10.0

JSON = "application/json"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Query = Sequence[tuple[str, str]]
log = logging.getLogger(__name__)


class Api:
    """Requests in plain values."""

    def __init__(self, client: ApiClient, fence: Callable[[], None] = lambda: None) -> None:
        """`fence` is called before every write and raises when another operator may lead by now."""
        self._client = client
        self._fence = fence

    async def get(self, path: str, query: Query = (), accept: str = JSON) -> Any:
        """Read one object, a list, or (where the answer is no JSON) a text."""
        return await self._tried("GET", path, query, accept=accept)

    async def find(self, path: str) -> Raw | None:
        """One object, or None where the API server itself says that it is not there."""
        try:
            raw: Raw = await self.get(path)
        except RefusedError as error:
            if not error.says_not_found:
                raise
            return None
        return raw

    async def post(self, path: str, body: Any) -> Any:
        """Create. It has read nothing that could have changed: a conflict is the server's own, as of a quota."""
        return await self._written("POST", path, _MANAGED, body)

    async def patch(self, path: str, body: Any, content_type: str, query: Query = ()) -> Any:
        """Change, in one of the ways of the content types above."""
        return await self._written("PATCH", path, (*_MANAGED, *query), body, content_type)

    async def delete(self, path: str, body: Any) -> Any:
        """Delete, with the preconditions of the body."""
        return await self._written("DELETE", path, (), body)

    async def _written(self, method: str, path: str, query: Query, body: Any, content_type: str = JSON) -> Any:
        return await self._tried(method, path, query, body, content_type, fence=self._fence)

    async def _tried(
        self,
        method: str,
        path: str,
        query: Query,
        body: Any = None,
        content_type: str = JSON,
        *,
        accept: str = JSON,
        fence: Callable[[], None] = lambda: None,
    ) -> Any:
        """Raises ConflictError, RefusedError, or UnavailableError when every try failed."""
        problem = ""
        for pause in (*PAUSES_SECONDS, None):
            fence()
            try:
                answer = await self._once(method, path, query, body, content_type, accept)
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                problem = f"{type(error).__name__}: {error}"
                wait = pause
            else:
                if answer.status < 300:
                    return answer.value
                if not answer.worth_another_try and not (method == "POST" and answer.is_conflict):
                    raise answer.error()
                problem = f"{answer.status} {answer.text[:200]}"
                wait = None if pause is None else max(pause, min(answer.retry_after, LONGEST_PAUSE_SECONDS))
            if wait is not None:
                log.debug("%s %s: %s; again in %.1f s", method, path, problem, wait)
                await asyncio.sleep(wait)
        raise UnavailableError(f"{method} {path}: {problem}")

    async def _once(self, method: str, path: str, query: Query, body: Any, content_type: str, accept: str) -> _Answer:
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self._client.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
        data = await response.read()
        return _Answer(response, data)


class _Answer:
    def __init__(self, response: Any, data: bytes) -> None:
        self.status: int = response.status
        self.headers = response.headers
        self.text = data.decode("utf-8", "replace")

    @property
    def value(self) -> Any:
        return json.loads(self.text) if JSON in self.headers.get("Content-Type", "") else self.text

    @property
    def worth_another_try(self) -> bool:
        return self.status == 429 or self.status >= 500

    @property
    def retry_after(self) -> float:
        return retry_after_seconds(self) or 0.0

    @property
    def is_conflict(self) -> bool:
        """AlreadyExists is a 409 too, but no change since a reading."""
        return self.status == 409 and self._details()[0] == "Conflict"

    def error(self) -> Exception:
        reason, message = self._details()
        if self.is_conflict:
            return ConflictError(message)
        return RefusedError(self.status, reason or "Unknown", message)

    def _details(self) -> tuple[str, str]:
        """The server's reason and message."""
        try:
            details = json.loads(self.text)
            return details.get("reason", ""), details.get("message", "")
        except (ValueError, AttributeError):
            return "", self.text[:500]


_MANAGED = (("fieldManager", FIELD_MANAGER),)

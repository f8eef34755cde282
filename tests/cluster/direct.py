"""An API server asked directly, by asyncio and as administrator: objects as plain values."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import Configuration

Raw = dict[str, Any]


class DirectError(Exception):
    """It answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status


@dataclass(frozen=True)
class Direct:
    """One API server."""

    server: str
    session: aiohttp.ClientSession

    async def ask(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Raw:
        """One request; the answer as plain values.

        Raises:
            DirectError: the answer is no success.
        """
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self.session.request(method, self.server + path, data=data, headers=headers) as answer:
            text = await answer.text()
            if answer.status >= 300:
                raise DirectError(answer.status, text)
            found: Raw = json.loads(text)
            return found

    async def find(self, path: str) -> Raw | None:
        """One object, or None where there is none."""
        try:
            return await self.ask("GET", path)
        except DirectError as error:
            if error.status != 404:
                raise
            return None

    async def merge(self, path: str, body: Raw) -> Raw:
        """Change some fields."""
        return await self.ask("PATCH", path, body, "application/merge-patch+json")

    async def watch(self, path: str) -> AsyncIterator[Raw]:
        """Every change of a collection, the objects that are there first, for as long as it is asked for.

        Raises:
            DirectError: the watch ended by an error, and changes may be lost.
        """
        version = ""
        while True:
            since = f"&resourceVersion={version}" if version else ""
            url = f"{self.server}{path}?watch=true&timeoutSeconds=600{since}"
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:
                async for line in lines(answer):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise DirectError(event["object"]["code"], str(event["object"]))
                    version = event["object"]["metadata"]["resourceVersion"]
                    yield event
            await asyncio.sleep(0.1)


async def lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines of a stream, however long, each with its end."""
    rest = b""
    async for part in answer.content.iter_any():
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line + b"\n"


@asynccontextmanager
async def direct(kubeconfig: Path) -> AsyncIterator[Direct]:
    """The API server of this kubeconfig."""
    configuration = Configuration()
    await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Direct(configuration.host, session)

"""kopf watches for us. Here is what it cannot bear from an API server, and how its tasks end.

To kopf an answer of 5xx that outlives its patience, and a 410 that comes as an answer and not as an event, are fatal.
They pass, so they never reach it: the one becomes a lost connection, after which it begins again, the other a watch
from the present, which names all that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp
import kopf
from kubernetes.aio.client import Configuration

EXIT_SECONDS = 5.0
"""So long kopf's tasks may take to end."""


async def watch(
    registry: kopf.OperatorRegistry,
    namespaces: Iterable[str],
    identity: str,
    *,
    stop: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Watch until `stop` is set or a signal comes; an error of kopf's is raised at once.

    Not by `kopf.operator`: when a watcher fails, it waits for the others, which never end, and the process would renew
    its lease and do nothing.
    """
    chosen = tuple(namespaces)
    tasks = await kopf.spawn_tasks(
        registry=registry,
        clusterwide=not chosen,
        namespaces=chosen,
        standalone=True,
        # Its own way of naming itself asks for the user's name, and ours has none.
        identity=identity,
        stop_flag=stop,
        ready_flag=ready,
    )
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=EXIT_SECONDS)


async def session(configuration: Configuration) -> kopf.AiohttpSession:
    """The client's credentials in kopf's form; a service account's token as it is now. kopf closes it."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    info = kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=header.split(" ", 1)[-1] if header else None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
    connector = aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context())
    return kopf.AiohttpSession(
        server=info.server,
        aiohttp_session=aiohttp.ClientSession(
            connector=connector, headers=info.as_http_headers(), middlewares=(bear_what_passes,)
        ),
    )


async def bear_what_passes(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Turn answers that kopf takes for fatal, and that pass, into what it goes on after.

    Raises:
        aiohttp.ClientConnectionError: the API server is not well; kopf asks again, and begins again in the end.
        aiohttp.ClientPayloadError: the pages of a list, or even a watch from the present, have expired; kopf asks anew.
    """
    answer = await send(request)
    if answer.status == 410 and "resourceVersion" in request.url.query:
        answer.release()
        request.url = request.url.without_query_params("resourceVersion")
        answer = await send(request)
    if answer.status == 410:
        answer.release()
        raise aiohttp.ClientPayloadError("410: what was asked for has expired")
    if answer.status >= 500:
        answer.release()
        raise aiohttp.ClientConnectionError(f"{answer.status} {answer.reason}")
    return answer

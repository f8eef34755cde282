"""`/healthz`, `/readyz` and `/metrics`, served before anything else starts and until everything else has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Check = Callable[[], str]
"""Empty: all is well; otherwise what is wrong, in a sentence."""


class HealthServer:
    """A small HTTP server on all addresses."""

    def __init__(self, port: int, alive: Check, ready: Check, metrics: CollectorRegistry) -> None:
        """`port` 0 takes any free one; `address` tells which."""
        self._port = port
        self._alive = alive
        self._ready = ready
        self._metrics = metrics
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        application = web.Application()
        application.add_routes(
            [
                web.get("/healthz", self._answer(self._alive)),
                web.get("/readyz", self._answer(self._ready)),
                web.get("/metrics", self._scrape),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, None, self._port, shutdown_timeout=1).start()

    @property
    def port(self) -> int:
        """Where it listens, by IPv4 where there is one."""
        if self._runner is None:
            raise RuntimeError("the server has not started")
        # Two addresses, IPv4 and IPv6: where any port was asked for, each has one of its own.
        port: int = min(self._runner.addresses, key=len)[1]
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    @staticmethod
    def _answer(check: Check) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(_: web.Request) -> web.StreamResponse:
            problem = check()
            return web.Response(text=problem or "ok", status=503 if problem else 200)

        return answer

    async def _scrape(self, _: web.Request) -> web.Response:
        # The type holds a charset, which aiohttp wants apart.
        return web.Response(body=generate_latest(self._metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})

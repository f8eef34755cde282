"""What an API server may answer to a list or a watch, and what kopf is told: a real server, a real session."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer

from kubedistill_operator.handlers.watches import bear_what_passes


@pytest.fixture
async def server() -> AsyncIterator[BaseTestServer]:
    """It answers with the status in the path, and a watch from the present with the second one."""

    async def answer(request: web.Request) -> web.Response:
        from_present = "watch" in request.query and "resourceVersion" not in request.query
        status = request.match_info["present" if from_present else "status"]
        return web.Response(status=int(status), text=request.path_qs)

    app = web.Application()
    app.router.add_get("/{status}/{present}", answer)
    async with TestServer(app) as listening:
        yield listening


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """As kopf has it."""
    async with aiohttp.ClientSession(middlewares=(bear_what_passes,)) as found:
        yield found


async def test_a_watch_from_a_version_that_is_gone_begins_with_all_that_is_there(
    server: BaseTestServer, session: aiohttp.ClientSession
) -> None:
    url = server.make_url("/410/200?watch=true&labelSelector=a&resourceVersion=7")
    async with session.get(url) as answer:
        assert answer.status == 200
        assert await answer.text() == "/410/200?watch=true&labelSelector=a"


@pytest.mark.parametrize(
    ("present", "error"), [(410, aiohttp.ClientPayloadError), (503, aiohttp.ClientConnectionError)]
)
async def test_a_second_answer_is_judged_like_the_first(
    server: BaseTestServer, session: aiohttp.ClientSession, present: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=str(present)):
        await session.get(server.make_url(f"/410/{present}?watch=true&resourceVersion=7"))


async def test_a_list_whose_pages_have_expired_is_begun_again(
    server: BaseTestServer, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        await session.get(server.make_url("/410/200?limit=500&continue=x"))


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_an_api_server_that_is_not_well_is_a_lost_connection(
    server: BaseTestServer, session: aiohttp.ClientSession, status: int
) -> None:
    with pytest.raises(aiohttp.ClientConnectionError, match=str(status)):
        await session.get(server.make_url(f"/{status}/200?watch=true&resourceVersion=7"))


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429])
async def test_what_kopf_understands_is_left_to_it(
    server: BaseTestServer, session: aiohttp.ClientSession, status: int
) -> None:
    async with session.get(server.make_url(f"/{status}/200")) as answer:
        assert answer.status == status

"""Asking a teacher: the first question is in flight for a while, and that is no answer."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kubedistill_operator.cluster.probes import NOT_YET, Answer, TeacherProbe

ANSWERS = {
    "completes": (web.json_response({"choices": [{"text": "o"}]}), Answer(answered=True)),
    "fails": (web.Response(status=503, text="loading"), Answer(answered=False, message="it answered 503: loading")),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_a_teacher_is_asked_once_its_answer_or_its_failure_is_known(case: str) -> None:
    response, expected = ANSWERS[case]

    async def complete(request: web.Request) -> web.Response:
        return response

    told = asyncio.Event()
    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    async with TestServer(app) as server, aiohttp.ClientSession() as http:
        probe = TeacherProbe(http, lambda: 0.0, lambda uid: told.set())
        url = str(server.make_url("/v1"))
        assert probe.answer("uid", url) == NOT_YET
        assert not NOT_YET.asked
        async with asyncio.timeout(10):
            await told.wait()
        assert probe.answer("uid", url) == expected
        assert expected.asked
        await probe.close()

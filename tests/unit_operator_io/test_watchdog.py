"""What did the watches miss, and when is one dead? By resourceVersion, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from kubedistill_api.base import KIND
from kubedistill_operator.cluster.api import Api
from kubedistill_operator.cluster.kinds import Raw
from kubedistill_operator.handlers.passes import Key
from kubedistill_operator.handlers.triggers import JOBS_INDEX, IndexCaches
from kubedistill_operator.handlers.watchdog import Lag, Watchdog


def test_copies_that_are_as_new_as_the_listing_are_not_behind() -> None:
    lag = Lag()
    assert lag.update({"a": 5}, {"a": 5}, now=0) == set()
    assert lag.update({"a": 5}, {"a": 7}, now=60) == set()
    assert lag.seconds(60) == 0


def test_a_change_that_never_comes_is_missing_since_it_was_first_listed() -> None:
    lag = Lag()
    assert lag.update({"a": 5}, {"a": 4}, now=0) == {"a"}
    lag.update({"a": 5}, {"a": 4}, now=60)
    lag.update({"a": 9}, {"a": 4}, now=120)
    assert lag.seconds(200) == 200


def test_an_object_that_changes_all_the_time_is_not_mistaken_for_a_dead_watch() -> None:
    lag = Lag()
    for minute in range(10):
        lag.update({"a": 10 * minute + 5}, {"a": 10 * minute}, now=60.0 * minute)
    assert lag.seconds(60 * 9) == 0


def test_a_new_object_and_a_deleted_one_are_missed_alike() -> None:
    lag = Lag()
    assert lag.update({"new": 5}, {"old": 4}, now=0) == {"new", "old"}
    assert lag.seconds(10) == 10
    lag.update({"new": 5}, {"new": 5}, now=60)
    assert lag.seconds(60) == 0


def test_what_caught_up_is_forgotten() -> None:
    lag = Lag()
    lag.update({"a": 5}, {}, now=0)
    lag.update({"a": 5}, {"a": 5}, now=60)
    lag.update({"a": 6}, {"a": 5}, now=120)
    assert lag.seconds(130) == 10


class ApiServer:
    """Jobs by name; a listing of metadata, as the API server gives it."""

    def __init__(self) -> None:
        self.jobs: dict[str, Raw] = {}

    async def list(self, request: web.Request) -> web.Response:
        items = [{"metadata": raw["metadata"]} for raw in self.jobs.values()]
        return web.json_response({"metadata": {}, "items": items or None})

    async def get(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["name"]])


def a_job(name: str, version: int) -> Raw:
    labels = {"kubedistill.io/job-uid": "dj", "kubedistill.io/job": "small"}
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "labels": labels}
    return {"metadata": {**metadata, "resourceVersion": str(version)}, "status": {"seen": version}}


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, ApiServer]]:
    """The operator's client, and the server that it asks."""
    server = ApiServer()
    app = web.Application()
    app.router.add_get("/apis/batch/v1/namespaces/team/jobs", server.list)
    app.router.add_get("/apis/kubedistill.io/v1alpha1/namespaces/team/distillationjobs", server.list)
    app.router.add_get("/apis/batch/v1/namespaces/team/jobs/{name}", server.get)
    async with TestServer(app) as listening:
        client = ApiClient(Configuration(host=str(listening.make_url("")).rstrip("/")))
        try:
            yield Api(client), server
        finally:
            await client.close()


async def test_what_the_watches_missed_is_read_corrected_and_queued(api: tuple[Api, ApiServer]) -> None:
    client, server = api
    index = {"dj": [a_job("same", 3), a_job("old", 4), a_job("gone", 5)]}
    server.jobs = {"same": a_job("same", 3), "old": a_job("old", 9), "new": a_job("new", 8)}
    caches = IndexCaches()
    caches.bind({"Job": index})
    caches.full = True
    queued: list[Key] = []
    watchdog = Watchdog(client, caches, ["team"], queued.append, 60, clock=lambda: 0)
    await watchdog.audit("Job")
    found = {raw["metadata"]["name"]: raw["status"]["seen"] for raw in caches.children("Job", "dj")}
    assert found == {"same": 3, "old": 9, "new": 8}
    assert queued == [Key("team", "small")] * 3
    queued.clear()
    await watchdog.audit("Job")
    assert queued == [], "what was corrected is not news"


def test_a_watch_that_tells_once_more_what_was_before_makes_no_copy_older() -> None:
    caches = IndexCaches()
    caches.bind({"Job": {"dj": [a_job("mine", 7), a_job("other", 9)]}})
    assert caches.newest("Job", "dj", a_job("mine", 5))["status"]["seen"] == 7
    assert caches.newest("Job", "dj", a_job("mine", 8))["status"]["seen"] == 8
    assert caches.newest("Job", "dj", a_job("new", 1))["status"]["seen"] == 1


async def test_a_wrong_word_of_an_end_does_not_last(api: tuple[Api, ApiServer]) -> None:
    client, server = api
    server.jobs = {"alive": a_job("alive", 3)}
    caches = IndexCaches()
    caches.bind({"Job": {"dj": [a_job("alive", 3)]}})
    caches.full = True
    caches.correct("Job", "uid-alive", None)
    assert list(caches.children("Job", "dj")) == []
    queued: list[Key] = []
    watchdog = Watchdog(client, caches, ["team"], queued.append, 60, clock=lambda: 0)
    await watchdog.audit("Job")
    assert [raw["metadata"]["name"] for raw in caches.children("Job", "dj")] == ["alive"]
    assert queued == [Key("team", "small")]


async def test_what_is_remembered_of_a_job_whose_end_was_missed_is_dropped(api: tuple[Api, ApiServer]) -> None:
    client, server = api
    server.jobs = {"mine": a_job("mine", 3)}
    caches = IndexCaches()
    caches.bind({JOBS_INDEX: {("team", "mine"): [a_job("mine", 3)], ("team", "gone"): [a_job("gone", 4)]}})
    caches.full = True
    forgotten: list[str] = []
    watchdog = Watchdog(client, caches, ["team"], lambda key: None, 60, forgotten.append)
    await watchdog.audit(KIND)
    assert forgotten == ["uid-gone"]
    assert caches.job("team", "gone") is None


async def test_nothing_is_corrected_before_the_watches_have_brought_all_there_is(api: tuple[Api, ApiServer]) -> None:
    client, server = api
    server.jobs = {"first": a_job("first", 3)}
    queued: list[Key] = []
    watchdog = Watchdog(client, IndexCaches(), ["team"], queued.append, 60, clock=lambda: 0)
    await watchdog.audit("Job")
    assert queued == [], "a pass would take a job without its children for a new one"


async def test_what_the_watch_itself_never_brings_still_tells_of_a_dead_watch(api: tuple[Api, ApiServer]) -> None:
    client, server = api
    now = [0.0]
    server.jobs = {"new": a_job("new", 8)}
    watchdog = Watchdog(client, IndexCaches(), ["team"], lambda key: None, 60, clock=lambda: now[0])
    await watchdog.audit("Job")
    now[0] = 60
    await watchdog.audit("Job")
    assert watchdog.lag_seconds == 60

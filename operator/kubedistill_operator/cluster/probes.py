"""Questions to the pods themselves: how far is a stage, does a teacher answer. Rate-limited, and never in the way.

A pod that does not answer is no error: its last word stands, and the plan decides what silence means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from kubedistill_api.environment import PORT_DEFAULT
from kubedistill_api.progress import ProgressReport
from kubedistill_operator.cluster.kinds import Raw
from kubedistill_operator.manifests.teacher import SERVED_NAME

PULL_TIMEOUT_SECONDS = 2.0
PULLS_AT_ONCE = 16
ANSWER_TIMEOUT_SECONDS = 30.0
ANSWER_SECONDS = 15.0
"""A teacher is asked at most this often."""
REPORT_LIMIT_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class ProgressProbe:
    """Pulls `/progress` of running stage pods, at most every `every_seconds` for each job."""

    def __init__(self, http: aiohttp.ClientSession, clock: Callable[[], float], every_seconds: float) -> None:
        """`clock` is monotonic, in seconds."""
        self._http = http
        self._clock = clock
        self._every_seconds = every_seconds
        self._pulled_at: dict[str, float] = {}
        self._reports: dict[str, ProgressReport] = {}

    async def pull(self, job_uid: str, pods: Iterable[Raw]) -> Mapping[str, ProgressReport]:
        """The last report of each of these running pods, by the pod's uid."""
        addresses = {pod["metadata"]["uid"]: pod["status"]["podIP"] for pod in pods}
        now = self._clock()
        if addresses and now - self._pulled_at.get(job_uid, float("-inf")) >= self._every_seconds:
            self._pulled_at[job_uid] = now
            gate = asyncio.Semaphore(PULLS_AT_ONCE)
            await asyncio.gather(*(self._ask(gate, uid, address) for uid, address in addresses.items()))
        return {uid: self._reports[uid] for uid in addresses if uid in self._reports}

    def forget(self, job_uid: str, pod_uids: Iterable[str]) -> None:
        """Drop what is known of a job that is gone."""
        self._pulled_at.pop(job_uid, None)
        for uid in pod_uids:
            self._reports.pop(uid, None)

    async def _ask(self, gate: asyncio.Semaphore, uid: str, address: str) -> None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with (
                gate,
                asyncio.timeout(PULL_TIMEOUT_SECONDS),
                self._http.get(f"http://{host}:{PORT_DEFAULT}/progress") as answer,
            ):
                answer.raise_for_status()
                text = await answer.content.read(REPORT_LIMIT_BYTES)
            self._reports[uid] = ProgressReport.model_validate_json(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValidationError) as error:
            log.debug("no progress from %s: %s", address, error)


@dataclass(frozen=True)
class Answer:
    """What came of asking a teacher for one token."""

    answered: bool
    message: str = ""
    asked: bool = True


NOT_YET = Answer(answered=False, message="it has not been asked yet", asked=False)


class TeacherProbe:
    """Asks a teacher for a real completion of one token, beside the pass: a busy model may take long to answer."""

    def __init__(self, http: aiohttp.ClientSession, clock: Callable[[], float], changed: Callable[[str], None]) -> None:
        """`changed` is called with the Deployment's uid when an answer differs from the one before."""
        self._http = http
        self._clock = clock
        self._changed = changed
        self._answers: dict[str, Answer] = {}
        self._asked_at: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def answer(self, uid: str, url: str) -> Answer:
        """What it said when it was last asked; asks again where that was long ago."""
        now = self._clock()
        if uid not in self._running and now - self._asked_at.get(uid, float("-inf")) >= ANSWER_SECONDS:
            self._asked_at[uid] = now
            self._running[uid] = asyncio.create_task(self._ask(uid, url), name=f"ask {url}")
        return self._answers.get(uid, NOT_YET)

    def forget(self, uid: str) -> None:
        """Drop what is known of a teacher that is gone or not ready: it is asked anew."""
        self._answers.pop(uid, None)
        self._asked_at.pop(uid, None)

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, uid: str, url: str) -> None:
        try:
            answer = await self._completion(url)
        finally:
            self._running.pop(uid, None)
        before, self._answers[uid] = self._answers.get(uid, NOT_YET), answer
        if answer != before:
            self._changed(uid)

    async def _completion(self, url: str) -> Answer:
        body = {"model": SERVED_NAME, "prompt": "Hi", "max_tokens": 1}
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_SECONDS),
                self._http.post(f"{url}/completions", json=body) as response,
            ):
                if response.status != 200:
                    text = (await response.content.read(500)).decode("utf-8", "replace")
                    return Answer(False, f"it answered {response.status}: {text}")
                choices = (await response.json()).get("choices")
                return Answer(bool(choices), "" if choices else "its completion has no choices")
        except TimeoutError:
            return Answer(False, f"it did not answer a completion within {ANSWER_TIMEOUT_SECONDS:.0f} s")
        except (aiohttp.ClientError, OSError, ValueError, AttributeError) as error:
            return Answer(False, f"it cannot be reached: {error or type(error).__name__}")

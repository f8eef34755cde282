"""The work of one worker and its books: requests go out, outcomes come in, whole shards are committed.

Every exchange ends in exactly one line: accepted, or rejected for one reason. A shard is committed when its last
exchange ends; the next ones are under way by then, so that a batch is never empty at a border.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from kubedistill_api.status import Ledger, RejectReason
from kubedistill_trainer.core.filters import Reject
from kubedistill_trainer.errors import BadData, StageError, Transient
from kubedistill_trainer.generation.assembly import Assembler
from kubedistill_trainer.generation.exchanges import Exchange, Rejection, Wanted
from kubedistill_trainer.generation.plan import ShardPlan
from kubedistill_trainer.store.shards import AnswerRow, RejectedRow, Shard, ShardMeta
from kubedistill_trainer.teachers.protocol import Answered, Outcome, Request

SMOKE = 16
"""Prompts that are tried before all others."""


@dataclass(frozen=True)
class Tally:
    """What became of exchanges, in numbers."""

    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.accepted + other.accepted, self.reasons + other.reasons, self.tokens + other.tokens)

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())

    @property
    def done(self) -> int:
        return self.accepted + self.rejected

    @staticmethod
    def of(meta: ShardMeta) -> Tally:
        """Of a committed shard."""
        return Tally(meta.accepted, Counter(meta.reasons), meta.tokens_generated)

    def ledger(self) -> Ledger:
        """As the status shows it."""
        reasons = [RejectReason(reason=str(reason), count=count) for reason, count in self.reasons.most_common(10)]
        return Ledger(accepted=self.accepted, rejected=self.rejected, top_reasons=reasons)


def check_yield(tally: Tally, total: int, min_yield: float, example: RejectedRow | None) -> None:
    """Fail when even if everything left were accepted, fewer than `min_yield` of `total` could train.

    Raises:
        Transient: most failures are of requests: the teacher may be well again later.
        BadData: the answers themselves are unusable. Both name the top reason and one row.
    """
    if falls_short(tally.rejected, total, min_yield):
        usable = total - tally.rejected
        asked = f"At most {usable} of {total} answers can be used, and generation.minYield asks for {min_yield:.0%}."
        raise _useless("YieldTooLow", asked, tally, example)


def falls_short(rejected: int, total: int, min_yield: float) -> bool:
    """Whether fewer than the share `min_yield` of `total` answers can be used."""
    return total - rejected < min_yield * total


def _useless(reason: str, words: str, tally: Tally, example: RejectedRow | None) -> StageError:
    top, count = tally.reasons.most_common(1)[0]
    message = (
        f"{words} Most often: {top} ({count}){_for_example(example)}. Look at the rejected rows in the "
        "workspace; change the prompts, generation.maxTokens or the filters."
    )
    kind: type[StageError] = Transient if top == Reject.REQUEST_FAILED else BadData
    return kind(reason, message, ledger=tally.ledger())


@dataclass
class _Open:
    """A shard that is under way."""

    plan: ShardPlan
    left: int
    """Exchanges that have not ended."""
    ended: list[Exchange] = field(default_factory=list)


class Books:
    """`teachers.protocol.Work` over shards. `commit` is called in a thread of its own, once for each whole shard."""

    def __init__(
        self,
        plans: Sequence[ShardPlan],
        samples: int,
        wanted: Wanted,
        make: Callable[[ShardPlan, Sequence[Exchange]], Shard],
        commit: Callable[[Shard], None],
        ended: Callable[[Tally], None],
        smoke: bool = False,
    ) -> None:
        """`ended` is called with the tally of this worker whenever an exchange ends; what it raises stops the work."""
        self.tally = Tally()
        self.example: RejectedRow | None = None
        """A rejected row of the most frequent reason."""
        self.rejected: list[RejectedRow] = []
        self._wanted, self._samples = wanted, samples
        self._make, self._commit, self._ended = make, commit, ended
        self._new = self._exchanges(plans)
        self._smoke = SMOKE if smoke else 0
        self._smoked = 0
        self._under_way: dict[tuple[str, int], tuple[Exchange, _Open]] = {}
        self._next_turns: deque[Exchange] = deque()
        self._thread = ThreadPoolExecutor(1, "commit")
        self._commits: list[Future[None]] = []

    def take(self, limit: int) -> list[Request]:
        """See `protocol.Work`. Chats that go on come before new ones."""
        self._raise_of_commits(wait=False)
        requests: list[Request] = []
        while len(requests) < limit and self._next_turns:
            requests.append(self._next_turns.popleft().request())
        while len(requests) < limit and self._may_start():
            item = next(self._new, None)
            if item is None:
                break
            exchange, _ = item
            self._under_way[exchange.key] = item
            requests.append(exchange.request())
        return requests

    def give(self, request: Request, outcome: Outcome) -> None:
        """See `protocol.Work`."""
        exchange, shard = self._under_way[request.row_id, request.sample]
        exchange.give(outcome)
        if isinstance(outcome, Answered):
            self.tally = self.tally + Tally(tokens=outcome.tokens)
        if not exchange.finished:
            self._next_turns.append(exchange)
            return
        del self._under_way[exchange.key]
        self._note(exchange, shard)
        shard.ended.append(exchange)
        shard.left -= 1
        if not shard.left:
            self._commits.append(self._thread.submit(self._finish, shard))
        self._ended(self.tally)
        self._smoked += 1
        if self._smoke and self._smoked == self._smoke:
            self._smoke = 0
            if self.tally.rejected > self.tally.accepted:
                words = f"{self.tally.rejected} of the first {self._smoked} answers cannot be used."
                raise _useless("SmokeTestFailed", words, self.tally, self.example)

    def close(self) -> None:
        """Wait for commits that are under way.

        Raises:
            StageError: one of them failed.
        """
        self._thread.shutdown(wait=True)
        self._raise_of_commits(wait=True)

    def _exchanges(self, plans: Sequence[ShardPlan]) -> Iterator[tuple[Exchange, _Open]]:
        for plan in plans:
            shard = _Open(plan, left=len(plan.rows) * self._samples)
            for row in plan.rows:
                for sample in range(self._samples):
                    yield Exchange(row, sample, self._wanted), shard

    def _may_start(self) -> bool:
        """The smoke step: nothing more is begun until the first few have ended."""
        return not self._smoke or self._smoked + len(self._under_way) < self._smoke

    def _note(self, exchange: Exchange, shard: _Open) -> None:
        if exchange.rejection is None:
            self.tally = self.tally + Tally(accepted=1)
            return
        self.tally = self.tally + Tally(reasons=Counter([str(exchange.rejection.reason)]))
        row = rejected_row(exchange, shard.plan)
        self.rejected.append(row)
        if self.example is None or self.tally.reasons.most_common(1)[0][0] == row.reason:
            self.example = row

    def _finish(self, shard: _Open) -> None:
        order = {row.row_id: place for place, row in enumerate(shard.plan.rows)}
        self._commit(self._make(shard.plan, sorted(shard.ended, key=lambda e: (order[e.row.row_id], e.sample))))

    def _raise_of_commits(self, *, wait: bool) -> None:
        for future in [future for future in self._commits if wait or future.done()]:
            self._commits.remove(future)
            future.result()


@dataclass(frozen=True)
class ShardMaker:
    """Turns ended exchanges into a shard: the last checks, tokens and targets."""

    meta: ShardMeta
    """What is the same for all shards of this teacher."""
    assembler: Assembler
    max_sequence_length: int
    deduplicate: bool

    def __call__(self, plan: ShardPlan, exchanges: Sequence[Exchange]) -> Shard:
        """A shard in the order of its exchanges."""
        rows: list[AnswerRow] = []
        rejected: list[RejectedRow] = []
        kept: set[tuple[str, str]] = set()
        for exchange in exchanges:
            row = self._row(plan, exchange) if exchange.rejection is None else exchange.rejection
            said = (exchange.row.prompt_hash, exchange.taught[-1].text.strip() if exchange.taught else "")
            if isinstance(row, AnswerRow) and self.deduplicate and said in kept:
                row = Rejection(Reject.DUPLICATE)
            if isinstance(row, AnswerRow):
                kept.add(said)
                rows.append(row)
            else:
                rejected.append(rejected_row(exchange, plan, row))
        meta = self.meta.model_copy(
            update={
                "split": plan.split,
                "index": plan.index,
                "accepted": len(rows),
                "reasons": dict(Counter(row.reason for row in rejected)),
                "tokens_generated": sum(answer.tokens for exchange in exchanges for answer in exchange.answers),
            }
        )
        return Shard(meta, rows, rejected)

    def _row(self, plan: ShardPlan, exchange: Exchange) -> AnswerRow | Rejection:
        row = self.assembler.assemble(exchange.history, exchange.prompts, exchange.taught, exchange.row.tool_list)
        if len(row.tokens.input_ids) > self.max_sequence_length:
            return Rejection(
                Reject.TOO_LONG, f"{len(row.tokens.input_ids)} tokens, {self.max_sequence_length} are trained"
            )
        return AnswerRow(
            row_id=exchange.row.row_id,
            sample=exchange.sample,
            split=plan.split,
            label=exchange.row.label,
            messages=exchange.messages(),
            text=exchange.taught[-1].text,
            finish_reason=_finish_reason(exchange),
            teacher=self.meta.teacher,
            input_ids=np.array(row.tokens.input_ids, dtype=np.int32),
            target_mask=np.array(row.tokens.target_mask, dtype=np.bool_),
            signal=row.signal,
            written=exchange.written,
        )


def rejected_row(exchange: Exchange, plan: ShardPlan, rejection: Rejection | None = None) -> RejectedRow:
    """A line for people: what was asked, what came, and why it may not train."""
    rejection = rejection or exchange.rejection
    assert rejection is not None
    return RejectedRow(
        row_id=exchange.row.row_id,
        sample=exchange.sample,
        split=plan.split,
        reason=str(rejection.reason),
        detail=rejection.detail,
        text=exchange.answers[-1].text if exchange.answers else "",
        finish_reason=_finish_reason(exchange),
        messages=exchange.messages(),
    )


def _finish_reason(exchange: Exchange) -> str:
    if not exchange.answers:
        return ""
    return "stop" if exchange.answers[-1].complete else "length"


def _for_example(row: RejectedRow | None) -> str:
    if row is None:
        return ""
    said = f": {' '.join(row.text.split())[:160]!r}" if row.text else ""
    detail = f" ({row.detail[:200]})" if row.detail else ""
    return f", for example row {row.row_id}{detail}{said}"

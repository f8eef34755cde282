"""The rows of a training on local disk, mapped into memory: any row at once, none held, all ranks share the pages.

A stored top-K signal is 200 bytes a token; a gigabyte of text would be 60 of signal. So the rows are written once,
one flat file for each column, and an epoch's shuffle reads them where they lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kubedistill_trainer.core.batching import Example
from kubedistill_trainer.core.signals import TeacherSignal, Text, TopK
from kubedistill_trainer.store.shards import AnswerRow

_COLUMNS: dict[str, npt.DTypeLike] = {
    "input_ids": np.int32,
    "target_mask": np.bool_,
    "topk_ids": np.int32,
    "topk_logprobs": np.float16,
    "tail_logprob": np.float32,
    "target_logprob": np.float32,
}
_INDEX = "index.npz"


class Examples:
    """The rows of one split, in the order of their ids, whatever the order of the shards they came from."""

    def __init__(self, folder: Path) -> None:
        """Open what `write` made."""
        with np.load(folder / _INDEX, allow_pickle=False) as index:
            self._ids: npt.NDArray[np.str_] = index["ids"]
            self._order: npt.NDArray[np.int64] = index["order"]
            self._token_starts: npt.NDArray[np.int64] = index["token_starts"]
            self._target_starts: npt.NDArray[np.int64] = index["target_starts"]
            self._k = int(index["k"])
        self._columns = {name: _mapped(folder / name, kind) for name, kind in _COLUMNS.items()}
        self.lengths: npt.NDArray[np.int64] = np.diff(self._token_starts)[self._order]
        """Tokens of each row."""
        self.targets: npt.NDArray[np.int64] = np.diff(self._target_starts)[self._order]
        """Targets of each row."""

    @staticmethod
    def write(folder: Path, rows: Iterable[AnswerRow], *, signals: bool) -> Examples:
        """Write rows and open them. `signals=False` leaves the teacher's logprobs out: nobody will ask for them.

        Raises ValueError if signals are asked for and a row has none, or another K than the rows before it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        ids: list[str] = []
        lengths, targets, candidates = [0], [0], 0
        with ExitStack() as stack:
            files = {name: stack.enter_context((folder / name).open("wb")) for name in _COLUMNS}
            for row in rows:
                if signals:
                    candidates = _check(row, candidates)
                for name, values in _flat(row, signals).items():
                    files[name].write(np.ascontiguousarray(values, dtype=_COLUMNS[name]).tobytes())
                ids.append(f"{row.row_id}/{row.sample}/{row.teacher}")
                lengths.append(len(row.input_ids))
                targets.append(row.targets)
        np.savez(
            folder / _INDEX,
            ids=np.array(ids, dtype=np.str_),
            order=np.argsort(np.array(ids, dtype=np.str_), kind="stable"),
            token_starts=np.cumsum(lengths),
            target_starts=np.cumsum(targets),
            k=candidates,
        )
        return Examples(folder)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, row: int) -> Example:
        place = int(self._order[row])
        tokens = slice(self._token_starts[place], self._token_starts[place + 1])
        return Example(
            str(self._ids[place]),
            _tensor(self._columns["input_ids"][tokens], np.int64),
            _tensor(self._columns["target_mask"][tokens], np.bool_),
            self._signal(slice(int(self._target_starts[place]), int(self._target_starts[place + 1]))),
        )

    def _signal(self, targets: slice) -> TeacherSignal:
        if not self._k:
            return Text()
        candidates = slice(targets.start * self._k, targets.stop * self._k)
        return TopK.from_storage(
            _tensor(self._columns["topk_ids"][candidates], np.int64).view(-1, self._k),
            _tensor(self._columns["topk_logprobs"][candidates], np.float32).view(-1, self._k),
            _tensor(self._columns["tail_logprob"][targets], np.float32),
            _tensor(self._columns["target_logprob"][targets], np.float32),
        )


def _check(row: AnswerRow, candidates: int) -> int:
    if row.signal is None:
        raise ValueError(f"row {row.row_id} has no logprobs of its teacher {row.teacher}")
    k = int(row.signal.topk_ids_NK.shape[1])
    if candidates not in (0, k):
        raise ValueError(f"row {row.row_id} has {k} candidates at each position, others have {candidates}")
    return k


def _flat(row: AnswerRow, signals: bool) -> dict[str, npt.NDArray[Any]]:
    columns: dict[str, npt.NDArray[Any]] = {"input_ids": row.input_ids, "target_mask": row.target_mask}
    if not signals or row.signal is None:
        return columns
    return columns | {
        "topk_ids": row.signal.topk_ids_NK.reshape(-1),
        "topk_logprobs": row.signal.topk_logprobs_NK.reshape(-1),
        "tail_logprob": row.signal.tail_logprob_N,
        "target_logprob": row.signal.target_logprob_N,
    }


def _mapped(path: Path, kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """A plain view: slices of a memmap are memmaps, which cost more to make than a short row to copy.

    An empty file cannot be mapped.
    """
    return np.asarray(np.memmap(path, dtype=kind, mode="r")) if path.stat().st_size else np.zeros(0, dtype=kind)


def _tensor(values: npt.NDArray[Any], kind: npt.DTypeLike) -> torch.Tensor:
    """A copy, at once of the type that the losses read."""
    return torch.from_numpy(values.astype(kind))

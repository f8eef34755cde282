"""Which rows make up an optimizer step. A pure function of (rows, seed, step), so a resumed run meets the same data.

The epochs' shuffles, one after the other, are one endless sequence; step s takes its next `global_batch` rows. No
step is short, none depends on world size or micro batch, and the data position is the step number itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DataOrder:
    """The order of `rows` rows under `seed`, in steps of `global_batch`."""

    rows: int
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.global_batch < 1:
            raise ValueError(f"nothing to order: {self.rows} rows in batches of {self.global_batch}")

    def steps(self, epochs: float) -> int:
        """Steps that show every row `epochs` times; the last one may reach a little into the next epoch."""
        return max(1, -(-round(self.rows * epochs) // self.global_batch))

    def rows_of_step(self, step: int) -> tuple[int, ...]:
        """The rows of optimizer step `step`, counted from 0."""
        first = step * self.global_batch
        return tuple(self._row(sample) for sample in range(first, first + self.global_batch))

    def epoch_of_step(self, step: int) -> float:
        """How many epochs are over when step `step` begins."""
        return step * self.global_batch / self.rows

    def _row(self, sample: int) -> int:
        epoch, place = divmod(sample, self.rows)
        return int(shuffled(self.rows, self.seed, epoch)[place])


@lru_cache(maxsize=4)
def shuffled(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation from a counter-based generator: any epoch's, without having drawn those before it.

    Sorting Philox's raw words, whose stream is fixed for ever, keeps the order across versions of numpy; its
    `permutation` is free to change.
    """
    words = np.random.Philox(key=[seed % 2**64, epoch]).random_raw(rows)
    return np.argsort(words, kind="stable")

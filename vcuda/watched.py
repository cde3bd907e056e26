"""A ledger as the governor watches it: often, and without a system call but one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcuda._abi import ffi, lib
from vcuda.errors import LedgerError
from vcuda.ledger import Ledger, balance_at, balance_of

_LENGTH_BITS = 40
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1


@dataclass(slots=True)
class Worker:
    """One process's part, on one card. It can write anything there."""

    slot: int
    active_ns: int
    """CLOCK_MONOTONIC when work of it was last let go."""
    pending_ns: int
    """Paid for work that may run, and not accounted yet."""
    launches: int


@dataclass(slots=True)
class Busy:
    """A process kept the card at work, or waited for its turn on it."""

    slot: int
    from_ns: int
    """CLOCK_MONOTONIC, as the next one."""
    to_ns: int


@dataclass(slots=True)
class View:
    """What a ledger shows of a card at an instant."""

    supply_ns: int
    demand_ns: int
    refill_ns: int
    rate_ppm: int
    active_ns: int
    starved_ns: int
    gpu_ns: int
    """Of all processes, those that are gone included."""
    reports: int
    """Intervals that were ever written."""
    words: tuple[int, ...]
    """The last of them, as they are written."""
    workers: tuple[Worker, ...]
    """Of the slots in use."""

    def balance_at(self, now_ns: int) -> int:
        """The balance as it will be found at `now_ns`."""
        balance_ns = balance_of(self.supply_ns, self.demand_ns)
        return balance_at(balance_ns, self.refill_ns, self.rate_ppm, now_ns)

    def fresh(self, before: "View | None") -> list[Busy]:
        """The intervals that were not there before, oldest report first or nearly so."""
        if before and before.words == self.words:
            return []
        known = set(zip(before.words[::2], before.words[1::2], strict=True)) if before else set[Any]()
        return [
            Busy(slot=(word >> _LENGTH_BITS) - 1, from_ns=from_ns, to_ns=from_ns + (word & _LENGTH_MASK))
            for from_ns, word in zip(self.words[::2], self.words[1::2], strict=True)
            if word and (from_ns, word) not in known
        ]


class Watched(Ledger):
    """A ledger mapped for reading.

    Raises:
        LedgerError: there is no ledger at `path`, or not one of this version.

    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._name = os.fspath(path)
        header: Any = self._map.header
        self._recent = [memoryview(ffi.buffer(card.recent)).cast("Q") for card in header.cards]
        self._uses: list[tuple[Any, list[Any]]] = []

    def close(self) -> None:
        """Unmap the file; the object is of no use afterwards."""
        self._recent, self._uses = [], []
        super().close()

    def view(self, card: int) -> View:
        """What is at work on the grant's `card`-th card.

        Raises:
            LedgerError: somebody has cut the file short; to read it would be the end of this process.

        """
        if os.stat(self._name).st_size < self._bytes:  # noqa: PTH116 (45 times a second)
            raise LedgerError(f"ledger {self._path}: has been cut short")
        header: Any = self._map.header
        of_card = header.cards[card]
        bucket = of_card.bucket
        gpu_ns = of_card.ended_gpu_ns
        workers: list[Worker] = []
        for index, (slot, uses) in enumerate(self._slots(min(header.slots_high, self._map.slot_count))):
            if slot.in_use:
                use = uses[card]
                gpu_ns += use.gpu_ns
                pending_ns = use.owed_ns - use.held_ns
                workers.append(Worker(index, use.active_ns, max(0, pending_ns), use.launches))
        return View(
            supply_ns=bucket.supply_ns,
            demand_ns=bucket.demand_ns,
            refill_ns=bucket.refill_ns,
            rate_ppm=bucket.rate_ppm,
            active_ns=of_card.active_ns,
            starved_ns=of_card.starved_ns,
            gpu_ns=gpu_ns,
            reports=of_card.recent_next,
            words=tuple(self._recent[card]),
            workers=tuple(workers),
        )

    def _slots(self, count: int) -> list[tuple[Any, list[Any]]]:
        """The slots, and each one's cards; looked up once."""
        while len(self._uses) < count:
            slot = lib.vcuda_ledger_slot(self._map, len(self._uses))
            self._uses.append((slot, list(slot.cards)))
        return self._uses[:count]

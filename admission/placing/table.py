"""All cards of a cluster as arrays, one row a node: what fits where, how gladly, and what is kept for whom.

Rows are written from what vcuda.kube.placing computes of a node; here nothing is known of pods. A row is an
index that a node keeps; which of two equal nodes is taken is decided by rank, the order of their names.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.eligibility import AMOUNT_NAMES, Amounts
from vcuda.kube.names import CORES_PER_CARD, POLICIES
from vcuda.kube.placing import LOAD_FULL, NOMINAL_EIGHTHS, CardRoom, Reason, preference

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_CARDS = 64
"""On one node."""
MAX_NODES = 2**20
FAR = np.int64(2**62)
"""More than any distance."""
LASTING = frozenset({Reason.CARD_UNHEALTHY, Reason.CARD_TOO_SMALL})
"""What is wrong with a card whatever is promised of it."""

_BESIDE_CARDS = 3
"""Of the amounts, those that come first and have nothing to do with cards: CPU, memory, pods."""
_CARD_BITS, _RANK_BITS, _EMPTY_BITS = 6, 20, 7
"""Of a key: the card's place, the node's rank, the node's empty cards; above them the card's own."""


class Table:
    """The arrays. All are `rows` x `cards`, or one of `rows`."""

    def __init__(self, *, rows: int = 16, cards: int = 8) -> None:
        shape = (rows, cards)
        self.memory: Ints = np.zeros(shape, dtype=np.int64)
        self.free_cores: Ints = np.zeros(shape, dtype=np.int64)
        self.free_bytes: Ints = np.zeros(shape, dtype=np.int64)
        self.shares: Ints = np.zeros(shape, dtype=np.int64)
        self.load: Ints = np.zeros(shape, dtype=np.int64)
        self.whole: Bools = np.zeros(shape, dtype=np.bool_)
        self.present: Bools = np.zeros(shape, dtype=np.bool_)
        self.usable: Bools = np.zeros(shape, dtype=np.bool_)
        """Present and healthy."""
        self.closed: Bools = np.zeros(shape, dtype=np.bool_)
        """Kept for somebody."""
        self.unit: Ints = np.ones(rows, dtype=np.int64)
        self.rank: Ints = np.zeros(rows, dtype=np.int64)
        self._preference: Ints = np.zeros((len(POLICIES), *shape), dtype=np.int64)
        self._key: Ints = np.zeros((len(POLICIES), *shape), dtype=np.int64)
        self._room: Ints = np.zeros((len(AMOUNT_NAMES), rows), dtype=np.int64)
        self._used: Ints = np.zeros((len(AMOUNT_NAMES), rows), dtype=np.int64)
        self._kept: Ints = np.zeros((len(AMOUNT_NAMES), rows), dtype=np.int64)
        self._keeping: list[tuple[int, list[int], Ints]] = []

    @property
    def size(self) -> tuple[int, int]:
        """Rows and cards that there is space for."""
        rows, cards = self.memory.shape
        return rows, cards

    def write(self, row: int, rooms: Sequence[CardRoom], *, unit_bytes: int) -> None:
        """The cards of a node, as they are now; none: the row is free."""
        count = len(rooms)
        self.present[row] = False
        self.usable[row] = False
        self.unit[row] = unit_bytes
        if not count:
            return
        at = (row, slice(0, count))
        self.present[at] = True
        self.usable[at] = [room.card.healthy for room in rooms]
        self.memory[at] = [room.card.memory_bytes for room in rooms]
        self.free_cores[at] = [room.free_cores for room in rooms]
        self.free_bytes[at] = [room.free_bytes for room in rooms]
        self.shares[at] = [room.shares for room in rooms]
        self.load[at] = [room.load for room in rooms]
        self.whole[at] = [room.whole for room in rooms]
        for index, policy in enumerate(POLICIES):
            self._preference[(index, *at)] = [preference(room, policy) for room in rooms]
        self._write_keys(slice(row, row + 1))

    def write_amounts(self, row: int, room: Amounts, used: Sequence[int]) -> None:
        """What a node has beside cards, and what of it pods use."""
        self._room[:, row] = room.values()
        self._used[:, row] = used

    def write_ranks(self, rows: Sequence[int]) -> None:
        """Nodes in order: these rows are those of the first, the second, and so on."""
        self.rank[list(rows)] = np.arange(len(rows))
        self._write_keys(slice(None))

    def _write_keys(self, rows: slice) -> None:
        """How gladly a card is taken, as one number: its own preference, the node's empty cards, names."""
        full = 2**_EMPTY_BITS - 1
        empty = np.minimum(full, (self.usable[rows] & (self.shares[rows] == 0)).sum(axis=1))
        last = (MAX_NODES - 1 - self.rank[rows])[:, None] << _CARD_BITS
        last = last + (MAX_CARDS - 1 - np.arange(self.size[1], dtype=np.int64))
        for index, policy in enumerate(POLICIES):
            gladly = full - empty if policy == "binpack" else empty
            node = (gladly[:, None] << (_RANK_BITS + _CARD_BITS)) + last
            own = self._preference[index, rows] << (_EMPTY_BITS + _RANK_BITS + _CARD_BITS)
            self._key[index, rows] = own + node

    # What fits

    def best(self, fits: Bools, policy: str) -> int | None:
        """The row with the card that is preferred among these; None if there are none."""
        best = int(np.where(fits, self._key[POLICIES.index(policy)], -1).argmax())
        row, card = divmod(best, self.size[1])
        return row if fits[row, card] else None

    def best_of_rows(self, fits: Bools, policy: str) -> Ints:
        """Of each row, how gladly its best card among these is taken; -1 where there is none."""
        return np.where(fits, self._key[POLICIES.index(policy)], -1).max(axis=1)

    def fits(self, asked: Ask, ask: PodAsk) -> Bools:
        """The cards that can take one container now; of whole cards, each that can be one of them."""
        fits = self.usable & ~self.closed
        if asked.whole:
            return fits & (self.shares == 0) & (self.memory >= self.needed(asked))
        fits &= self.free_bytes >= self.needed(asked)
        fits &= self.free_cores >= self.cores(asked, ask)
        return fits

    def needed(self, asked: Ask) -> Ints:
        """Of each row, the memory that a card must have in all for a container (placing.needed_bytes)."""
        unit = self.unit[:, None]
        if asked.whole:
            return -(-asked.memory_units // asked.whole) * unit * NOMINAL_EIGHTHS // 8
        units = asked.memory_units * unit
        return units if asked.memory_bytes is None else np.minimum(units, asked.memory_bytes)

    def cores(self, asked: Ask, ask: PodAsk) -> Ints | int:
        """What a share takes of each card's cores (placing.share_on)."""
        if asked.cores:
            return asked.cores
        most = ask.cores_max or CORES_PER_CARD
        of_card = CORES_PER_CARD * self.needed(asked) // np.maximum(1, self.memory)
        return np.minimum(most, np.maximum(1, of_card))

    def reasons(self, asked: Ask, ask: PodAsk) -> Iterator[tuple[Reason, Bools]]:
        """Why cards cannot take one container, in the order of telling: the first that holds counts."""
        needed = self.needed(asked)
        yield Reason.CARD_UNHEALTHY, ~self.usable
        yield Reason.CARD_TOO_SMALL, self.memory < needed
        yield Reason.CARD_RESERVED, self.closed
        yield Reason.CARD_TAKEN_WHOLE, self.whole
        if asked.whole:
            yield Reason.CARD_IN_USE, self.shares > 0
        else:
            yield Reason.MEMORY_TAKEN, self.free_bytes < needed
            yield Reason.CORES_TAKEN, self.free_cores < self.cores(asked, ask)

    def rows_with_room(self, amounts: Amounts, *, empty: bool = False) -> Bools:
        """The rows that have what is needed beside cards; empty: as if no pod used any of it."""
        rows: Bools = np.ones(self.size[0], dtype=np.bool_)
        for index, amount in enumerate(amounts.values()):
            if amount:
                taken = 0 if empty else self._used[index] + self._kept[index]
                rows &= self._room[index] - taken >= amount
        return rows

    # How far from fitting

    def distance_share(self, fitting: Bools, asked: Ask, ask: PodAsk) -> Ints:
        """Of these cards, what lacks of what a share asks, in LOAD_FULL; FAR elsewhere."""
        memory = (self.needed(asked) - self.free_bytes) * LOAD_FULL // np.maximum(1, self.memory)
        cores = (self.cores(asked, ask) - self.free_cores) * (LOAD_FULL // CORES_PER_CARD)
        return np.where(fitting, np.maximum(0, np.maximum(memory, cores)), FAR)

    def distance_amounts(self, amounts: Amounts) -> Ints:
        """Of each row, what lacks of what is needed beside cards, in LOAD_FULL.

        The cards' own resources are left out: how many lack there, the cards tell.
        """
        lack = np.zeros(self.size[0], dtype=np.int64)
        for index, amount in enumerate(amounts.values()[:_BESIDE_CARDS]):
            if amount:
                short = amount - (self._room[index] - self._used[index] - self._kept[index])
                part = np.maximum(0, short).astype(np.float64) / np.maximum(1, self._room[index])
                lack = np.maximum(lack, np.ceil(part * LOAD_FULL).astype(np.int64))
        return lack

    def nearest(self, distances: Ints) -> int | None:
        """The row with the least distance, by rank among equals; None if all are FAR."""
        least = distances.min()
        if least >= FAR:
            return None
        equal = np.flatnonzero(distances == least)
        return int(equal[self.rank[equal].argmin()])

    # What is kept

    def keep(self, row: int, cards: list[int], amounts: Amounts) -> None:
        """Close cards, by their places, to all; and keep this much beside them.

        Of the cards' own resources, what those on the closed cards give back when they end need not be kept.
        """
        self.closed[row, cards] = True
        cores = int((CORES_PER_CARD - self.free_cores[row, cards]).sum())
        units = int(((self.memory[row, cards] - self.free_bytes[row, cards]) // self.unit[row]).sum())
        back = np.array([0] * _BESIDE_CARDS + [cores, units], dtype=np.int64)
        kept = np.maximum(0, np.array(amounts.values(), dtype=np.int64) - back)
        self._kept[:, row] += kept
        self._keeping.append((row, cards, kept))

    def open_all(self) -> None:
        """Keep nothing any more."""
        for row, cards, kept in self._keeping:
            self.closed[row, cards] = False
            self._kept[:, row] -= kept
        self._keeping.clear()

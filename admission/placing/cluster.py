"""All nodes of a cluster, and who holds what: a pod's place is found in a moment, or what keeps it from one.

The truth is, node by node, what vcuda.kube.placing computes from the pods that hold shares. The arrays of
table.py find the node that is preferred; the cards on it are then chosen by the same function that the node
agent uses. A change of a pod or a node changes one row, never more.

Nothing depends on the order in which nodes and pods became known: what is equal is decided by name.
"""

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from admission.placing.table import FAR, LASTING, MAX_CARDS, MAX_NODES, Bools, Table
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.eligibility import AMOUNT_NAMES, Amounts, NodeFacts, Rules, why_not
from vcuda.kube.placements import PodPlacement
from vcuda.kube.placing import CardRoom, Reason, Shares, book_unknown, booked, emptied, held, place_on
from vcuda.kube.pods import PodFacts

_RULES_KEPT = 256
_REASONS = tuple(Reason)

Reasons = tuple[Counter[Reason], Counter[Reason]]
"""How many nodes cannot be used, and how many cards of the others, each for its first reason."""


@dataclass(frozen=True)
class Request:
    """What a pod asks, and where it may go."""

    ask: PodAsk
    rules: Rules = field(default_factory=Rules)
    amounts: Amounts = field(default_factory=Amounts)

    @cached_property
    def rules_key(self) -> str:
        """Equal for requests that may go to the same nodes."""
        return json.dumps([self.rules.selector, self.rules.terms, self.rules.tolerations], sort_keys=True)

    @cached_property
    def key(self) -> str:
        """Equal for requests that fit the same nodes."""
        return f"{self.ask.containers} {self.ask.cores_max} {self.amounts} {self.rules_key}"


def request_of(pod: PodFacts) -> Request:
    """What a pod asks."""
    return Request(ask=pod.ask, rules=pod.rules, amounts=pod.amounts)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The node and the cards that were chosen."""

    node: str
    shares: Shares


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Cards that are kept for a request until they are free."""

    node: str
    cards: tuple[int, ...]
    """Their indices."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A pod that is not over, on the node to which it was placed or bound.

    placement: what it holds. A PodAsk, where that cannot be read: all it asks counts as taken. None: no card.
    """

    placement: PodPlacement | PodAsk | None
    amounts: Amounts


class Cluster:
    """Nodes, cards, and who holds what."""

    def __init__(self, *, policy: str = "binpack") -> None:
        self._policy = policy
        self._table = Table()
        self._nodes: dict[str, NodeFacts] = {}
        self._rows: dict[str, int] = {}
        self._names: list[str] = []
        self._rooms: list[list[CardRoom]] = []
        self._unused: list[int] = []
        self._holders: dict[str, dict[str, Holder]] = {}
        self._where: dict[str, str] = {}
        self._eligible: OrderedDict[str, tuple[Rules, NDArray[np.int8]]] = OrderedDict()
        self._capable: dict[str, Bools] = {}
        self._never: dict[str, Reasons] = {}
        self._ranked = True

    @property
    def nodes(self) -> Mapping[str, NodeFacts]:
        """The nodes, by name."""
        return self._nodes

    def rooms(self, node: str) -> list[CardRoom]:
        """What is promised of a node's cards, in the order of their indices."""
        return list(self._rooms[self._rows[node]])

    def node_of(self, uid: str) -> str | None:
        """Where a pod holds something."""
        return self._where.get(uid)

    # What is there

    def set_node(self, facts: NodeFacts) -> bool:
        """A node as it is now. Whether anything that matters has changed."""
        before = self._nodes.get(facts.name)
        if before == facts:
            return False
        cards = len(facts.cards.cards) if facts.cards else 0
        if cards > self._table.size[1]:
            self._grow(rows=self._table.size[0], cards=min(MAX_CARDS, cards))
        if before is None:
            self._add_row(facts.name)
        self._nodes[facts.name] = facts
        for rules, codes in self._eligible.values():
            codes[self._rows[facts.name]] = _code(why_not(facts, rules))
        self._forget_capable()
        self._recount(facts.name)
        return True

    def remove_node(self, name: str) -> bool:
        """A node is gone; who held something there does so again if it comes back. Whether it was known."""
        if self._nodes.pop(name, None) is None:
            return False
        row = self._rows.pop(name)
        self._unused.append(row)
        self._rooms[row], self._names[row] = [], ""
        self._table.write(row, (), unit_bytes=1)
        for _, codes in self._eligible.values():
            codes[row] = _GONE
        self._forget_capable()
        self._ranked = False
        return True

    def book(self, uid: str, node: str, holder: Holder) -> None:
        """A pod holds this, on this node, and nothing else."""
        before = self._where.get(uid)
        if before == node and self._holders[node][uid] == holder:
            return
        if before is not None:
            self.unbook(uid)
        self._where[uid] = node
        self._holders.setdefault(node, {})[uid] = holder
        self._recount(node)

    def unbook(self, uid: str) -> bool:
        """A pod holds nothing any more. Whether it did."""
        node = self._where.pop(uid, None)
        if node is None:
            return False
        del self._holders[node][uid]
        if not self._holders[node]:
            del self._holders[node]
        self._recount(node)
        return True

    # What is chosen

    def place(self, request: Request) -> Choice | None:
        """The node and cards that a pod gets; None where it finds no room among what is not reserved."""
        self._rank()
        policy = request.ask.policy or self._policy
        rows = (self._codes(request) == 0) & self._table.rows_with_room(request.amounts)
        asked, *others = request.ask.containers
        if others:
            return self._place_together(request, rows, policy)
        if asked.whole:
            row = self._row_for_whole(asked, request.ask, rows, policy)
        else:
            row = self._table.best(self._table.fits(asked, request.ask) & rows[:, None], policy)
        return None if row is None else self._choice(row, request)

    def never(self, request: Request) -> Reasons | None:
        """Why no node could hold a request, were nothing promised; None if one could."""
        if self._capable_rows(request).any():
            return None
        if request.key not in self._never:
            self._never[request.key] = self.reasons(request, empty=True)
        return self._never[request.key]

    def reserve(self, request: Request) -> Reservation | None:
        """Keep the cards on which a request will fit first, until `reopen`.

        Of a share that is the card that lacks least of what is asked; of whole cards, those of the node on
        which the least is promised; of several containers, all cards of the least loaded node. While these
        are closed to others, what they lack only shrinks; another choice is made only if it is nearer.
        None: all that could hold it are kept for those that came before.
        """
        self._rank()
        table = self._table
        rows = self._capable_rows(request)
        lack = table.distance_amounts(request.amounts)
        asked, *others = request.ask.containers
        fitting = table.usable & ~table.closed & rows[:, None] & (table.memory >= table.needed(asked))
        if others:
            apart = rows & ~(table.closed & table.usable).any(axis=1)
            loads = np.where(table.usable, table.load, 0).sum(axis=1)
            row = table.nearest(np.where(apart, np.maximum(loads, lack), FAR))
            chosen = None if row is None else np.flatnonzero(table.usable[row])
        elif asked.whole:
            emptiest = np.argsort(np.where(fitting, table.load, FAR), axis=1, kind="stable")
            emptiest = emptiest[:, : asked.whole]
            loads = np.take_along_axis(np.where(fitting, table.load, 0), emptiest, 1).sum(axis=1)
            enough = fitting.sum(axis=1) >= asked.whole
            row = table.nearest(np.where(enough, np.maximum(loads, lack), FAR))
            chosen = None if row is None else emptiest[row]
        else:
            lacks = np.maximum(table.distance_share(fitting, asked, request.ask), lack[:, None])
            row = table.nearest(lacks.min(axis=1))
            chosen = None if row is None else lacks[row].argmin(keepdims=True)
        if row is None or chosen is None:
            return None
        cards = sorted(int(each) for each in chosen)
        table.keep(row, cards, request.amounts)
        indices = tuple(self._rooms[row][card].card.index for card in cards)
        return Reservation(node=self._names[row], cards=indices)

    def reopen(self) -> None:
        """Keep nothing any more."""
        self._table.open_all()

    def reasons(self, request: Request, *, empty: bool = False) -> Reasons:
        """Why a request that finds no room does not. empty: as if nothing were promised."""
        codes = self._codes(request)
        known = np.zeros(len(codes), dtype=np.bool_)
        known[list(self._rows.values())] = True
        eligible = known & (codes == 0)
        with_room = eligible & self._table.rows_with_room(request.amounts, empty=empty)
        nodes = Counter({reason: int((codes[known] == _code((reason, ""))).sum()) for reason in Reason})
        cards: Counter[Reason] = Counter()
        full = np.zeros(len(codes), dtype=np.bool_)
        for asked in request.ask.containers:
            here = self._table.present & eligible[:, None]
            for reason, hit in self._table.reasons(asked, request.ask):
                if empty and reason not in LASTING:
                    continue
                cards[reason] += int((here & hit).sum())
                here = here & ~hit
            full |= here.any(axis=1) & ~with_room
            cards[Reason.TOO_FEW_CARDS] += int((here & with_room[:, None]).sum())
        nodes[Reason.NODE_FULL] = int(full.sum())
        return +nodes, +cards

    def _choice(self, row: int, request: Request) -> Choice | None:
        closed = self._table.closed[row].tolist()
        rooms = [room for room, kept in zip(self._rooms[row], closed, strict=False) if not kept]
        unit = int(self._table.unit[row])
        shares = place_on(rooms, request.ask, unit_bytes=unit, policy=self._policy)
        return None if shares is None else Choice(node=self._names[row], shares=shares)

    def _row_for_whole(self, asked: Ask, ask: PodAsk, rows: Bools, policy: str) -> int | None:
        """The node for whole cards. binpack: of the smallest cards that do, with the fewest empty ones."""
        fits = self._table.fits(asked, ask)
        count = fits.sum(axis=1)
        found = np.flatnonzero(rows & (count >= asked.whole))
        if not len(found):
            return None
        if policy == "spread":
            order = (MAX_CARDS - count[found]) * MAX_NODES
        else:
            sizes = np.where(fits[found], self._table.memory[found], FAR).min(axis=1) >> 30
            order = (sizes * 2 * MAX_CARDS + count[found]) * MAX_NODES
        return int(found[(order + self._table.rank[found]).argmin()])

    def _place_together(self, request: Request, rows: Bools, policy: str) -> Choice | None:
        """Several containers: the nodes on which each alone would fit, tried in order of preference."""
        table = self._table
        best = np.full(len(rows), -1, dtype=np.int64)
        for asked in request.ask.containers:
            fits = table.fits(asked, request.ask)
            rows = rows & (fits.sum(axis=1) >= max(1, asked.whole))
            best = np.maximum(best, table.best_of_rows(fits, policy))
        whole = sum(asked.whole for asked in request.ask.containers)
        if whole:
            rows = rows & ((table.usable & ~table.closed & (table.shares == 0)).sum(axis=1) >= whole)
        found = np.flatnonzero(rows)
        failed: set[bytes] = set()
        for row in found[np.argsort(-best[found], kind="stable")].tolist():
            # Nodes that look alike are tried once: there may be thousands.
            parts = (
                table.free_cores,
                table.free_bytes,
                table.memory,
                table.shares,
                table.usable,
                table.closed,
            )
            looks = b"".join(part[row].tobytes() for part in (*parts, table.unit))
            if looks in failed:
                continue
            choice = self._choice(row, request)
            if choice is not None:
                return choice
            failed.add(looks)
        return None

    def _capable_rows(self, request: Request) -> Bools:
        """The nodes that could hold a request, were nothing promised there."""
        found = self._capable.get(request.key)
        if found is not None:
            return found
        table = self._table
        rows = (self._codes(request) == 0) & table.rows_with_room(request.amounts, empty=True)
        for asked in request.ask.containers:
            fits = table.usable & (table.memory >= table.needed(asked))
            rows &= fits.sum(axis=1) >= max(1, asked.whole)
        if len(request.ask.containers) > 1:
            rows &= self._rows_for_all(request, rows)
        if len(self._capable) >= _RULES_KEPT:
            self._forget_capable()
        self._capable[request.key] = rows
        return rows

    def _rows_for_all(self, request: Request, rows: Bools) -> Bools:
        """Of these rows, those whose empty cards can take several containers together."""
        able: Bools = np.zeros(len(rows), dtype=np.bool_)
        fitting: dict[tuple[object, ...], bool] = {}
        for row in np.flatnonzero(rows).tolist():
            unit = int(self._table.unit[row])
            shape = (unit, *((room.card.memory_bytes, room.card.healthy) for room in self._rooms[row]))
            if shape not in fitting:
                empty = emptied(self._rooms[row])
                shares = place_on(empty, request.ask, unit_bytes=unit, policy=self._policy)
                fitting[shape] = shares is not None
            able[row] = fitting[shape]
        return able

    def _codes(self, request: Request) -> NDArray[np.int8]:
        """Of each row, why a request may not go there: 0, or one more than the reason's place."""
        found = self._eligible.get(request.rules_key)
        if found is not None:
            self._eligible.move_to_end(request.rules_key)
            return found[1]
        codes = np.full(self._table.size[0], _GONE, dtype=np.int8)
        for name, row in self._rows.items():
            codes[row] = _code(why_not(self._nodes[name], request.rules))
        self._eligible[request.rules_key] = request.rules, codes
        if len(self._eligible) > _RULES_KEPT:
            self._eligible.popitem(last=False)
        return codes

    # Rows

    def _add_row(self, name: str) -> None:
        if not self._unused:
            rows, cards = self._table.size
            used = len(self._rooms)
            if used == rows:
                self._grow(rows=min(MAX_NODES, rows * 4), cards=cards)
            self._unused.append(used)
            self._rooms.append([])
            self._names.append("")
        row = self._unused.pop()
        self._rows[name], self._names[row] = row, name
        self._ranked = False

    def _grow(self, *, rows: int, cards: int) -> None:
        """A larger table. Reservations are of one turn of the queue, in which nothing grows."""
        self._table = Table(rows=rows, cards=cards)
        self._eligible.clear()
        self._forget_capable()
        self._ranked = False
        for name in self._rows:
            self._recount(name)

    def _recount(self, name: str) -> None:
        """A node's cards from who holds what there."""
        row, facts = self._rows.get(name), self._nodes.get(name)
        if row is None or facts is None:
            return
        unit = facts.cards.memory_unit_bytes if facts.cards else 1
        cards = sorted(facts.cards.cards if facts.cards else (), key=lambda card: (card.index, card.uuid))
        holders = self._holders.get(name, {})
        known = [
            held(holder.placement, facts.moved)
            for holder in holders.values()
            if isinstance(holder.placement, PodPlacement)
        ]
        rooms = booked(cards[:MAX_CARDS], known)
        for _, holder in sorted(holders.items()):
            if isinstance(holder.placement, PodAsk):
                known.append(book_unknown(rooms, holder.placement, unit_bytes=unit))
                rooms = booked(cards[:MAX_CARDS], known)
        self._rooms[row] = rooms
        self._table.write(row, rooms, unit_bytes=unit)
        used = [0] * len(AMOUNT_NAMES)
        for holder in holders.values():
            used = [before + more for before, more in zip(used, holder.amounts.values(), strict=True)]
        self._table.write_amounts(row, facts.room, used)

    def _rank(self) -> None:
        if not self._ranked:
            self._table.write_ranks([self._rows[name] for name in sorted(self._rows)])
            self._ranked = True

    def _forget_capable(self) -> None:
        self._capable.clear()
        self._never.clear()


def _code(why: tuple[Reason, str] | None) -> int:
    return 0 if why is None else 1 + _REASONS.index(why[0])


_GONE = _code((Reason.NODE_NOT_READY, ""))

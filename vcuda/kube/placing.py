"""Which cards of one node a pod gets: a pure function of what the cards have free and what is asked.

The controller asks it of the node that it chose among all, the node agent of its own where there is no
controller, and `vcuda explain` of every node, for the reasons why not. All containers of a pod are booked
together, init containers too, although they run before the others: their shares are kept until the pod ends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.names import CORES_PER_CARD
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import CardShare, PodPlacement
from vcuda.units import format_size

LOAD_FULL = 10_000
"""The load of a card whose cores, or whose memory, are all promised; both together are twice this."""
NOMINAL_EIGHTHS = 7
"""A card that has 7/8 of the memory that is asked with whole cards will do: one that is sold with 16 GiB has
15 for its users where ECC takes its part, and asks are written in what cards are sold with."""

_TRIES = 4_000
"""Attempts at fitting several containers onto one node's cards. Cards with equal room count once, so that no
pod that people write comes to this; one that does is taken not to fit."""
_GIB = 2**30
_SIZES = 1024


class Reason(StrEnum):
    """Why a card, or a node, cannot take what is asked; as condition, event, metric and command name it."""

    NODE_NOT_READY = "NodeNotReady"
    NODE_CORDONED = "NodeUnschedulable"
    NODE_TAINTED = "NodeTainted"
    NODE_SELECTED_AGAINST = "NodeSelectorMismatch"
    NODE_AFFINITY = "NodeAffinityMismatch"
    NODE_NOT_SERVED = "NodeAgentAway"
    NODE_WITHOUT_CARDS = "NodeWithoutCards"
    NODE_FULL = "NodeResourcesTaken"
    CARD_UNHEALTHY = "CardUnhealthy"
    CARD_TOO_SMALL = "CardTooSmall"
    CARD_RESERVED = "CardReserved"
    CARD_TAKEN_WHOLE = "CardTakenWhole"
    CARD_IN_USE = "CardInUse"
    CORES_TAKEN = "CoresTaken"
    MEMORY_TAKEN = "MemoryTaken"
    TOO_FEW_CARDS = "TooFewCards"


@dataclass(frozen=True, kw_only=True, slots=True)
class CardRoom:
    """What of one card is promised. More than there is can be, where a promise is not known for certain."""

    card: NodeCard
    taken_cores: int = 0
    taken_bytes: int = 0
    shares: int = 0
    whole: bool = False
    """One share has it alone."""

    @property
    def free_cores(self) -> int:
        """What can still be promised, in percent of the card."""
        return 0 if self.whole else CORES_PER_CARD - self.taken_cores

    @property
    def free_bytes(self) -> int:
        """What can still be promised."""
        return 0 if self.whole else self.card.memory_bytes - self.taken_bytes

    @property
    def load(self) -> int:
        """How full the card is: cores and memory, each in parts of LOAD_FULL."""
        if self.whole:
            return 2 * LOAD_FULL
        memory = self.taken_bytes * LOAD_FULL // max(1, self.card.memory_bytes)
        return min(2 * LOAD_FULL, self.taken_cores * (LOAD_FULL // CORES_PER_CARD) + memory)

    def with_share(self, share: CardShare) -> "CardRoom":
        """The same card with one share more."""
        return replace(
            self,
            taken_cores=self.taken_cores + share.cores,
            taken_bytes=self.taken_bytes + share.memory_bytes,
            shares=self.shares + 1,
            whole=self.whole or share.whole,
        )


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why one card cannot take what one container asks."""

    container: str
    card: NodeCard
    reason: Reason
    text: str


Shares = Mapping[str, tuple[CardShare, ...]]
"""By container: what it gets of which cards."""


def place_on(rooms: Sequence[CardRoom], ask: PodAsk, *, unit_bytes: int, policy: str) -> Shares | None:
    """The cards of a node that a pod gets; None if it does not fit. `policy` holds where the pod has none."""
    order = sorted(range(len(ask.containers)), key=lambda index: _largest_first(ask.containers[index], index))
    search = _Search(ask, unit_bytes, ask.policy or policy)
    found = search.fit([ask.containers[index] for index in order], list(rooms))
    if found is None:
        return None
    return {each.container: found[each.container] for each in ask.containers}


def emptied(rooms: Iterable[CardRoom]) -> list[CardRoom]:
    """The same cards with nothing promised."""
    return [CardRoom(card=room.card) for room in rooms]


def share_on(card: NodeCard, asked: Ask, ask: PodAsk, *, unit_bytes: int) -> CardShare:
    """What a container gets of a card that it is placed on, whether or not it has room."""
    if asked.whole:
        return CardShare(
            uuid=card.uuid,
            cores=CORES_PER_CARD,
            cores_max=CORES_PER_CARD,
            memory_bytes=card.memory_bytes,
            whole=True,
        )
    memory_bytes = asked.bytes_of(unit_bytes)
    if asked.cores:
        cores, most = asked.cores, max(asked.cores, ask.cores_max or 0)
    else:
        most = ask.cores_max or CORES_PER_CARD
        cores = min(most, max(1, CORES_PER_CARD * memory_bytes // max(1, card.memory_bytes)))
    return CardShare(uuid=card.uuid, cores=cores, cores_max=most, memory_bytes=memory_bytes)


def needed_bytes(asked: Ask, unit_bytes: int) -> int:
    """The least memory that a card must have in all to take a container."""
    if asked.whole:
        each = -(-asked.memory_units // asked.whole)
        return each * unit_bytes * NOMINAL_EIGHTHS // 8
    return asked.bytes_of(unit_bytes)


def preference(room: CardRoom, policy: str) -> int:
    """How gladly a card is taken among those that have room; 0 to 2**25.

    binpack: the fullest, so that large requests find large gaps; of equal ones the smallest.
    spread: the emptiest.
    """
    if policy == "spread":
        return 2 * LOAD_FULL - max(0, room.load)
    return max(0, room.load) * _SIZES + _SIZES - 1 - min(_SIZES - 1, room.card.memory_bytes // _GIB)


def refusals(rooms: Sequence[CardRoom], ask: PodAsk, *, unit_bytes: int) -> list[Refusal]:
    """Card by card, and container by container, why a pod does not fit; nothing where each could be alone."""
    found: list[Refusal] = []
    for asked in ask.containers:
        for room in rooms:
            why = _refusal(room, asked, ask, unit_bytes)
            if why is not None:
                found.append(Refusal(container=asked.container, card=room.card, reason=why[0], text=why[1]))
    return found


def held(placement: PodPlacement, moved: Mapping[str, Mapping[str, Sequence[str]]]) -> Shares:
    """What the containers of a placed pod hold: the placement's cards, unless the node moved the shares.

    The rule that controller and node agent share. A move that does not fit the placement is not believed.
    """
    elsewhere = moved.get(placement.uid, {})
    return {
        name: tuple(replace(share, uuid=uuid) for share, uuid in zip(shares, elsewhere[name], strict=True))
        if len(elsewhere.get(name, ())) == len(shares)
        else shares
        for name, shares in placement.containers.items()
    }


def booked(cards: Iterable[NodeCard], holders: Iterable[Shares]) -> list[CardRoom]:
    """The room of a node's cards with all these shares on them; shares of other cards are left out."""
    rooms = {card.uuid: CardRoom(card=card) for card in cards}
    for shares in holders:
        for share in (share for each in shares.values() for share in each):
            if share.uuid in rooms:
                rooms[share.uuid] = rooms[share.uuid].with_share(share)
    return list(rooms.values())


def book_unknown(rooms: Sequence[CardRoom], ask: PodAsk, *, unit_bytes: int) -> Shares:
    """What to take as held by a pod whose placement cannot be read: all it asks, as well as that can be.

    Where it fits, as if it came now; else each container on the freest cards, even beyond what they have.
    """
    shares = place_on(rooms, ask, unit_bytes=unit_bytes, policy="binpack")
    if shares is not None:
        return shares
    freest = [room.card for room in sorted(rooms, key=lambda room: (room.load, room.card.index))]
    return {
        asked.container: tuple(
            share_on(card, asked, ask, unit_bytes=unit_bytes) for card in freest[: max(1, asked.whole)]
        )
        for asked in ask.containers
    }


def _largest_first(asked: Ask, index: int) -> tuple[int, int, int, int]:
    return -asked.whole, -asked.cores, -asked.memory_units, index


def _refusal(room: CardRoom, asked: Ask, ask: PodAsk, unit_bytes: int) -> tuple[Reason, str] | None:
    """Why one card has no room for one container; None if it has."""
    card = room.card
    if not card.healthy:
        return Reason.CARD_UNHEALTHY, "unhealthy"
    needed = needed_bytes(asked, unit_bytes)
    if needed > card.memory_bytes:
        return (
            Reason.CARD_TOO_SMALL,
            f"{format_size(needed)} needed, the card has {format_size(card.memory_bytes)}",
        )
    if room.whole:
        return Reason.CARD_TAKEN_WHOLE, "one share has it alone"
    if asked.whole:
        if room.shares:
            return Reason.CARD_IN_USE, f"to be had alone, and has {_counted(room.shares, 'share')}"
        return None
    share = share_on(card, asked, ask, unit_bytes=unit_bytes)
    if share.memory_bytes > room.free_bytes:
        free = format_size(max(0, room.free_bytes))
        return Reason.MEMORY_TAKEN, f"{format_size(share.memory_bytes)} asked, {free} free"
    if share.cores > room.free_cores:
        return Reason.CORES_TAKEN, f"{share.cores}% of cores asked, {max(0, room.free_cores)}% free"
    return None


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class _Search:
    """Containers onto cards: the preferred first, another where that leaves no room for those to come."""

    def __init__(self, ask: PodAsk, unit_bytes: int, policy: str) -> None:
        self._ask = ask
        self._unit_bytes = unit_bytes
        self._policy = policy
        self._left = _TRIES

    def fit(self, asked: Sequence[Ask], rooms: list[CardRoom]) -> dict[str, tuple[CardShare, ...]] | None:
        """Shares of all these containers, in this order; None if they do not fit. `rooms` is as before."""
        if not asked:
            return {}
        first, rest = asked[0], asked[1:]
        fitting = [
            index
            for index, room in enumerate(rooms)
            if _refusal(room, first, self._ask, self._unit_bytes) is None
        ]
        fitting.sort(key=lambda index: (-preference(rooms[index], self._policy), rooms[index].card.index))
        if first.whole:
            return self._fit_whole(first, rest, rooms, fitting)
        seen: set[tuple[int, int, int]] = set()
        for index in fitting:
            room = rooms[index]
            alike = (room.free_cores, room.free_bytes, room.card.memory_bytes)
            if alike in seen:
                continue
            seen.add(alike)
            self._left -= 1
            if self._left < 0:
                return None
            share = share_on(room.card, first, self._ask, unit_bytes=self._unit_bytes)
            rooms[index] = room.with_share(share)
            found = self.fit(rest, rooms)
            rooms[index] = room
            if found is not None:
                return {first.container: (share,), **found}
        return None

    def _fit_whole(
        self, first: Ask, rest: Sequence[Ask], rooms: list[CardRoom], fitting: list[int]
    ) -> dict[str, tuple[CardShare, ...]] | None:
        """Whole cards are chosen first, and the smallest that will do: no other choice leaves more."""
        if len(fitting) < first.whole:
            return None
        chosen = sorted(fitting, key=lambda index: (rooms[index].card.memory_bytes, rooms[index].card.index))
        chosen = chosen[: first.whole]
        shares = tuple(
            share_on(rooms[index].card, first, self._ask, unit_bytes=self._unit_bytes) for index in chosen
        )
        after = list(rooms)
        for index, share in zip(chosen, shares, strict=True):
            after[index] = after[index].with_share(share)
        found = self.fit(rest, after)
        return None if found is None else {first.container: shares, **found}

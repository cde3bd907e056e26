"""Whether a container may start with the cards it was told of: a pure function of what the node knows.

Before each start of a container the kubelet names its ids, and its account says whose they are. A container
that was served with another one's cards keeps them, if all shares of the node still fit then: an exchange.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from deviceplugin.allocation import Refused, holders, rooms
from deviceplugin.state import Ids, Owner, Resource, Ticket, View
from vcuda.kube.nodes import Moved, NodeCard
from vcuda.kube.placements import CardShare
from vcuda.kube.placing import CardRoom, Shares, booked, share_on


@dataclass(frozen=True, kw_only=True)
class Start:
    """The container may start."""

    tickets: tuple[Ticket, ...]
    """To be granted, if they are not yet: more than one, where an init container's ids are lent to others."""
    moved: Moved | None = None
    """To be published before that; None: as it is."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """The container must not start now."""

    refused: Refused
    void: tuple[Ticket, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What the kubelet has kept of an answer to `Allocate`: a ticket can be made again from it."""

    owner: Owner
    name: str
    cards: tuple[str, ...]


def start(view: View, resource: Resource, ids: Ids, answers: Iterable[Answered] = ()) -> Start | Stop:
    """Decide one call of `PreStartContainer`. `answers`: those that named these ids."""
    owners = view.account.holders(resource, ids)
    if not owners:
        return Stop(
            refused=Refused(
                text=f"{len(ids)} of {resource}: the kubelet does not say whose they are; it will try again",
                reason="OwnerUnknown",
            )
        )
    answered = {answer.owner: answer for answer in answers}
    tickets: list[Ticket] = []
    moved: Moved | None = None
    for owner in owners:
        found = _one(view, owner, resource, ids, answered.get(owner))
        if isinstance(found, Stop):
            return found
        tickets += found.tickets
        moved = found.moved if found.moved is not None else moved
        # What was decided for one container is known when the next one is looked at.
        names = {ticket.name for ticket in found.tickets}
        others = [ticket for ticket in view.tickets if ticket.name not in names]
        view = replace(
            view, tickets=[*others, *found.tickets], moved=view.moved if found.moved is None else found.moved
        )
    return Start(tickets=tuple(tickets), moved=moved)


def exchanged(view: View, owner: Owner, ticket: Ticket) -> Moved | None:
    """What is to be published so that a container can keep the cards of a ticket; None: it does not fit.

    Another container that was to have them and is not started gets this one's, or stays where it is.
    """
    mine = view.current(owner)
    if mine is None or len(mine) != len(ticket.cards):
        return None
    place = tuple(share.uuid for share in mine)
    alone = _moved(view, view.moved, owner, ticket.cards)
    # Who is the ticket's container by what was thought, and who has been told of our cards, comes first.
    told = {view.holder(other) for other in view.tickets if other.owner is None and other.cards == place}
    partners = sorted(
        _waiting_on(view, ticket.cards, but=owner), key=lambda each: (each not in told, each != ticket.meant)
    )
    with_partner = [_moved(view, alone, partner, place) for partner in partners]
    for moved in (*with_partner, alone):
        if _fits(view, moved, owner, ticket.cards):
            return moved
    return None


def _one(view: View, owner: Owner, resource: Resource, ids: Ids, answer: Answered | None) -> Start | Stop:
    ticket = _ticket_of(view, owner, resource, ids) or _again(view, answer, resource, ids)
    if ticket is not None and ticket.owner == owner:
        return Start(tickets=(ticket,))
    pod = view.pods.get(owner.uid)
    other = next((each for each in view.tickets if each.owner == owner), None)
    if other is not None and ticket is not None and other.name != ticket.name:
        text = f"{owner}: was given two different shares; delete the pod, so that it is made again"
        return Stop(refused=Refused(text=text, pods=(pod,) if pod else (), reason="TicketLost"))
    if pod is None or pod.over or pod.fault is not None:
        why = "is not known here" if pod is None else "is over" if pod.over else pod.fault
        refused = Refused(text=f"{owner}: {why}", pods=() if pod is None else (pod,), reason="NotPlaced")
        return Stop(refused=refused, void=() if ticket is None else (ticket,))
    if ticket is None:
        text = f"{owner}: there is no record of what it was given; delete the pod, so that it is made again"
        return Stop(refused=Refused(text=text, pods=(pod,), reason="TicketLost"))
    mine = view.current(owner)
    if mine is None:
        mine = _shares_on(view, owner, ticket.cards)
        if mine is None:
            text = f"{owner}: asks other numbers of cards than it was given"
            return Stop(refused=Refused(text=text, pods=(pod,), reason="TicketLost"))
    moved: Moved | None = None
    if {share.uuid for share in mine} != set(ticket.cards):
        moved = exchanged(view, owner, ticket)
        if moved is None:
            text = f"{owner}: was told of cards {_named(view, ticket.cards)}, placed on "
            text += f"{_named(view, [share.uuid for share in mine])}, and they cannot be exchanged now"
            return Stop(refused=Refused(text=text, pods=(pod,), reason="CardsExchanged"))
        mine = _on_cards(view, mine, ticket.cards)
    full = _full(view, owner, mine)
    if full:
        text = f"{owner}: {_named(view, full)} is not free yet, or not healthy; it will be tried again"
        return Stop(refused=Refused(text=text, pods=(pod,), reason="CardFull"))
    priority = pod.ask.priority if pod.placement is None else pod.placement.priority
    return Start(
        tickets=(replace(ticket, owner=owner, meant=owner, shares=mine, priority=priority),), moved=moved
    )


def _ticket_of(view: View, owner: Owner, resource: Resource, ids: Ids) -> Ticket | None:
    """The ticket with these ids that is this container's; of several of one pod, the one thought for it."""
    found = [ticket for ticket in view.tickets if ticket.ids.get(resource) == ids]
    found = [ticket for ticket in found if ticket.owner in (None, owner)]
    found.sort(key=lambda ticket: (ticket.owner != owner, ticket.meant != owner))
    return next(iter(found), None)


def _again(view: View, answer: Answered | None, resource: Resource, ids: Ids) -> Ticket | None:
    """A ticket as the answer that the kubelet keeps tells of it: after a reboot there is no other trace."""
    if answer is None or not answer.cards:
        return None
    known = next((ticket for ticket in view.tickets if ticket.name == answer.name), None)
    if known is not None:
        mine = known.owner in (None, answer.owner)
        return replace(known, ids={**known.ids, resource: ids}) if mine else None
    shares = _shares_on(view, answer.owner, answer.cards)
    if shares is None:
        return None
    return Ticket(name=answer.name, ids={resource: ids}, shares=shares, priority=0, meant=answer.owner)


def _shares_on(view: View, owner: Owner, cards: Sequence[str]) -> tuple[CardShare, ...] | None:
    """What a container gets of these cards: as it was placed, else by what it asks."""
    known = {card.uuid: card for card in view.cards}
    ask, pod = view.asked(owner), view.pods.get(owner.uid)
    if ask is None or pod is None or any(uuid not in known for uuid in cards):
        return None
    if len(cards) != max(1, ask.whole):
        return None
    mine = view.current(owner)
    if mine is not None:
        return _on_cards(view, mine, cards)
    return tuple(share_on(known[uuid], ask, pod.ask, unit_bytes=view.unit_bytes) for uuid in cards)


def _on_cards(view: View, shares: Sequence[CardShare], cards: Sequence[str]) -> tuple[CardShare, ...]:
    """The same shares on other cards; a whole card is as large as it is."""
    size = {card.uuid: card.memory_bytes for card in view.cards}
    return tuple(
        replace(share, uuid=uuid, memory_bytes=size.get(uuid, 0) if share.whole else share.memory_bytes)
        for share, uuid in zip(shares, cards, strict=True)
    )


def _moved(view: View, moved: Moved, owner: Owner, cards: Sequence[str]) -> Moved:
    """With a container on these cards; without a word where that is its placement."""
    pod = view.pods[owner.uid]
    placed = () if pod.placement is None else pod.placement.containers.get(owner.container, ())
    of_pod = {name: tuple(each) for name, each in moved.get(owner.uid, {}).items() if name != owner.container}
    if tuple(share.uuid for share in placed) != tuple(cards):
        of_pod[owner.container] = tuple(cards)
    rest = {uid: each for uid, each in moved.items() if uid != owner.uid}
    return {**rest, owner.uid: of_pod} if of_pod else rest


def _waiting_on(view: View, cards: Sequence[str], *, but: Owner) -> list[Owner]:
    """The containers that are to have exactly these cards, and were not started yet."""
    started = {ticket.owner for ticket in view.tickets if ticket.owner is not None}
    found: list[Owner] = []
    for pod in view.running():
        if pod.fault is None:
            for name, shares in pod.shares(view.moved).items():
                owner = pod.owner(name)
                if owner not in started and owner != but and {share.uuid for share in shares} == set(cards):
                    found.append(owner)
    return found


def _fits(view: View, moved: Moved, owner: Owner, cards: Sequence[str]) -> bool:
    """Whether a container can be on these cards, when that is published: nobody is worse off by it."""
    after = replace(view, moved=moved)
    mine = after.current(owner)
    if mine is None:
        return False
    on = {owner.container: _on_cards(view, mine, cards)}
    full_before = _overfull(rooms(view))
    full_after = _overfull(booked(view.cards, [*holders(after, but=owner), on]))
    return not full_after & set(cards) and full_after <= full_before


def _full(view: View, owner: Owner, shares: Sequence[CardShare]) -> list[str]:
    """The cards of these shares that are broken, or have no room beside what is held already."""
    broken = {card.uuid for card in view.cards if not card.healthy}
    held: list[Shares] = [
        {ticket.owner.container: ticket.shares}
        for ticket in view.tickets
        if ticket.owner is not None and ticket.owner != owner
    ]
    over = _overfull(booked(view.cards, [*held, {owner.container: tuple(shares)}]))
    mine = {share.uuid for share in shares}
    return sorted(mine & (over | broken))


def _overfull(found: Iterable[CardRoom]) -> set[str]:
    return {
        room.card.uuid
        for room in found
        if (room.whole and room.shares > 1)
        or room.taken_cores > 100
        or (not room.whole and room.taken_bytes > room.card.memory_bytes)
    }


def _named(view: View, uuids: Iterable[str]) -> str:
    """Cards for a sentence."""
    known: dict[str, NodeCard] = {card.uuid: card for card in view.cards}
    return ", ".join(f"{known[uuid].index} ({uuid})" if uuid in known else uuid for uuid in uuids)

"""Whom a call of `Allocate` is for, and what it gets: a pure function of what the node knows.

The kubelet says how many ids of one resource some container gets, and not which one. It admits one pod after
the other, and knows a pod from when it begins to: so the one that it lists, that asks so many and has none,
is nearly always the one. Of a container that asks both resources it knows at the second whose the first was.
Where that says too little, the earliest created is taken; who it really is shows when the container starts
(starting.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deviceplugin.state import Ids, NodePod, Owner, Resource, Ticket, View, count_of
from vcuda.kube.asks import PodAsk
from vcuda.kube.placements import CardShare
from vcuda.kube.placing import CardRoom, Shares, booked, place_on


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The ticket that a call is answered with; its name is empty for a new one."""

    ticket: Ticket
    void: tuple[Ticket, ...] = ()
    """Tickets that are worth nothing any more."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Nobody can be given these ids."""

    text: str
    """Which pods were seen, and why each is none."""
    pods: tuple[NodePod, ...] = ()
    """Those that asked for so much and were turned away."""
    reason: str = "NobodyAsks"


def allocate(view: View, resource: Resource, ids: Ids) -> Allocation | Refused:
    """Decide one call of `Allocate`. Without the kubelet's account it would be a guess, and is refused."""
    if not view.account.known:
        text = f"{len(ids)} of {resource} asked: the kubelet's pod-resources API does not answer"
        return Refused(text=text, reason="KubeletSilent")
    stale = [ticket for ticket in view.tickets if _worthless(view, ticket)]
    view = replace(view, tickets=[ticket for ticket in view.tickets if ticket not in stale])
    before = [ticket for ticket in view.tickets if ticket.ids.get(resource, frozenset()) & ids]
    alive = {ticket.name: owner for ticket in before if (owner := _alive(view, ticket)) is not None}
    # Where somebody lists all pods just when one has ended, the kubelet may give ids out twice: a ticket that
    # a living pod has is worth as much as before.
    given = [ticket for ticket in before if ticket.name not in alive]
    candidates = _candidates(view, resource, len(ids))
    # Else ids that a living pod has are its own once more: its init container's, lent to its other ones.
    lenders = {owner.uid for owner in alive.values()}
    own = [owner for owner in candidates if owner.uid in lenders]
    # A pod that was served once, and does not have it, was refused by the kubelet; nearly always.
    served = {owner.uid for owner in candidates if _was_served(view, owner, resource)}
    candidates = own or sorted(
        candidates, key=lambda owner: (view.pods[owner.uid].spent, owner.uid in served)
    )
    if not candidates:
        return _refused(view, resource, len(ids))
    half = _half_made(view, resource, candidates)
    if half is not None:
        ticket, owner = half
        if ticket.meant != owner and not _could_hold(view, owner, ticket):
            text = f"{owner}: was served with cards that it cannot hold; create the pod again"
            return Refused(text=text, pods=(view.pods[owner.uid],), reason="CardsMistaken")
        completed = replace(ticket, ids={**ticket.ids, resource: ids})
        return _with_void(Allocation(ticket=completed), stale, given, owner)
    chosen = candidates[0]
    again = next((ticket for ticket in view.tickets if _is_of(view, ticket, chosen)), None)
    if (
        again is not None
    ):  # the kubelet has forgotten what it was given; a directory that it has mounted stays
        made = Allocation(ticket=replace(again, ids={**again.ids, resource: ids}))
    else:
        found = _make(view, chosen, resource, ids)
        if isinstance(found, Refused):
            return found
        made = found
    return _with_void(made, stale, given, chosen)


def doubtful(view: View, resource: Resource, count: int) -> bool:
    """Whether several pods may be meant: all but one are over, as kubelets before 1.34 list those too."""
    return len({owner.uid for owner in _candidates(view, resource, count)}) > 1


def rooms(view: View, *, but: Owner | None = None) -> list[CardRoom]:
    """The cards with what is booked on them: placed pods that are not over, and tickets that are held.

    but: a container that is left out.
    """
    return booked(view.cards, holders(view, but=but))


def holders(view: View, *, but: Owner | None = None) -> list[Shares]:
    """What is booked on the node's cards. A ticket that is held says it better than a placement."""
    held = {
        ticket.owner: ticket for ticket in view.tickets if ticket.owner is not None and ticket.owner != but
    }
    found: list[Shares] = [{owner.container: ticket.shares} for owner, ticket in held.items() if owner]
    for pod in view.pods.values():
        if not pod.over and pod.fault is None:
            found += [
                {name: shares}
                for name, shares in pod.shares(view.moved).items()
                if (owner := pod.owner(name)) not in held and owner != but
            ]
    return found


def _worthless(view: View, ticket: Ticket) -> bool:
    """A ticket that was never used, and never will be: of a pod that is over, or of one that gets nothing."""
    if ticket.owner is not None:
        return False
    holder = view.holder(ticket)
    pod = view.pods.get((holder or ticket.meant).uid)
    if pod is None:
        return holder is None  # else of one that we have not heard of yet
    return pod.over or pod.fault is not None


def _was_served(view: View, owner: Owner, resource: Resource) -> bool:
    return any(ticket.meant == owner and resource in ticket.ids for ticket in view.tickets)


def _alive(view: View, ticket: Ticket) -> Owner | None:
    """Who has a ticket by the kubelet's own account, if that is a pod that is not over."""
    holding = _holding(view, ticket)
    pod = None if holding is None else view.pods.get(holding.uid)
    return holding if pod is not None and not pod.over else None


def _candidates(view: View, resource: Resource, count: int) -> list[Owner]:
    """The containers that ask so many of a resource and have none, first come first."""
    found: list[Owner] = []
    for pod in view.running():
        # The kubelet lists a pod before it asks for it; one that it does not list it has not looked at.
        unlisted = (pod.namespace, pod.name) not in view.account.listed
        if pod.fault is not None or unlisted:
            continue
        for ask in pod.ask.containers:
            owner = pod.owner(ask.container)
            if count_of(ask, resource) == count and not view.account.holds(owner, resource):
                found.append(owner)
    return found


def _half_made(view: View, resource: Resource, candidates: Sequence[Owner]) -> tuple[Ticket, Owner] | None:
    """The ticket that waits for this resource, and whose it is.

    The kubelet asks for all of one container, one after the other, and knows when it asks for the second
    whose the first was. Where it does not answer, only the last one made can be that.
    """
    mine = [ticket for ticket in view.tickets if ticket.owner is None]
    for ticket in mine:
        holding = _holding(view, ticket)
        if holding is not None and holding in candidates:
            return ticket, holding  # what it has of this resource, if anything, came to nothing
    waiting = [ticket for ticket in mine if resource not in ticket.ids]
    latest = max(view.tickets, key=lambda ticket: ticket.asked_ns, default=None)
    if latest is None or latest not in waiting:
        return None
    holding = _holding(view, latest)
    if holding is not None:  # by one that we have not heard of yet: the rest is for it too
        return (latest, latest.meant) if holding.uid not in view.pods else None
    alike = [owner for owner in candidates if _asks(view, owner, latest)]
    if latest.meant in alike:
        return latest, latest.meant
    return (latest, alike[0]) if alike else None


def _is_of(view: View, ticket: Ticket, owner: Owner) -> bool:
    """Whether a ticket is a container's, or was thought for it and is nobody else's."""
    if ticket.owner is not None:
        return ticket.owner == owner
    return ticket.meant == owner and view.holder(ticket) in (None, owner)


def _holding(view: View, ticket: Ticket) -> Owner | None:
    """Who has a ticket's ids by the kubelet's account."""
    return view.holder(replace(ticket, owner=None))


def _asks(view: View, owner: Owner, ticket: Ticket) -> bool:
    ask = view.asked(owner)
    return ask is not None and all(count_of(ask, each) == len(ids) for each, ids in ticket.ids.items())


def _could_hold(view: View, owner: Owner, ticket: Ticket) -> bool:
    if view.current(owner) is None:
        return True  # nobody placed it anywhere; whether there is room shows when it starts
    from deviceplugin.starting import exchanged  # which stands on this module

    return exchanged(view, owner, ticket) is not None


def _make(view: View, chosen: Owner, resource: Resource, ids: Ids) -> Allocation | Refused:
    pod = view.pods[chosen.uid]
    shares, meant = view.current(chosen), chosen
    if shares is None:
        shares = _placed_here(view, chosen, pod.ask)
        if shares is None:
            text = f"{chosen}: no card of this node has room for it; see 'vcuda ps'"
            return Refused(text=text, pods=(pod,), reason="NoRoom")
    else:
        meant = _unserved(view, chosen)
        shares = view.current(meant) or shares
    missing = {share.uuid for share in shares} - {card.uuid for card in view.cards}
    if missing:
        text = f"{chosen}: card {', '.join(sorted(missing))} of its placement is not on this node any more"
        return Refused(text=text, pods=(pod,), reason="CardGone")
    priority = pod.ask.priority if pod.placement is None else pod.placement.priority
    ticket = Ticket(name="", ids={resource: ids}, shares=shares, priority=priority, meant=meant)
    return Allocation(ticket=ticket)


def _placed_here(view: View, chosen: Owner, ask: PodAsk) -> tuple[CardShare, ...] | None:
    """Where nobody else places pods: a card that has room beside everything that is held or about to be."""
    about = [
        {ticket.meant.container: ticket.shares}
        for ticket in view.tickets
        if ticket.owner is None and view.current(ticket.meant) is None
    ]
    room = booked(view.cards, [*holders(view), *about])
    only = replace(
        ask, containers=tuple(each for each in ask.containers if each.container == chosen.container)
    )
    found = place_on(room, only, unit_bytes=view.unit_bytes, policy=view.policy)
    return None if found is None else found[chosen.container]


def _unserved(view: View, chosen: Owner) -> Owner:
    """Whose cards a container is given: its own, unless a ticket for them is in the hands of another one.

    Then that one's, which it will not need; and so on. Only among equals: they will be exchanged.
    """
    owner, seen = chosen, {chosen}
    while True:
        taken = next((t for t in view.tickets if t.owner is None and t.meant == owner), None)
        holder = None if taken is None else view.holder(taken)
        if holder is None or holder in seen or not _equal(view, holder, chosen):
            return owner if taken is None else chosen
        seen.add(holder)
        owner = holder


def _equal(view: View, one: Owner, other: Owner) -> bool:
    """Whether two containers' shares are the same but for the cards."""
    first, second = view.current(one), view.current(other)
    if first is None or second is None or len(first) != len(second):
        return False
    return [replace(share, uuid="") for share in first] == [replace(share, uuid="") for share in second]


def _with_void(
    found: Allocation, stale: Sequence[Ticket], given: Sequence[Ticket], chosen: Owner
) -> Allocation:
    """Also void what had these ids before and is held no more, but for tickets of the same pod."""
    kept = found.ticket.name
    over = [t for t in given if t.name != kept and (t.owner or t.meant).uid != chosen.uid]
    void = {ticket.name: ticket for ticket in (*stale, *over)}
    return replace(found, void=tuple(void.values()))


def _refused(view: View, resource: Resource, count: int) -> Refused:
    """Say what was seen."""
    seen: list[str] = []
    turned_away: list[NodePod] = []
    for pod in view.running():
        for ask in pod.ask.containers:
            if count_of(ask, resource) != count:
                continue
            if pod.fault is not None:
                turned_away.append(pod)
                seen.append(f"{pod.namespace}/{pod.name}: {pod.fault}")
            elif (pod.namespace, pod.name) not in view.account.listed:
                seen.append(f"{pod.namespace}/{pod.name} is not the one")
            else:
                seen.append(f"{pod.namespace}/{pod.name} has its own")
    among = "; ".join(dict.fromkeys(seen)) or "no pod of this node asks so many"
    reason = "NotPlaced" if turned_away else "NobodyAsks"
    return Refused(
        text=f"{count} of {resource} asked, for a container that vcuda did not place here: {among}",
        pods=tuple(dict.fromkeys(turned_away)),
        reason=reason,
    )

"""Device ids: opaque units, so many as the cards have; and those withdrawn for a card that is not well."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from deviceplugin.state import Resource, Ticket
from vcuda.kube.names import CORES_PER_CARD
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placing import NOMINAL_EIGHTHS


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the kubelet is told of one resource: all ids, and those that are not to be given out."""

    ids: tuple[str, ...]
    withdrawn: frozenset[str]


def per_card(card: NodeCard, resource: Resource, *, unit_bytes: int, nominal: bool) -> int:
    """How many ids a card stands for.

    nominal: as many of memory as may be asked with the whole card, which is what it is sold with: then the
    controller says what fits. Else as many as there are.
    """
    if resource is Resource.CORE:
        return CORES_PER_CARD
    return card.memory_bytes * (8 if nominal else NOMINAL_EIGHTHS) // NOMINAL_EIGHTHS // unit_bytes


def offer(
    cards: Sequence[NodeCard],
    resource: Resource,
    *,
    tickets: Iterable[Ticket],
    unit_bytes: int,
    nominal: bool,
) -> Offer:
    """Withdraw as many ids as cards that are not well stand for.

    First those that containers on these cards have, then such as nobody has: a container on a card that is
    well keeps ids that are well, whatever happens elsewhere.
    """
    counts = {card.uuid: per_card(card, resource, unit_bytes=unit_bytes, nominal=nominal) for card in cards}
    ids = tuple(f"{resource}-{number:04}" for number in range(sum(counts.values())))
    broken = {card.uuid for card in cards if not card.healthy}
    to_withdraw = sum(counts[uuid] for uuid in broken)
    on_broken: set[str] = set()
    on_others: set[str] = set()
    for ticket in tickets:
        (on_broken if broken & set(ticket.cards) else on_others).update(ticket.ids.get(resource, ()))
    order = sorted(ids, key=lambda each: (each not in on_broken, each in on_others))
    return Offer(ids=ids, withdrawn=frozenset(order[:to_withdraw]))

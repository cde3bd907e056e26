"""Placing, for any nodes and requests: never beyond a card, what fits is found, arrays and rules agree."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from admission.placing.cluster import Choice, Cluster, Holder, Request
from tests.kube_objects import GIB, NAMES, node
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.eligibility import Amounts, NodeFacts, node_facts
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import PodPlacement
from vcuda.kube.placing import CardRoom, booked, emptied, place_on, preference, refusals

POLICIES = ("binpack", "spread")


@st.composite
def asks(draw: st.DrawFn, most: int = 3) -> PodAsk:
    containers = []
    for index in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(["share", "share", "memory", "whole"]))
        containers.append(
            Ask(
                container=f"c{index}",
                cores={
                    "share": draw(st.sampled_from([1, 10, 30, 50, 99])),
                    "memory": 0,
                    "whole": 100 * draw(st.integers(1, 3)),
                }[kind],
                memory_units=draw(st.sampled_from([1, 8, 24, 40, 64]))
                if kind != "whole"
                else draw(st.sampled_from([0, 64])),
                memory_bytes=draw(st.none() | st.sampled_from([2**28 - 2**20, 8065 * 2**20])),
            )
        )
    return PodAsk(
        containers=tuple(containers),
        cores_max=draw(st.none() | st.just(100)),
        policy=draw(st.none() | st.sampled_from(POLICIES)),
    )


@st.composite
def machines(draw: st.DrawFn) -> list[NodeFacts]:
    found = []
    for index in range(draw(st.integers(1, 5))):
        cards = [
            NodeCard(
                uuid=f"n{index}-{card}",
                index=card,
                model="test",
                memory_bytes=draw(st.sampled_from([16 * GIB, 15 * GIB, 40 * GIB])),
                healthy=draw(st.sampled_from([True, True, True, False])),
            )
            for card in range(draw(st.integers(1, 4)))
        ]
        unit = draw(st.sampled_from([2**28, 2**28, 2**30]))
        found.append(node_facts(node(f"n{index}", cards, unit_bytes=unit), NAMES))
    return found


def sound(choice: Choice, cluster_rooms: list[CardRoom], ask: PodAsk, unit: int) -> None:
    """What was chosen has room, is healthy, and is what was asked."""
    rooms = {room.card.uuid: room for room in cluster_rooms}
    used: Counter[str] = Counter()
    for asked in ask.containers:
        shares = choice.shares[asked.container]
        assert len({share.uuid for share in shares}) == len(shares) == max(1, asked.whole)
        for share in shares:
            room = rooms[share.uuid]
            assert room.card.healthy
            assert 0 < share.cores <= share.cores_max <= 100
            if asked.whole:
                assert share.whole
                assert share.memory_bytes == room.card.memory_bytes
                assert room.shares == 0
            else:
                assert share.memory_bytes == min(asked.memory_units * unit, asked.memory_bytes or 2**63)
                assert share.cores == asked.cores or not asked.cores
            used[share.uuid] += 1
            rooms[share.uuid] = room.with_share(share)
    for uuid, room in rooms.items():
        assert room.taken_cores <= 100
        assert room.taken_bytes <= room.card.memory_bytes
        assert not room.whole or room.shares == 1
        assert room.shares >= used[uuid]


def exhaustive(rooms: list[CardRoom], asked: list[Ask], ask: PodAsk, unit: int) -> bool:
    """Whether there is any way at all: every card for every container is tried."""
    if not asked:
        return True
    first, rest = asked[0], asked[1:]
    alone = replace(ask, containers=(first,))
    if first.whole > 1:  # one card after the other
        one = replace(first, cores=100, memory_units=-(-first.memory_units // first.whole))
        fewer = replace(
            first,
            cores=first.cores - 100,
            memory_units=-(-first.memory_units // first.whole) * (first.whole - 1),
        )
        return exhaustive(rooms, [one, fewer, *rest], ask, unit)
    for index, room in enumerate(rooms):
        shares = place_on([room], alone, unit_bytes=unit, policy="binpack")
        if shares is not None:
            after = list(rooms)
            after[index] = room.with_share(shares[first.container][0])
            if exhaustive(after, rest, ask, unit):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(machines(), st.lists(asks(), min_size=1, max_size=14), st.sampled_from(POLICIES))
def test_nothing_is_promised_twice_and_what_fits_is_found(
    nodes: list[NodeFacts], wanted: list[PodAsk], policy: str
) -> None:
    cluster = Cluster(policy=policy)
    for each in nodes:
        cluster.set_node(each)
    for index, ask in enumerate(wanted):
        before = {name: cluster.rooms(name) for name in cluster.nodes}
        units = {name: facts.cards.memory_unit_bytes for name, facts in cluster.nodes.items() if facts.cards}
        choice = cluster.place(Request(ask))
        possible = {
            name
            for name, rooms in before.items()
            if exhaustive(rooms, list(ask.containers), ask, units[name])
        }
        assert (choice is not None) == bool(possible)
        if choice is None:
            assert cluster.never(Request(ask)) is None or not any(
                exhaustive(emptied(rooms), list(ask.containers), ask, units[name])
                for name, rooms in before.items()
            )
            continue
        sound(choice, before[choice.node], ask, units[choice.node])
        holder = Holder(
            placement=PodPlacement(uid=str(index), node=choice.node, containers=choice.shares),
            amounts=Amounts(),
        )
        cluster.book(str(index), choice.node, holder)


@settings(max_examples=150, deadline=None)
@given(machines(), st.lists(asks(1), min_size=1, max_size=14), st.sampled_from(POLICIES))
def test_arrays_choose_what_the_rules_prefer(
    nodes: list[NodeFacts], wanted: list[PodAsk], policy: str
) -> None:
    """Of single containers: the card that is preferred most in the cluster, found by looking at each."""
    cluster = Cluster(policy=policy)
    for each in nodes:
        cluster.set_node(each)
    for index, ask in enumerate(wanted):
        choice = cluster.place(Request(ask))
        best = _by_looking(cluster, ask, ask.policy or policy)
        assert (None if choice is None else (choice.node, choice.shares["c0"][0].uuid)) == best
        if choice is not None:
            placement = PodPlacement(uid=str(index), node=choice.node, containers=choice.shares)
            cluster.book(str(index), choice.node, Holder(placement=placement, amounts=Amounts()))


def _by_looking(cluster: Cluster, ask: PodAsk, policy: str) -> tuple[str, str] | None:
    found = []
    for name in sorted(cluster.nodes):
        cards = cluster.nodes[name].cards
        assert cards is not None
        unit = cards.memory_unit_bytes
        rooms = cluster.rooms(name)
        fitting = [room for room in rooms if not refusals([room], ask, unit_bytes=unit)]
        if len(fitting) < max(1, ask.containers[0].whole):
            continue
        empty = sum(room.shares == 0 and room.card.healthy for room in rooms)
        if ask.containers[0].whole:
            smallest = min(fitting, key=lambda room: (room.card.memory_bytes, room.card.index))
            size = smallest.card.memory_bytes // GIB
            order = (size, len(fitting)) if policy == "binpack" else (-len(fitting),)
            found.append((order, name, smallest.card.index, smallest.card.uuid))
        else:
            found.extend(
                (
                    (-preference(room, policy), empty if policy == "binpack" else -empty),
                    name,
                    room.card.index,
                    room.card.uuid,
                )
                for room in fitting
            )
    if not found:
        return None
    _, name, _, uuid = min(found)
    return name, uuid


@settings(max_examples=100, deadline=None)
@given(machines(), st.lists(asks(2), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_cluster_is_the_same_however_it_became_known(
    nodes: list[NodeFacts], wanted: list[PodAsk], chance: random.Random
) -> None:
    """Step by step, with pods that end and nodes that go and come, or all at once and in another order."""
    grown = Cluster()
    for each in nodes:
        grown.set_node(each)
    books: dict[str, tuple[str, Holder]] = {}
    for index, ask in enumerate(wanted):
        choice = grown.place(Request(ask))
        if choice is not None:
            placement = PodPlacement(uid=str(index), node=choice.node, containers=choice.shares)
            books[str(index)] = choice.node, Holder(placement=placement, amounts=Amounts(pods=1))
            grown.book(str(index), *books[str(index)])
        if books and chance.random() < 0.3:
            ended = chance.choice(sorted(books))
            del books[ended]
            assert grown.unbook(ended)
        if chance.random() < 0.2:
            away = chance.choice(nodes)
            grown.remove_node(away.name)
            grown.set_node(away)
    fresh = Cluster()
    for uid, book in sorted(books.items(), key=lambda _: chance.random()):
        fresh.book(uid, *book)
    for each in sorted(nodes, key=lambda _: chance.random()):
        fresh.set_node(each)
    for each in nodes:
        assert fresh.rooms(each.name) == grown.rooms(each.name)
        assert each.cards is not None
        held = [book.placement.containers for node, book in books.values() if node == each.name]
        assert fresh.rooms(each.name) == booked(each.cards.cards, held)
    for ask in wanted:
        assert fresh.place(Request(ask)) == grown.place(Request(ask))
        if fresh.never(Request(ask)) is None:
            assert fresh.reserve(Request(ask)) == grown.reserve(Request(ask))

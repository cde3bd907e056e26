"""Placing by examples: what is chosen, what it is given, and the reasons for what is not."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from admission.placing.cluster import Cluster, Holder, Request, request_of
from tests.kube_objects import GIB, NAMES, container, node, pod
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.eligibility import Amounts, amounts_of, lacking, node_facts, rules_of, why_not
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import CardShare, PodPlacement
from vcuda.kube.placing import CardRoom, Reason, book_unknown, booked, held, needed_bytes, place_on, refusals
from vcuda.kube.pods import pod_facts

UNIT = 2**28


def card(index: int, gib: int = 16, *, healthy: bool = True) -> NodeCard:
    return NodeCard(uuid=f"g{index}", index=index, model="test", memory_bytes=gib * GIB, healthy=healthy)


def room(
    index: int, cores: int = 0, gib: float = 0, *, of: int = 16, shares: int | None = None, **more: Any
) -> CardRoom:
    count = (1 if cores or gib else 0) if shares is None else shares
    return CardRoom(card=card(index, of), taken_cores=cores, taken_bytes=int(gib * GIB), shares=count, **more)


def ask(*asked: tuple[int, int], **more: Any) -> PodAsk:
    return PodAsk(
        containers=tuple(
            Ask(container=f"c{index}", cores=cores, memory_units=units)
            for index, (cores, units) in enumerate(asked)
        ),
        **more,
    )


def chosen(rooms: list[CardRoom], wanted: PodAsk, policy: str = "binpack") -> list[list[int]] | None:
    shares = place_on(rooms, wanted, unit_bytes=UNIT, policy=policy)
    return None if shares is None else [[int(s.uuid[1:]) for s in each] for each in shares.values()]


CHOICES = {
    "binpack takes the fullest card that has room": (
        [room(0), room(1, 30, 6), room(2, 80, 6)],
        ask((30, 24)),
        "binpack",
        [[1]],
    ),
    "spread takes the emptiest": ([room(0, 10, 1), room(1, 30, 6)], ask((30, 24)), "spread", [[0]]),
    "the pod's own policy comes before the cluster's": (
        [room(0), room(1, 30, 6)],
        ask((30, 24), policy="spread"),
        "binpack",
        [[0]],
    ),
    "of equally full cards the smallest that will do": (
        [room(0, of=80), room(1)],
        ask((30, 24)),
        "binpack",
        [[1]],
    ),
    "a card that is too small is passed over": ([room(0, of=8), room(1)], ask((30, 40)), "binpack", [[1]]),
    "a whole card is one without any share": ([room(0, 1, 0.25), room(1)], ask((100, 0)), "binpack", [[1]]),
    "two whole cards are two cards": ([room(0), room(1, 5, 1), room(2)], ask((200, 0)), "binpack", [[0, 2]]),
    "too few empty cards": ([room(0), room(1, 5, 1)], ask((200, 0)), "binpack", None),
    "a card that one has alone takes nobody": ([room(0, whole=True, shares=1)], ask((1, 1)), "binpack", None),
    "containers share a card where both fit": (
        [room(0), room(1)],
        ask((50, 32), (50, 32)),
        "binpack",
        [[0], [0]],
    ),
    "containers go to two cards where they must": (
        [room(0), room(1)],
        ask((60, 8), (60, 8)),
        "binpack",
        [[0], [1]],
    ),
    "the first container gives way to the second": (
        [room(0, 50, 4), room(1, 30, 2)],
        ask((40, 8), (60, 8)),
        "binpack",
        [[0], [1]],
    ),
    "whole cards and a share": ([room(0), room(1)], ask((30, 8), (100, 0)), "binpack", [[1], [0]]),
    "three that fit on two cards in one way only": (
        [room(0), room(1)],
        ask((50, 4), (50, 4), (100, 0)),
        "binpack",
        [[1], [1], [0]],
    ),
    "memory alone takes its part of the cores": ([room(0, 60, 0)], ask((0, 32)), "binpack", None),
    "memory alone fits where that is free": ([room(0, 50, 0)], ask((0, 32)), "binpack", [[0]]),
    "16 GiB are asked with a whole card that shows 15": ([room(0, of=15)], ask((100, 64)), "binpack", [[0]]),
    "not of one with 8": ([room(0, of=8)], ask((100, 64)), "binpack", None),
    "memory of two whole cards is of both together": (
        [room(0), room(1)],
        ask((200, 128)),
        "binpack",
        [[0, 1]],
    ),
}


@pytest.mark.parametrize(("rooms", "wanted", "policy", "expected"), CHOICES.values(), ids=CHOICES)
def test_choice(rooms: list[CardRoom], wanted: PodAsk, policy: str, expected: list[list[int]] | None) -> None:
    assert chosen(rooms, wanted, policy) == expected


GIVEN = {
    "cores and memory": (ask((30, 24)), CardShare(uuid="g0", cores=30, cores_max=30, memory_bytes=6 * GIB)),
    "a ceiling": (
        ask((30, 24), cores_max=60),
        CardShare(uuid="g0", cores=30, cores_max=60, memory_bytes=6 * GIB),
    ),
    "memory alone is elastic": (
        ask((0, 8)),
        CardShare(uuid="g0", cores=12, cores_max=100, memory_bytes=2 * GIB),
    ),
    "memory alone with a ceiling": (
        ask((0, 8), cores_max=20),
        CardShare(uuid="g0", cores=12, cores_max=20, memory_bytes=2 * GIB),
    ),
    "a ceiling below memory's part is the guarantee": (
        ask((0, 32), cores_max=20),
        CardShare(uuid="g0", cores=20, cores_max=20, memory_bytes=8 * GIB),
    ),
    "a whole card": (
        ask((100, 64)),
        CardShare(uuid="g0", cores=100, cores_max=100, memory_bytes=16 * GIB, whole=True),
    ),
}


@pytest.mark.parametrize(("wanted", "expected"), GIVEN.values(), ids=GIVEN)
def test_share_that_is_given(wanted: PodAsk, expected: CardShare) -> None:
    assert place_on([room(0)], wanted, unit_bytes=UNIT, policy="binpack") == {"c0": (expected,)}


def test_little_memory_has_one_percent_at_least() -> None:
    shares = place_on([room(0, of=80)], ask((0, 1)), unit_bytes=UNIT, policy="binpack")
    assert shares is not None
    assert shares["c0"][0].cores == 1


REFUSED = {
    "unhealthy": (CardRoom(card=card(0, healthy=False)), (10, 4), Reason.CARD_UNHEALTHY, "unhealthy"),
    "too small": (room(0), (10, 80), Reason.CARD_TOO_SMALL, "20GiB needed, the card has 16GiB"),
    "taken whole": (
        room(0, whole=True, shares=1),
        (10, 4),
        Reason.CARD_TAKEN_WHOLE,
        "one share has it alone",
    ),
    "in use": (room(0, 10, 1, shares=2), (100, 0), Reason.CARD_IN_USE, "to be had alone, and has 2 shares"),
    "memory": (room(0, 10, 12), (10, 24), Reason.MEMORY_TAKEN, "6GiB asked, 4GiB free"),
    "cores": (room(0, 80, 1), (30, 4), Reason.CORES_TAKEN, "30% of cores asked, 20% free"),
    "more promised than there is": (room(0, 120, 17), (30, 4), Reason.MEMORY_TAKEN, "1GiB asked, 0B free"),
}


@pytest.mark.parametrize(("where", "asked", "reason", "text"), REFUSED.values(), ids=REFUSED)
def test_reason_of_a_card(where: CardRoom, asked: tuple[int, int], reason: Reason, text: str) -> None:
    (found,) = refusals([where], ask(asked), unit_bytes=UNIT)
    assert (found.reason, found.text, found.container) == (reason, text, "c0")
    assert chosen([where], ask(asked)) is None


def test_needed_memory_of_arrays_is_that_of_the_rules() -> None:
    cluster = Cluster()
    cluster.set_node(node_facts(node("n", [16], unit_bytes=UNIT), NAMES))
    for asked in (ask((30, 24)), ask((100, 64)), ask((300, 100)), ask((0, 7))):
        table = cluster._table
        assert int(table.needed(asked.containers[0])[cluster._rows["n"], 0]) == needed_bytes(
            asked.containers[0], UNIT
        )


# Who holds what


def test_moved_share_is_where_the_node_says() -> None:
    share = CardShare(uuid="g0", cores=30, cores_max=30, memory_bytes=GIB)
    placement = PodPlacement(uid="u", node="n", containers={"a": (share,), "b": (share,)})
    found = held(placement, {"u": {"a": ("g1",)}, "other": {"b": ("g1",)}})
    assert {name: shares[0].uuid for name, shares in found.items()} == {"a": "g1", "b": "g0"}


def test_move_to_another_number_of_cards_is_not_believed() -> None:
    share = CardShare(uuid="g0", cores=30, cores_max=30, memory_bytes=GIB)
    placement = PodPlacement(uid="u", node="n", containers={"a": (share,)})
    assert held(placement, {"u": {"a": ("g1", "g2")}}) == placement.containers


def test_pod_of_unknown_placement_takes_what_it_asks_where_it_fits() -> None:
    assert {
        s.uuid
        for each in book_unknown([room(0, 90, 1), room(1)], ask((50, 8)), unit_bytes=UNIT).values()
        for s in each
    } == {"g1"}


def test_pod_of_unknown_placement_that_fits_nowhere_takes_the_freest_card() -> None:
    rooms = [room(0, 90, 1), room(1, 80, 1)]
    shares = book_unknown(rooms, ask((50, 8)), unit_bytes=UNIT)
    after = booked([each.card for each in rooms], [shares])
    assert [each.taken_cores for each in after] == [0, 50]


def test_unknown_pods_are_booked_by_the_cluster_beside_known_ones() -> None:
    cluster = Cluster()
    cluster.set_node(node_facts(node("n", [16, 16]), NAMES))
    cluster.book("u", "n", Holder(placement=ask((70, 8)), amounts=Amounts()))
    assert cluster.place(Request(ask((200, 0)))) is None
    assert [each.taken_cores for each in cluster.rooms("n")] == [70, 0]
    cluster.unbook("u")
    assert cluster.place(Request(ask((200, 0)))) is not None


# Nodes


def rule(**spec: Any) -> Any:
    return rules_of(pod("p", 10, 4, **spec))


def affinity(*terms: dict[str, Any]) -> dict[str, Any]:
    required = {"nodeSelectorTerms": list(terms)}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


TAINT = {"key": "gpu", "value": "yes", "effect": "NoSchedule"}
LABELS = {"zone": "a", "size": "7"}
NODES = {
    "may": (node("n"), {}, None),
    "not ready": (node("n", ready=False), {}, Reason.NODE_NOT_READY),
    "its agent is away": (node("n", served=False), {}, Reason.NODE_NOT_SERVED),
    "cordoned": (node("n", cordoned=True), {}, Reason.NODE_CORDONED),
    "cordoned, and tolerated": (node("n", cordoned=True), {"tolerations": [{"operator": "Exists"}]}, None),
    "tainted": (node("n", taints=[TAINT]), {}, Reason.NODE_TAINTED),
    "tolerated by value": (
        node("n", taints=[TAINT]),
        {"tolerations": [{"key": "gpu", "value": "yes"}]},
        None,
    ),
    "tolerated by key": (
        node("n", taints=[TAINT]),
        {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        None,
    ),
    "another value is not tolerated": (
        node("n", taints=[TAINT]),
        {"tolerations": [{"key": "gpu", "value": "no"}]},
        Reason.NODE_TAINTED,
    ),
    "another effect is not tolerated": (
        node("n", taints=[TAINT]),
        {"tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute"}]},
        Reason.NODE_TAINTED,
    ),
    "a taint that only prefers": (node("n", taints=[{**TAINT, "effect": "PreferNoSchedule"}]), {}, None),
    "selected": (node("n", labels=LABELS), {"nodeSelector": {"zone": "a"}}, None),
    "selected against": (
        node("n", labels=LABELS),
        {"nodeSelector": {"zone": "b"}},
        Reason.NODE_SELECTED_AGAINST,
    ),
    "without the label": (node("n"), {"nodeSelector": {"zone": "b"}}, Reason.NODE_SELECTED_AGAINST),
    "In": (node("n", labels=LABELS), {"affinity": affinity(expression("zone", "In", "b", "a"))}, None),
    "not In": (
        node("n", labels=LABELS),
        {"affinity": affinity(expression("zone", "In", "b"))},
        Reason.NODE_AFFINITY,
    ),
    "NotIn": (node("n", labels=LABELS), {"affinity": affinity(expression("zone", "NotIn", "b"))}, None),
    "NotIn without the label": (node("n"), {"affinity": affinity(expression("zone", "NotIn", "b"))}, None),
    "not NotIn": (
        node("n", labels=LABELS),
        {"affinity": affinity(expression("zone", "NotIn", "a"))},
        Reason.NODE_AFFINITY,
    ),
    "Exists": (node("n", labels=LABELS), {"affinity": affinity(expression("zone", "Exists"))}, None),
    "not Exists": (node("n"), {"affinity": affinity(expression("zone", "Exists"))}, Reason.NODE_AFFINITY),
    "DoesNotExist": (node("n"), {"affinity": affinity(expression("zone", "DoesNotExist"))}, None),
    "Gt": (node("n", labels=LABELS), {"affinity": affinity(expression("size", "Gt", "6"))}, None),
    "not Gt": (
        node("n", labels=LABELS),
        {"affinity": affinity(expression("size", "Gt", "7"))},
        Reason.NODE_AFFINITY,
    ),
    "Lt": (node("n", labels=LABELS), {"affinity": affinity(expression("size", "Lt", "8"))}, None),
    "not a number": (
        node("n", labels=LABELS),
        {"affinity": affinity(expression("zone", "Lt", "8"))},
        Reason.NODE_AFFINITY,
    ),
    "one term of two": (
        node("n", labels=LABELS),
        {"affinity": affinity(expression("zone", "In", "b"), expression("size", "Exists"))},
        None,
    ),
    "a term without requirements": (node("n"), {"affinity": affinity({})}, Reason.NODE_AFFINITY),
    "no terms": (node("n"), {"affinity": affinity()}, Reason.NODE_AFFINITY),
    "by name": (
        node("n"),
        {
            "affinity": affinity(
                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}
            )
        },
        None,
    ),
    "by another's name": (
        node("n"),
        {
            "affinity": affinity(
                {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n"]}]}
            )
        },
        Reason.NODE_AFFINITY,
    ),
    "no cards": ({"metadata": {"name": "n"}}, {}, Reason.NODE_WITHOUT_CARDS),
    "cards that cannot be read": (
        {"metadata": {"name": "n", "annotations": {NAMES.cards: "{"}}},
        {},
        Reason.NODE_WITHOUT_CARDS,
    ),
}


@pytest.mark.parametrize(("found", "spec", "reason"), NODES.values(), ids=NODES)
def test_node(found: dict[str, Any], spec: dict[str, Any], reason: Reason | None) -> None:
    why = why_not(node_facts(found, NAMES), rule(**spec))
    assert (None if why is None else why[0]) == reason


def test_pods_that_hold_other_cards_than_can_be_read_close_their_node() -> None:
    broken = node("n")
    broken["metadata"]["annotations"][NAMES.moved] = "[]"
    why = why_not(node_facts(broken, NAMES), rule())
    assert why is not None
    assert why[0] is Reason.NODE_WITHOUT_CARDS


def test_amounts_are_those_of_the_scheduler() -> None:
    found = pod(
        "p",
        containers=[container("a", 30, 4, cpu="500m", memory="1Gi"), container("b", cpu="1.5", memory="1e9")],
        initContainers=[
            {**container("side", cpu="250m"), "restartPolicy": "Always"},
            container("step", 60, 2, cpu="3"),
        ],
        overhead={"cpu": "10m", "memory": "1M"},
    )
    assert amounts_of(found, NAMES) == Amounts(
        cpu_milli=3250 + 10, memory_bytes=2**30 + 10**9 + 10**6, pods=1, core=60, memory_units=4
    )


def test_amounts_of_the_whole_pod_stand_for_its_containers() -> None:
    found = pod("p", 30, 4, resources={"requests": {"cpu": "7"}})
    assert amounts_of(found, NAMES) == Amounts(cpu_milli=7000, pods=1, core=30, memory_units=4)


def test_what_a_node_lacks_is_named() -> None:
    has = Amounts(cpu_milli=4000, pods=10)
    assert lacking(has, [Amounts(cpu_milli=3000, pods=1)], Amounts(cpu_milli=2000, pods=1)) == (
        "milli-CPUs: 2000 asked, 1000 of 4000 free"
    )
    assert not lacking(has, [], Amounts(cpu_milli=4000, pods=10))


# Clusters


def cluster_of(*nodes: dict[str, Any], policy: str = "binpack") -> Cluster:
    made = Cluster(policy=policy)
    for each in nodes:
        made.set_node(node_facts(each, NAMES))
    return made


def put(cluster: Cluster, uid: str, wanted: PodAsk, amounts: Amounts | None = None) -> str:
    choice = cluster.place(Request(wanted))
    assert choice is not None
    placement = PodPlacement(uid=uid, node=choice.node, containers=choice.shares)
    cluster.book(uid, choice.node, Holder(placement=placement, amounts=amounts or Amounts()))
    return choice.node


def test_shares_go_beside_shares_and_leave_nodes_empty() -> None:
    cluster = cluster_of(node("a", [16, 16]), node("b", [16, 16]))
    assert [put(cluster, f"u{i}", ask((30, 8))) for i in range(6)] == ["a"] * 6
    assert [each.shares for each in cluster.rooms("a")] == [3, 3]


def test_spread_uses_every_card_before_any_has_two() -> None:
    cluster = cluster_of(node("a", [16, 16]), node("b", [16, 16]), policy="spread")
    for index in range(4):
        put(cluster, f"u{index}", ask((30, 8)))
    assert [each.shares for name in "ab" for each in cluster.rooms(name)] == [1, 1, 1, 1]


def test_whole_cards_come_from_the_node_with_the_fewest_empty_ones() -> None:
    cluster = cluster_of(node("a", [16] * 4), node("b", [16] * 4))
    put(cluster, "u0", Request(ask((100, 0))).ask)
    assert put(cluster, "u1", ask((200, 0))) == "a"
    assert put(cluster, "u2", ask((200, 0))) == "b"
    assert put(cluster, "u3", ask((100, 0))) == "a"


def test_node_whose_cpus_are_taken_is_passed_over() -> None:
    cluster = cluster_of(node("a", [16], cpu="4"), node("b", [16], cpu="4"))
    put(cluster, "u0", ask((10, 4)), Amounts(cpu_milli=3000))
    wanted = Request(ask((10, 4)), amounts=Amounts(cpu_milli=2000))
    choice = cluster.place(wanted)
    assert choice is not None
    assert choice.node == "b"


def test_node_that_the_kubelet_offers_nothing_of_is_passed_over() -> None:
    gone = node("a", [16], **{NAMES.core: "0", NAMES.memory: "0"})
    facts = pod_facts(pod("p", 10, 4), NAMES)
    never = cluster_of(gone).never(request_of(facts))
    assert never is not None
    assert never[0] == Counter({Reason.NODE_FULL: 1})


def test_reasons_are_counted() -> None:
    cluster = cluster_of(
        node("a", [16, 16, 16, 1]),
        node("b", ready=False),
        node("c", taints=[TAINT]),
        node("d", [card(0, healthy=False)]),
    )
    put(cluster, "u0", ask((60, 8)))
    put(cluster, "u1", ask((50, 56)))
    put(cluster, "u2", ask((100, 64)))
    nodes, cards = cluster.reasons(Request(ask((60, 20))))
    assert nodes == Counter({Reason.NODE_NOT_READY: 1, Reason.NODE_TAINTED: 1})
    assert cards == Counter(
        {
            Reason.CORES_TAKEN: 1,
            Reason.MEMORY_TAKEN: 1,
            Reason.CARD_TAKEN_WHOLE: 1,
            Reason.CARD_TOO_SMALL: 1,
            Reason.CARD_UNHEALTHY: 1,
        }
    )


def test_table_grows_with_nodes_and_cards() -> None:
    cluster = cluster_of(*(node(f"n{index:03}", [16] * (1 + index % 12)) for index in range(100)))
    total = sum(1 + index % 12 for index in range(100))
    for index in range(total):
        put(cluster, f"u{index}", ask((100, 0)))
    assert cluster.place(Request(ask((100, 0)))) is None

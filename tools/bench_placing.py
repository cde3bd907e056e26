"""How long one placement takes in a large cluster: `python -m tools.bench_placing [--nodes N] [--cards N]`.

Pods of mixed shares are placed one after the other, each booked, until the cluster is two thirds full; then
one ends whenever one is placed. Measured is what the controller does for one pod, without any server: the
choice, the booking, and for one that finds no room the reasons and the reservation.
"""

import argparse
import json
import random
import time
from collections.abc import Callable
from typing import TypeVar

from admission.placing.cluster import Cluster, Holder, Request
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.eligibility import Amounts, NodeFacts, Rules
from vcuda.kube.nodes import NodeCard, NodeCards
from vcuda.kube.placements import PodPlacement

GIB = 2**30
SHARES = ((30, 24), (50, 16), (10, 4), (25, 32), (0, 12), (60, 40), (100, 0), (400, 0))
"""Cores and units of memory; the last two are whole cards."""

Result = TypeVar("Result")


class Times:
    """Durations of one kind, in ms."""

    def __init__(self) -> None:
        self._all: list[float] = []

    def measure(self, function: Callable[[], Result]) -> Result:
        """Call, and remember how long it took."""
        start = time.perf_counter_ns()
        result = function()
        self._all.append((time.perf_counter_ns() - start) / 1e6)
        return result

    def summary(self) -> dict[str, float]:
        """Count, median and the 99th percentile."""
        ordered = sorted(self._all) or [0.0]
        return {
            "count": len(self._all),
            "p50_ms": round(ordered[len(ordered) // 2], 3),
            "p99_ms": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 3),
        }


def node(index: int, cards: int) -> NodeFacts:
    """One node of eight kinds of labels."""
    name = f"node-{index:05}"
    return NodeFacts(
        name=name,
        labels={"zone": str(index % 8)},
        taints=(),
        ready=True,
        cordoned=False,
        cards=NodeCards(
            cards=tuple(
                NodeCard(uuid=f"{name}-{card}", index=card, model="bench", memory_bytes=16 * GIB)
                for card in range(cards)
            ),
            memory_unit_bytes=2**28,
        ),
        fault="",
        moved={},
        room=Amounts(cpu_milli=10**6, memory_bytes=2**42, pods=1000, core=10**6, memory_units=10**6),
    )


def request(chance: random.Random) -> Request:
    """One of the shares, in one of ten cases with a node selector, in one of twenty with two containers."""
    containers = [
        Ask(container=f"c{index}", cores=cores, memory_units=units)
        for index, (cores, units) in enumerate(chance.choices(SHARES, k=2 if chance.random() < 0.05 else 1))
    ]
    selector = {"zone": str(chance.randrange(8))} if chance.random() < 0.1 else {}
    return Request(
        PodAsk(containers=tuple(containers)),
        Rules(selector=selector),
        Amounts(cpu_milli=500, memory_bytes=GIB, pods=1),
    )


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nodes", type=int, default=5000, help="nodes of the cluster")
    parser.add_argument("--cards", type=int, default=8, help="cards of each")
    parser.add_argument(
        "--pods", type=int, default=2000, help="placements that are measured in the full cluster"
    )
    parser.add_argument("--policy", choices=("binpack", "spread"), default="binpack")
    options = parser.parse_args()
    chance = random.Random(1)
    cluster = Cluster(policy=options.policy)
    for index in range(options.nodes):
        cluster.set_node(node(index, options.cards))
    times = {name: Times() for name in ("place", "book", "unbook", "reasons", "reserve")}
    running: list[str] = []
    holding = 0
    target = options.nodes * options.cards * 100 * 2 // 3

    def step(uid: str, kept: dict[str, Times]) -> int:
        asked = request(chance)
        choice = kept["place"].measure(lambda: cluster.place(asked))
        if choice is None:
            kept["reasons"].measure(lambda: cluster.reasons(asked))
            kept["reserve"].measure(lambda: cluster.reserve(asked))
            cluster.reopen()
            return 0
        placement = PodPlacement(uid=uid, node=choice.node, containers=choice.shares)
        holder = Holder(placement=placement, amounts=asked.amounts)
        kept["book"].measure(lambda: cluster.book(uid, choice.node, holder))
        running.append(uid)
        return sum(share.cores for shares in choice.shares.values() for share in shares)

    filling = {name: Times() for name in times}
    count = 0
    while holding < target:
        count += 1
        holding += step(f"pod-{count}", filling)
    for _ in range(options.pods):
        count += 1
        step(f"pod-{count}", times)
        ended = running.pop(chance.randrange(len(running)))
        times["unbook"].measure(lambda ended=ended: cluster.unbook(ended))
    full = Request(PodAsk(containers=(Ask(container="c", cores=100 * options.cards, memory_units=0),)))
    for _ in range(50):
        times["reasons"].measure(lambda: cluster.reasons(full))
        times["reserve"].measure(lambda: cluster.reserve(full))
        cluster.reopen()
    print(
        json.dumps(
            {
                "nodes": options.nodes,
                "cards": options.cards,
                "policy": options.policy,
                "pods_running": len(running),
                **{name: each.summary() for name, each in times.items()},
                "place_while_filling": filling["place"].summary(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()

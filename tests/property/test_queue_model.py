"""The queue as a state machine: pods come and end, nodes come and go, the leader dies; what must always hold.

The API server is a dictionary of objects here. What the controller does is done to it one patch at a time,
and the leader may be another one, that knows nothing but these objects, between any two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from admission.placing.cluster import Cluster, Holder, request_of
from admission.placing.queue import ASIDE, Line, Placed, Turn, turn
from tests.kube_objects import GIB, NAMES, container, node, pod
from vcuda.kube import nodes
from vcuda.kube.eligibility import node_facts
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import PodPlacement
from vcuda.kube.pods import PodFacts, pod_facts

SHARES = [(30, 24), (40, 24), (10, 4), (50, 60), (0, 20), (90, 8), (1, 1)]
WHOLE = [(100, 0), (100, 64), (200, 0)]
IMPOSSIBLE = [(30, 4000), (1600, 0)]
QUEUES = ["a", "b", "c"]


class Leader:
    """What a controller has in its memory."""

    def __init__(
        self, nodes: dict[str, dict[str, Any]], pods: dict[str, PodFacts], held: dict[str, PodPlacement]
    ) -> None:
        self.cluster, self.line = Cluster(), Line()
        for each in nodes.values():
            self.cluster.set_node(node_facts(each, NAMES))
        for uid, facts in pods.items():
            if uid in held:
                self.booked(facts, held[uid])
            else:
                self.line.put(facts)

    def booked(self, facts: PodFacts, placement: PodPlacement) -> None:
        self.cluster.book(facts.uid, placement.node, Holder(placement=placement, amounts=facts.amounts))

    def turn(self, most: int = 1000) -> Turn:
        return turn(self.line, self.cluster, most=most)


class Queues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, PodFacts] = {}
        self.held: dict[str, PodPlacement] = {}
        self.order: list[str] = []
        self.made = 0
        self.leader = Leader({}, {}, {})

    @initialize(
        sizes=st.lists(
            st.lists(st.sampled_from([16, 16, 32]), min_size=1, max_size=3), min_size=1, max_size=3
        )
    )
    def cluster(self, sizes: list[list[int]]) -> None:
        for index, cards in enumerate(sizes):
            self.set_node(node(f"n{index}", cards))

    def set_node(self, made: dict[str, Any]) -> None:
        self.nodes[made["metadata"]["name"]] = made
        self.leader.cluster.set_node(node_facts(made, NAMES))

    def arrive(self, made: dict[str, Any]) -> PodFacts:
        facts = pod_facts(made, NAMES)
        self.pods[facts.uid] = facts
        self.leader.line.put(facts)
        return facts

    @rule(
        asked=st.lists(st.sampled_from(SHARES * 3 + WHOLE * 2 + IMPOSSIBLE), min_size=1, max_size=2),
        queue=st.sampled_from(QUEUES),
        late=st.integers(0, 3),
        others=st.sampled_from([(), (), (), (), ("other/gate",)]),
        cpu=st.sampled_from(["0", "0", "20", "100"]),
    )
    def pod_arrives(
        self, asked: list[tuple[int, int]], queue: str, late: int, others: tuple[str, ...], cpu: str
    ) -> None:
        """Its stamp may be of before that of others: two replicas of the webhook have two clocks."""
        self.made += 1
        self.arrive(
            pod(
                f"p{self.made:04}",
                queue=queue,
                arrival=max(1, self.made - late),
                gates=(NAMES.gate, *others),
                containers=[container(f"c{i}", *each, cpu=cpu) for i, each in enumerate(asked)],
            )
        )

    @precondition(lambda self: self.pods)
    @rule(data=st.data())
    def pod_goes(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(sorted(self.pods))))

    def end(self, uid: str) -> None:
        del self.pods[uid]
        self.held.pop(uid, None)
        self.leader.cluster.unbook(uid)
        self.leader.line.drop(uid)

    @precondition(lambda self: any(facts.other_gates for facts in self.pods.values()))
    @rule()
    def other_gates_open(self) -> None:
        for uid, facts in list(self.pods.items()):
            if facts.other_gates:
                self.pods[uid] = replace(facts, other_gates=())
                self.leader.line.put(self.pods[uid])

    @rule(
        name=st.sampled_from(["n0", "n1", "n2"]),
        cards=st.lists(st.sampled_from([16, 16, 32]), min_size=1, max_size=3),
        ready=st.booleans(),
        sick=st.booleans(),
    )
    def node_changes(self, name: str, cards: list[int], ready: bool, sick: bool) -> None:
        """It is new, or has cards more, is not ready, or one card is sick. Cards in use stay."""
        if name in self.nodes:
            facts = node_facts(self.nodes[name], NAMES)
            assert facts.cards is not None
            kept = list(facts.cards.cards)
        else:
            kept = [
                NodeCard(uuid=f"{name}-{i}", index=i, model="t", memory_bytes=g * GIB)
                for i, g in enumerate(cards)
            ]
        kept[0] = replace(kept[0], healthy=not sick)
        self.set_node(node(name, kept, ready=ready))

    @rule()
    def leader_dies(self) -> None:
        self.leader = Leader(self.nodes, self.pods, self.held)

    @rule(stop_after=st.none() | st.integers(0, 3))
    def leader_takes_a_turn(self, stop_after: int | None) -> None:
        """All at once, or it dies after some patches and another one goes on: the outcome is the same."""
        if stop_after is not None:
            other = Leader(self.nodes, self.pods, self.held)
            expected = [
                (each.pod.uid, each.choice) for each in Leader(self.nodes, self.pods, self.held).turn().placed
            ]
            done = other.turn(stop_after).placed
            assert [(each.pod.uid, each.choice) for each in done] == expected[: len(done)]
            self.write(done)
            self.leader = Leader(self.nodes, self.pods, self.held)
            rest = self.leader.turn().placed
            assert [(each.pod.uid, each.choice) for each in rest] == expected[len(done) :]
            self.write(rest)
            return
        fresh = Leader(self.nodes, self.pods, self.held).turn()
        found = self.leader.turn()
        assert found == fresh
        self.check_order(found)
        self.write(found.placed)

    def write(self, placed: tuple[Placed, ...]) -> None:
        for each in placed:
            assert each.pod.uid not in self.held, "placed twice"
            assert not each.pod.other_gates
            self.held[each.pod.uid] = each.placement
            self.leader.line.drop(each.pod.uid)
            self.leader.booked(each.pod, each.placement)

    def check_order(self, found: Turn) -> None:
        """Within a queue, nobody who could be placed waits behind one that came later and was placed."""
        gone = {each.pod.uid for each in found.placed}
        assert [each.pod.arrival for each in found.placed] == sorted(
            each.pod.arrival for each in found.placed
        ) or len({each.pod.queue for each in found.placed}) > 1
        for queue, waiting in self.leader.line.queues().items():
            stopped = False
            for facts in waiting:
                if facts.uid in gone:
                    assert not stopped, f"{facts.uid} passed one that waits in {queue}"
                elif facts.uid in found.held and found.held[facts.uid].wait in ASIDE:
                    continue
                else:
                    stopped = True

    @invariant()
    def no_share_has_two_owners_and_no_card_is_promised_beyond_what_it_has(self) -> None:
        cards: dict[str, list[Any]] = {}
        for uid, placement in self.held.items():
            for shares in placement.containers.values():
                for share in shares:
                    cards.setdefault(share.uuid, []).append((uid, share))
        sizes = {
            card.uuid: card.memory_bytes
            for each in self.nodes.values()
            for card in nodes.decode_cards(each["metadata"]["annotations"][NAMES.cards]).cards
        }
        for uuid, holders in cards.items():
            assert sum(share.cores for _, share in holders) <= 100
            assert sum(share.memory_bytes for _, share in holders) <= sizes[uuid]
            assert len(holders) == 1 or not any(share.whole for _, share in holders)

    @invariant()
    def memory_of_the_leader_is_what_the_objects_say(self) -> None:
        for uid, placement in self.held.items():
            assert self.leader.cluster.node_of(uid) == placement.node
        assert len(self.leader.line) == len(self.pods) - len(self.held)

    @precondition(lambda self: len(self.pods) > len(self.held))
    @rule(data=st.data())
    def nobody_starves(self, data: st.DataObject) -> None:
        """The earliest that could be met goes after finitely many ends, though small ones come on and on."""
        self.leader = Leader(self.nodes, self.pods, self.held)
        self.write(self.leader.turn().placed)
        waiting = [
            facts
            for queue in self.leader.line.queues().values()
            for facts in queue
            if not facts.other_gates and self.leader.cluster.never(request_of(facts)) is None
        ]
        if not waiting:
            return
        first = min(waiting, key=lambda facts: facts.arrival)
        ends = 0
        while first.uid not in self.held:
            running = sorted(self.held, key=lambda uid: (self.pods[uid].arrival, uid))
            assert running, "nothing is held, and it is not placed"
            # Each that runs ends at some time; which is the next is anybody's guess.
            self.end(running[0] if ends % 3 == 0 else data.draw(st.sampled_from(running)))
            ends += 1
            for queue in QUEUES:
                self.made += 1
                self.arrive(pod(f"p{self.made:04}", 10, 4, queue=queue, arrival=10**6 + self.made))
            self.write(self.leader.turn().placed)
            assert ends < 400, f"{first.uid} starves"
        for uid in [uid for uid, facts in self.pods.items() if facts.arrival[1] > 10**6]:
            self.end(uid)


TestQueues = Queues.TestCase
TestQueues.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

"""The node's books under every order of the kubelet's calls, with deaths of agent and kubelet in between."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deviceplugin.desk import Desk, Rules
from deviceplugin.state import NodePod, count_of
from deviceplugin.tickets import Books
from tests.property.node_model import (
    SHAPES,
    UNIT_BYTES,
    Controller,
    FakeApi,
    FakeKubelet,
    Fuse,
    Killed,
    MortalBooks,
    Running,
    cards,
    grant_of,
)
from vcuda import grant as grants
from vcuda.kube.placing import booked, share_on

BLAMELESS = ("killed", "no ids", "unheard of")
"""Why a pod of the controller's may fail in admission: a kill, or an API that went away and never told."""


class Node(RuleBasedStateMachine):
    """One node, whose kubelet tells exactly which pods it has looked at."""

    exact = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.home = tempfile.TemporaryDirectory(prefix="vcuda-tickets-")
        self.fuse = Fuse()
        self.api = FakeApi(self.fuse)
        self.controller = Controller(self.api)
        self.said: list[str] = []
        self.kills = 0
        self.exchanges = 0

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.loop.close()
            self.home.cleanup()

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.kubelet = FakeKubelet(self.api, self.chance, exact=self.exact)
        for _ in range(self.chance.randint(0, 6)):
            self.controller.create(self.chance.choice(SHAPES))
        self.revive()

    def revive(self) -> None:
        """A new agent, with what the last one has left."""
        self.fuse.steps = 0
        self.books: Books = MortalBooks(Path(self.home.name) / "shares", say=self.said.append, fuse=self.fuse)
        self.desk = Desk(
            self.books,
            api=self.api,
            kubelet=self.kubelet,
            cards=cards,
            grant=grant_of,
            rules=Rules(unit_bytes=UNIT_BYTES),
            patience_seconds=0,
        )
        self.run(self.api.refresh())
        self.run(self.desk.reconcile())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def mortal(self, coroutine, fuse: int):
        """Do it, and be killed at a step of it; then there is a new agent."""
        self.fuse.steps = fuse
        try:
            return self.run(coroutine)
        except Killed:
            self.kills += 1
            self.kubelet.collect()
            self.revive()
            return None
        finally:
            self.fuse.steps = 0

    # ---- what happens ----

    @rule(shape=st.sampled_from(SHAPES), told=st.booleans())
    def create(self, shape, told: bool) -> None:
        self.controller.create(shape)
        if told:
            self.run(self.api.refresh())

    @rule(shape=st.sampled_from(SHAPES), unseen=st.integers(1, 3))
    def create_by_another_leader(self, shape, unseen: int) -> None:
        self.controller.create(shape, unseen=unseen)

    @rule(shape=st.sampled_from(SHAPES))
    def forge(self, shape) -> None:
        self.controller.create(shape, forged=True)

    @rule(
        which=st.integers(0, 99),
        fuse=st.sampled_from((0, 0, 0, 1, 2, 3)),
        die_after=st.sampled_from((0, 0, 0, 1, 2, 3)),
    )
    def admit(self, which: int, fuse: int, die_after: int) -> None:
        waiting = self.waiting()
        if waiting:
            pod = waiting[which % len(waiting)]
            self.admit_one(pod, fuse, die_after)

    def admit_one(self, pod: NodePod, fuse: int = 0, die_after: int = 0) -> None:
        if self.mortal(self.kubelet.admit(pod, self.desk, die_after=die_after), fuse) is False:
            self.run(self.kubelet.restart(self.desk))

    @rule(which=st.integers(0, 99), fuse=st.sampled_from((0, 0, 0, 1, 2, 3, 4, 5, 6)), between=st.booleans())
    def start(self, which: int, fuse: int, between: bool) -> None:
        ready = self.ready()
        if ready:
            owner, ask = ready[which % len(ready)]
            self.mortal(self.kubelet.start(owner, ask, self.desk, kill_in_between=between and fuse > 4), fuse)

    @rule(which=st.integers(0, 99))
    def restart_container(self, which: int) -> None:
        running = sorted(self.kubelet.running)
        if running:
            each = self.kubelet.running[running[which % len(running)]]
            told = self.run(self.kubelet.start(each.owner, each.ask, self.desk))
            assert told is None, f"a container that ran does not start again: {told}"

    @rule(which=st.integers(0, 99), told=st.booleans(), gone=st.booleans())
    def end(self, which: int, told: bool, gone: bool) -> None:
        pods = [pod for pod in self.api.truth.values() if not pod.over]
        if not pods:
            return
        pod = pods[which % len(pods)]
        self.over(pod, gone=gone)
        if told:
            self.run(self.api.refresh())

    def over(self, pod: NodePod, *, gone: bool) -> None:
        from dataclasses import replace

        if gone:
            del self.api.truth[pod.uid]
        else:
            self.api.truth[pod.uid] = replace(pod, over=True)
        self.kubelet.collect()

    @rule()
    def kubelet_restarts(self) -> None:
        self.run(self.kubelet.restart(self.desk))

    @rule(away=st.booleans())
    def api_goes_away(self, away: bool) -> None:
        self.api.away = away

    @rule(fuse=st.sampled_from((0, 1, 2, 3)))
    def reconcile(self, fuse: int) -> None:
        self.run(self.api.refresh())
        self.mortal(self.desk.reconcile(), fuse)

    @rule()
    @precondition(lambda self: not self.kubelet.running)
    def reboot(self) -> None:
        """All is dead, and RUN is empty."""
        import shutil

        shutil.rmtree(Path(self.home.name) / "shares")
        self.revive()
        self.run(self.kubelet.restart(self.desk))

    # ---- what must hold ----

    def waiting(self) -> list[NodePod]:
        return [
            pod for pod in self.api.truth.values() if not pod.over and pod.uid not in self.kubelet.admitted
        ]

    def ready(self):
        found = []
        for uid in sorted(self.kubelet.admitted):
            pod = self.api.truth.get(uid)
            if pod is None or pod.over:
                continue
            found += [
                (pod.owner(ask.container), ask)
                for ask in pod.ask.containers
                if (uid, ask.container) not in self.kubelet.running
            ]
        return found

    @invariant()
    def nothing_has_two_owners(self) -> None:
        if not hasattr(self, "kubelet"):
            return
        running = list(self.kubelet.running.values())
        mounted = [each.ticket for each in running]
        assert len(mounted) == len(set(mounted)), "two containers have one directory"
        owners = [ticket.owner for ticket in self.books.tickets if ticket.owner is not None]
        assert len(owners) == len(set(owners)), "a container has two tickets"
        assert self.said == []

    @invariant()
    def cards_hold_what_runs(self) -> None:
        if not hasattr(self, "kubelet"):
            return
        shares = [{"x": self.granted(each)} for each in self.kubelet.running.values()]
        for room in booked(cards(), shares):
            assert room.taken_cores <= 100, "more cores than a card has"
            assert room.whole or room.taken_bytes <= room.card.memory_bytes
            assert not room.whole or room.shares == 1, "a whole card has company"

    def granted(self, running: Running):
        """What a container's own grant says; it must be what it asked, on the cards that it was told of."""
        grant = grants.read(Path(self.home.name) / "shares" / running.ticket / "share" / "grant")
        assert tuple(card.uuid for card in grant.cards) == running.cards
        pod = self.api.truth[running.owner.uid]
        assert pod.fault is None, "a forged pod runs"
        by_uuid = {card.uuid: card for card in cards()}
        expected = tuple(
            share_on(by_uuid[uuid], running.ask, pod.ask, unit_bytes=UNIT_BYTES) for uuid in running.cards
        )
        assert [
            (card.memory_bytes, card.core_ppm, card.core_max_ppm, card.whole) for card in grant.cards
        ] == [
            (share.memory_bytes, share.cores * 10_000, share.cores_max * 10_000, share.whole)
            for share in expected
        ]
        published = pod.shares(self.api.published)[running.owner.container]
        assert {share.uuid for share in published} == set(running.cards), "on cards that nobody was told of"
        return expected

    @invariant()
    def admission_fails_nobody_who_was_placed(self) -> None:
        if not hasattr(self, "kubelet"):
            return
        for uid, why in self.kubelet.why_failed.items():
            pod = self.api.truth.get(uid)
            if pod is not None and pod.fault is None and self.exact:
                assert why in BLAMELESS, why

    def settle(self) -> None:
        """When nothing dies any more, and pods end, each one that was placed has its turn."""
        if not hasattr(self, "kubelet"):
            return
        self.api.away = self.kubelet.blind = False
        self.run(self.api.refresh())
        for _ in range(200):
            self.run(self.api.refresh())
            self.run(self.desk.reconcile())
            for pod in self.waiting():
                self.admit_one(pod)
            ready = [(owner, ask) for owner, ask in self.ready() if self.api.truth[owner.uid].fault is None]
            if not ready:
                break
            started = [
                owner for owner, ask in ready if self.run(self.kubelet.start(owner, ask, self.desk)) is None
            ]
            self.cards_hold_what_runs()
            self.nothing_has_two_owners()
            if not started:
                done = [
                    pod
                    for pod in self.api.truth.values()
                    if not pod.over
                    and all((pod.uid, ask.container) in self.kubelet.running for ask in pod.ask.containers)
                ]
                assert done, "all wait for ever: " + "; ".join(
                    str(self.run(self.kubelet.start(owner, ask, self.desk))) for owner, ask in ready
                )
                self.over(done[0], gone=False)
        else:
            raise AssertionError("does not come to an end")
        for pod in list(self.api.truth.values()):
            if not pod.over:
                self.over(pod, gone=True)
        self.run(self.api.refresh())
        self.run(self.desk.reconcile())
        assert self.books.tickets == ()
        assert list((Path(self.home.name) / "shares").iterdir()) == []
        assert self.api.published == {}
        assert all((count_of(ask, each) >= 0) for ask in SHAPES[0] for each in self.kubelet.all)


class OldNode(Node):
    """One whose kubelet lists pods that are over, and which may be taken for the ones that it means."""

    exact = False


class BlindNode(Node):
    """One whose kubelet's list cannot be had at times: nobody new is served, and those served can start."""

    exact = False

    @rule(blind=st.booleans())
    def list_cannot_be_had(self, blind: bool) -> None:
        self.kubelet.blind = blind


_SETTINGS = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestNode = Node.TestCase
TestNode.settings = _SETTINGS
TestOldNode = OldNode.TestCase
TestOldNode.settings = _SETTINGS
TestBlindNode = BlindNode.TestCase
TestBlindNode.settings = _SETTINGS

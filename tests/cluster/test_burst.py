"""Many pods at once on one real node with eight cards, in peace and while everything is killed at random.

Nothing of the controller's or the agent's own books is believed: what is asked is read from the pods, what
was given from the grants on the node's disk, and both are counted here.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Pod

from tests.cluster.installation import NAMES, Held, Installation
from tests.cluster.machine import Cluster, ClusterError, pods, until
from tests.cluster.test_node import PLUGIN_AWAY
from vcuda.kube.names import MEMORY_UNIT_BYTES

CARDS = 8
MODEL = "V100-SXM2-16GB"
CLIENTS = 4
ASKS = ((10, 4), (10, 8), (20, 4), (20, 16), (30, 8), (30, 24), (50, 16), (60, 20), (100, 32))
"""Cores and units of memory; pods that look alike in one of them, in both, and in none."""
PPM_PER_CORE = 10_000
UNMADE = ("StartError", "ContainerStatusUnknown", "ContainerCannotRun")
"""Of containers that containerd did not bring to run, or knows no more of."""


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """All of vcuda, on a node with eight cards."""
    made = Installation(cluster, cards=",".join([MODEL] * CARDS))
    yield made
    made.close()


@dataclass
class Burst:
    """Pods of several clients, each in a namespace of its own, and what was seen of them."""

    installation: Installation
    each: int
    chance: random.Random
    replaced: bool = False
    """Whether the kubelet may fail pods, since it or the agent is away; their owner then makes them anew."""
    rebooted: bool = False
    """Whether the node may lose all that runs there."""
    seen: dict[str, str] = field(default_factory=dict)
    """The id of each container that was seen running, by the pod's uid."""
    done: set[str] = field(default_factory=set)
    """Uids of pods that ran, were found right, and were deleted."""
    order: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    """By namespace: when each pod was bound, in seconds, in the order of arrival."""

    def __post_init__(self) -> None:
        self.namespaces = [f"burst-{self.chance.getrandbits(24):06x}-{index}" for index in range(CLIENTS)]
        for namespace in self.namespaces:
            self.installation.client.create(Namespace(metadata=ObjectMeta(name=namespace)))

    def run(self, *, timeout_s: float) -> None:
        """Create all at once; look, check and delete until all have run."""
        makers = [threading.Thread(target=self._create, args=(each,)) for each in self.namespaces]
        for maker in makers:
            maker.start()
        wanted = self.each * CLIENTS
        until(
            f"{wanted} pods have run",
            lambda: self._look() and len(self.done) == wanted,
            timeout_s=timeout_s,
            every_s=0.2,
        )
        for maker in makers:
            maker.join()
        if not self.replaced:  # else the scheduler tries many a pod again, some time after it was placed
            self._check_order()

    def close(self) -> None:
        """Remove what is left, and wait until it is gone: later tests have the same node."""
        for namespace in self.namespaces:
            with contextlib.suppress(ApiError):
                self.installation.client.delete(Namespace, namespace)
        for namespace in self.namespaces:
            until(f"no pods in {namespace}", lambda each=namespace: not self.installation.pods(each))

    # ---- the clients ----

    def _create(self, namespace: str) -> None:
        for index in range(self.each):
            self._put(namespace, f"p{index:03}", self.chance.choice(ASKS))

    def _put(self, namespace: str, name: str, ask: tuple[int, int]) -> None:
        resources = {NAMES.core: ask[0], NAMES.memory: ask[1]}
        pod = pods.pod(name, "sleep", "3600", namespace=namespace, resources=resources)

        def created() -> bool:
            try:
                self.installation.client.create(pod, namespace=namespace)
            except ApiError as error:
                if error.status.code != 409:  # it is there: the answer was lost
                    raise
            return True

        until(f"{namespace}/{name} is created", created, timeout_s=120, every_s=0.3)

    # ---- what is seen ----

    def _look(self) -> bool:
        """Check what there is, and delete some of the pods that were found right.

        What is wrong once is wrong: it is no answer that a later one makes good.
        """
        try:
            return self._checked()
        except AssertionError as error:
            raise ClusterError(f"after {len(self.done)} pods: {error}") from error

    def _checked(self) -> bool:
        try:
            found = {
                pod["metadata"]["uid"]: pod
                for namespace in self.namespaces
                for pod in self.installation.pods(namespace).values()
            }
            held = self.installation.held()
            moved = self.installation.moved()  # after the grants: it is published before them
        except (ApiError, OSError, ConnectionError):
            return False
        except ClusterError:
            if self.rebooted:  # just now
                return False
            raise
        by_uid: dict[str, list[Held]] = defaultdict(list)
        for each in held:
            by_uid[each.uid].append(each)
        self._check_cards(held)
        self._check_queues(found.values())
        right: list[dict[str, Any]] = []
        for uid, pod in found.items():
            phase = pod["status"].get("phase")
            if pod["metadata"].get("deletionTimestamp"):
                continue
            if phase == "Failed":
                self._failed(pod)
            elif phase == "Running" and (by_uid[uid] or not self.rebooted):  # else it was, before the reboot
                self._check_pod(pod, by_uid[uid], moved.get(uid, {}))
                right.append(pod)
        for pod in right:
            if self.chance.random() < 0.7:
                self._note_order(pod)
                self._delete(pod)
                self.done.add(pod["metadata"]["uid"])
        return True

    def _check_pod(self, pod: dict[str, Any], held: list[Held], moved: Mapping[str, tuple[str, ...]]) -> None:
        """Its grant is what it asked, on the cards that it was placed on, or was moved to."""
        who = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        uid = pod["metadata"]["uid"]
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        cores, units = int(limits[NAMES.core]), int(limits[NAMES.memory])
        assert len(held) == 1, f"{who}: {len(held)} grants"
        (card,) = held[0].cards
        placed = tuple(share.uuid for share in self.installation.placed(pod)["main"])
        assert (card[0],) == moved.get("main", placed), f"{who}: {card}, placed on {placed}, moved {moved}"
        assert card[1] == cores * PPM_PER_CORE, f"{who}: {card}, asked {cores}"
        assert cores == 100 or card[2] == units * MEMORY_UNIT_BYTES, f"{who}: {card}, asked {units}"
        (status,) = pod["status"]["containerStatuses"]
        # A container that was being made when containerd was killed is made once more.
        assert self.replaced or status["restartCount"] == 0, who
        assert self.seen.setdefault(uid, status["containerID"]) == status["containerID"], who

    def _check_cards(self, held: list[Held]) -> None:
        """No card has more owners than it can have; each grant has one owner."""
        on: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for each in held:
            for uuid, ppm, size in each.cards:
                on[uuid].append((ppm, size))
        for uuid, shares in on.items():
            assert sum(ppm for ppm, _ in shares) <= 100 * PPM_PER_CORE, (uuid, shares)
            assert sum(size for _, size in shares) <= 16 * 2**30, (uuid, shares)
        owners = [(each.uid, each.container) for each in held]
        assert len(owners) == len(set(owners))
        assert len(on) <= CARDS

    def _check_queues(self, found: Iterable[dict[str, Any]]) -> None:
        """Nobody was placed before one of its queue that came earlier."""
        placed: dict[str, int] = {}
        waiting: dict[str, int] = {}
        for pod in found:
            metadata = pod["metadata"]
            arrival, namespace = int(metadata["annotations"][NAMES.arrival]), metadata["namespace"]
            if NAMES.placement in metadata["annotations"]:
                placed[namespace] = max(arrival, placed.get(namespace, arrival))
            elif not metadata.get("deletionTimestamp"):
                waiting[namespace] = min(arrival, waiting.get(namespace, arrival))
        for namespace, first in waiting.items():
            assert placed.get(namespace, first) <= first, namespace

    def _failed(self, pod: dict[str, Any]) -> None:
        """Only the kubelet fails a pod here, one that was not running, and only while its plugin is away.

        Or containerd was killed while it made the container, which then never runs.
        """
        uid, metadata = pod["metadata"]["uid"], pod["metadata"]
        message = pod["status"].get("message", "")
        assert self.replaced, (metadata["name"], message)
        if self.rebooted:
            self.seen.pop(uid, None)
        assert uid not in self.seen, f"{metadata['name']} was running: {message}"
        ended = [each["state"].get("terminated", {}) for each in pod["status"].get("containerStatuses", ())]
        unmade = any(each.get("reason") in UNMADE for each in ended)
        assert unmade or self.rebooted or any(text in message for text in PLUGIN_AWAY), pod["status"]
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        self._delete(pod)
        again = f"{metadata['name'].partition('-')[0]}-{self.chance.getrandbits(32):08x}"
        self._put(metadata["namespace"], again, (int(limits[NAMES.core]), int(limits[NAMES.memory])))

    def _delete(self, pod: dict[str, Any]) -> None:
        metadata = pod["metadata"]

        def gone() -> bool:
            try:
                self.installation.client.delete(Pod, metadata["name"], namespace=metadata["namespace"])
            except ApiError as error:
                return error.status.code == 404
            return True

        until(f"{metadata['name']} is deleted", gone, timeout_s=120, every_s=0.3)

    def _note_order(self, pod: dict[str, Any]) -> None:
        bound = next(each for each in pod["status"]["conditions"] if each["type"] == "PodScheduled")
        arrival = int(pod["metadata"]["annotations"][NAMES.arrival])
        self.order[pod["metadata"]["namespace"]].append((arrival, _seconds(bound["lastTransitionTime"])))

    def _check_order(self) -> None:
        """In order of arrival; the scheduler binds several at once, and the API tells seconds."""
        for namespace, noted in self.order.items():
            times = [when for _, when in sorted(noted)]
            latest = itertools.accumulate(times, max)
            assert all(when >= most - 1 for when, most in zip(times, latest, strict=True)), (namespace, times)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def left(installation: Installation) -> bool:
    """Whether nothing of all that is left on the node."""
    return not installation.held() and not installation.moved()


@pytest.mark.parametrize(
    ("each", "times"), [(8, 1), pytest.param(25, 3, marks=pytest.mark.soak)], ids=["32", "three times 100"]
)
def test_burst_is_served_in_order_and_as_asked(installation: Installation, each: int, times: int) -> None:
    chance = random.Random(each)
    for _ in range(times):
        burst = Burst(installation, each, chance)
        try:
            burst.run(timeout_s=240)
        finally:
            burst.close()
        until("nothing is left", lambda: left(installation), timeout_s=60)


@pytest.mark.parametrize(
    ("each", "kills"), [(6, 1), pytest.param(25, 10, marks=pytest.mark.soak)], ids=["24", "100"]
)
def test_burst_with_everything_killed_at_random(installation: Installation, each: int, kills: int) -> None:
    chance = random.Random(kills)
    cluster = installation.cluster
    victims = ["kubelet", "containerd", "agent", "webhook", "controller"] * kills
    chance.shuffle(victims)
    burst = Burst(installation, each, chance, replaced=True)
    over = threading.Event()

    def kill_all() -> None:
        for victim in victims:
            if over.wait(chance.uniform(0.5, 2.5)):
                return
            program = installation.programs.get(victim) or cluster.servers[victim]
            program.kill()
            over.wait(chance.uniform(0, 0.5))
            program.start()
        killed.set()

    killed = threading.Event()
    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        burst.run(timeout_s=600)
    finally:
        over.set()
        killer.join()
        for name, program in itertools.chain(cluster.servers.items(), installation.programs.items()):
            if not program.running:
                program.start()
                print(f"{name} was started again")
        burst.close()
    cluster.wait_node_ready()
    until("nothing is left", lambda: left(installation), timeout_s=120)
    assert len(burst.done) == each * CLIENTS


@pytest.mark.parametrize(
    ("each", "reboots"), [(4, 1), pytest.param(25, 5, marks=pytest.mark.soak)], ids=["16", "100"]
)
def test_burst_while_the_node_reboots(installation: Installation, each: int, reboots: int) -> None:
    """All of the node is killed, containers and agent too, and /run is empty after it."""
    chance = random.Random(reboots)
    cluster = installation.cluster
    burst = Burst(installation, each, chance, replaced=True, rebooted=True)
    over = threading.Event()

    done = 0

    def reboot() -> None:
        nonlocal done
        while done < reboots and not over.wait(chance.uniform(3, 8)):
            cluster.reboot()
            installation.agent.start()
            done += 1

    rebooter = threading.Thread(target=reboot)
    rebooter.start()
    try:
        burst.run(timeout_s=600)
    finally:
        over.set()
        rebooter.join()
        burst.close()
    assert done > 0
    until("nothing is left", lambda: left(installation), timeout_s=120)
    assert len(burst.done) == each * CLIENTS

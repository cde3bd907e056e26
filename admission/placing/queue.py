"""Who goes next: first come, first served in each queue, and nobody starves. Pure.

Within a queue nobody passes. The first of each queue are tried in order of arrival; one that finds no room
keeps the cards on which it will fit first, and all who came later, in whatever queue, do without these. So
the earliest of all that wait gets room when those who hold it have ended, however many come after it. One
that no node could ever hold, or that asks for what cannot be, steps aside and blocks nobody; it keeps its
arrival, and is the first again when a node comes that could. One with gates of others is not in line yet.

`turn` is a function of the pods that wait and of what is held, so that it does not matter which controller
makes it, nor whether the one before ended in the middle.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from admission.placing.cluster import Choice, Cluster, Holder, Request, Reservation, request_of
from vcuda.kube.placements import PodPlacement
from vcuda.kube.placing import Reason
from vcuda.kube.pods import Arrival, PodFacts


class Wait(StrEnum):
    """Why a pod waits, as condition, event, metric and command name it."""

    NO_ROOM = "NoRoom"
    """It is the first of its queue, and no card that it may have has room."""
    BEHIND = "BehindOthers"
    UNMEETABLE = "Unmeetable"
    """No node could hold it, were nothing promised."""
    INVALID = "InvalidRequest"
    OTHER_GATES = "OtherGates"


ASIDE = frozenset({Wait.UNMEETABLE, Wait.INVALID, Wait.OTHER_GATES})
"""Those that wait so stand in nobody's way."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A pod that goes."""

    pod: PodFacts
    choice: Choice

    @property
    def placement(self) -> PodPlacement:
        """What is written on it."""
        return PodPlacement(
            uid=self.pod.uid,
            node=self.choice.node,
            containers=self.choice.shares,
            priority=self.pod.ask.priority,
        )


@dataclass(frozen=True, kw_only=True)
class Held:
    """A pod that was tried, or looked at, and stays."""

    wait: Wait
    nodes: Counter[Reason] = field(default_factory=Counter[Reason])
    """Why how many nodes cannot be used."""
    cards: Counter[Reason] = field(default_factory=Counter[Reason])
    """Why how many cards of the others cannot."""
    reservation: Reservation | None = None
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one look at all queues gave."""

    placed: tuple[Placed, ...]
    """In the order in which they go. They are booked in the cluster."""
    held: dict[str, Held]
    """By uid: those that were looked at; who stands behind one that stays was not."""
    more: bool
    """Whether it ended early, since enough were placed."""


class Line:
    """The pods that wait, by queue, in order of arrival."""

    def __init__(self) -> None:
        self._pods: dict[str, PodFacts] = {}
        self._requests: dict[str, Request] = {}
        self._queues: dict[str, list[Arrival]] = {}

    def __len__(self) -> int:
        return len(self._pods)

    def __contains__(self, uid: object) -> bool:
        return uid in self._pods

    def put(self, pod: PodFacts) -> bool:
        """A pod waits. Whether that is news."""
        before = self._pods.get(pod.uid)
        if before == pod:
            return False
        if before is not None:
            self.drop(pod.uid)
        self._pods[pod.uid] = pod
        self._requests[pod.uid] = request_of(pod)
        insort(self._queues.setdefault(pod.queue, []), pod.arrival)
        return True

    def drop(self, uid: str) -> bool:
        """A pod waits no more. Whether it did."""
        pod = self._pods.pop(uid, None)
        if pod is None:
            return False
        del self._requests[uid]
        queue = self._queues[pod.queue]
        del queue[bisect_left(queue, pod.arrival)]
        if not queue:
            del self._queues[pod.queue]
        return True

    def request(self, uid: str) -> Request:
        """What a pod that waits asks."""
        return self._requests[uid]

    def queues(self) -> dict[str, list[PodFacts]]:
        """All that wait: by queue, in order."""
        return {name: [self._pods[uid] for _, _, uid in arrivals] for name, arrivals in self._queues.items()}

    def in_turn(self) -> "_Heads":
        """The first of each queue, and then whoever is next there."""
        return _Heads(self._pods, self._queues)


class _Heads:
    """The heads of all queues, the earliest first."""

    def __init__(self, pods: dict[str, PodFacts], queues: dict[str, list[Arrival]]) -> None:
        self._pods = pods
        self._arrivals = {name: list(arrivals) for name, arrivals in queues.items()}
        self._heap = [(arrivals[0], name, 0) for name, arrivals in self._arrivals.items()]
        heapq.heapify(self._heap)
        self._stays = False

    def stays(self) -> None:
        """The one that was given last keeps its place: nobody of its queue is given after it."""
        self._stays = True

    def __iter__(self) -> Iterator[PodFacts]:
        while self._heap:
            arrival, name, at = heapq.heappop(self._heap)
            self._stays = False
            yield self._pods[arrival[2]]
            if not self._stays and at + 1 < len(self._arrivals[name]):
                heapq.heappush(self._heap, (self._arrivals[name][at + 1], name, at + 1))


def aside(pod: PodFacts, request: Request, cluster: Cluster) -> Held | None:
    """Why a pod stands aside, whatever its place in the queue; None if it does not."""
    if pod.fault:
        return Held(wait=Wait.INVALID, fault=pod.fault)
    if pod.other_gates:
        return Held(wait=Wait.OTHER_GATES, fault=", ".join(pod.other_gates))
    never = cluster.never(request)
    return None if never is None else Held(wait=Wait.UNMEETABLE, nodes=never[0], cards=never[1])


def turn(line: Line, cluster: Cluster, *, most: int = 256) -> Turn:
    """Place all who can go now, `most` at once; what they get is booked in `cluster`, none leaves `line`.

    Reservations are made anew each time, in the same order, so that they need not be remembered.
    """
    placed: list[Placed] = []
    held: dict[str, Held] = {}
    heads = line.in_turn()
    for pod in heads:
        if len(placed) >= most:
            cluster.reopen()
            return Turn(placed=tuple(placed), held=held, more=True)
        request = line.request(pod.uid)
        why = aside(pod, request, cluster)
        if why is not None:
            held[pod.uid] = why
            continue
        choice = cluster.place(request)
        if choice is not None:
            found = Placed(pod=pod, choice=choice)
            cluster.book(pod.uid, choice.node, Holder(placement=found.placement, amounts=pod.amounts))
            placed.append(found)
            continue
        nodes, cards = cluster.reasons(request)
        reservation = cluster.reserve(request)
        held[pod.uid] = Held(wait=Wait.NO_ROOM, nodes=nodes, cards=cards, reservation=reservation)
        heads.stays()
    cluster.reopen()
    return Turn(placed=tuple(placed), held=held, more=False)

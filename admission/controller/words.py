"""What pods are told while they wait and when they go: reasons and sentences. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from admission.placing.queue import ASIDE, Held, Wait
from vcuda.kube.placements import PodPlacement
from vcuda.kube.placing import Reason
from vcuda.kube.pods import PodFacts
from vcuda.units import format_size

PLACED = "Placed"
EXACT = 20
"""Positions beyond this one are told in tens, then hundreds: one that goes is not to change all pods."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """What a pod is told."""

    reason: str
    message: str
    event: str
    """The reason of the Event that goes with it; one is sent when this changes."""
    warning: bool = False
    placed: bool = False


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A pod that waits, where it stands and why."""

    pod: PodFacts
    wait: Wait
    position: int
    """1 is next; 0 for one that stands aside."""
    word: Word


def standings(
    queues: Mapping[str, list[PodFacts]],
    held: Mapping[str, Held],
    aside: Callable[[PodFacts], Held | None],
) -> list[Standing]:
    """All who wait, the first of each queue first. aside: why one that was not looked at stands aside."""
    found: list[Standing] = []
    for queue, pods in queues.items():
        position = 0
        first: PodFacts | None = None
        for pod in pods:
            why = held.get(pod.uid) or aside(pod)
            wait = why.wait if why is not None else Wait.BEHIND
            if wait in ASIDE:
                assert why is not None
                found.append(Standing(pod=pod, wait=wait, position=0, word=_aside(why)))
                continue
            position += 1
            first = first or pod
            word = _first(queue, why) if why is not None else _behind(queue, position, first)
            found.append(Standing(pod=pod, wait=wait, position=position, word=word))
    return sorted(found, key=lambda each: (each.position, each.pod.arrival))


def placed(placement: PodPlacement, indices: Mapping[str, int]) -> Word:
    """What a pod that goes is told. indices: the numbers of cards by UUID, as far as known."""
    shares = [
        f"{name}: card {indices.get(share.uuid, share.uuid)} "
        + ("whole" if share.whole else f"{share.cores}% {format_size(share.memory_bytes)}")
        for name, each in placement.containers.items()
        for share in each
    ]
    message = f"on node {placement.node}; {', '.join(shares)}"
    return Word(reason=PLACED, message=message, event=PLACED, placed=True)


def event_reason(condition_reason: str) -> str:
    """The Event that went with a condition of this reason; empty, if there was no condition."""
    if condition_reason in ("", PLACED):
        return condition_reason
    return "Unmeetable" if condition_reason in (Wait.UNMEETABLE, Wait.INVALID) else "Waiting"


def counted(nodes: Counter[Reason], cards: Counter[Reason]) -> str:
    """Counts of reasons: `cards: 6 MemoryTaken, 2 CoresTaken; nodes: 1 NodeTainted`."""
    parts = [
        f"{noun}: {', '.join(f'{count} {reason}' for reason, count in counts.most_common())}"
        for noun, counts in (("cards", cards), ("nodes", nodes))
        if counts
    ]
    return "; ".join(parts) or "there is no node with cards"


def coarse(position: int) -> str:
    """A position as it is told: 7, about 40, about 300."""
    if position <= EXACT:
        return str(position)
    step = 10 if position <= 100 else 100
    return f"about {-(-position // step) * step}"


def _first(queue: str, why: Held) -> Word:
    kept = why.reservation
    if kept is None:
        waits = "all cards that could hold it are kept for pods that came earlier"
    else:
        cards = ", ".join(map(str, kept.cards))
        waits = f"waits for card{'s' if len(kept.cards) > 1 else ''} {cards} of node {kept.node}, kept for it"
    message = f"position 1 in queue {queue}; no room now ({counted(why.nodes, why.cards)}); {waits}"
    return Word(reason=Wait.NO_ROOM, message=message, event=event_reason(Wait.NO_ROOM))


def _behind(queue: str, position: int, first: PodFacts) -> Word:
    message = f"position {coarse(position)} in queue {queue}, of which {first.who} is the first"
    return Word(reason=Wait.BEHIND, message=message, event=event_reason(Wait.BEHIND))


def _aside(why: Held) -> Word:
    if why.wait is Wait.OTHER_GATES:
        message = f"not in line yet: has other scheduling gates: {why.fault}"
        return Word(reason=why.wait, message=message, event=event_reason(why.wait))
    if why.wait is Wait.INVALID:
        message = f"cannot be placed: {why.fault}"
    else:
        message = (
            f"no node could hold it, even with nothing else there ({counted(why.nodes, why.cards)}); "
            "it is tried again when nodes change"
        )
    return Word(reason=why.wait, message=message, event=event_reason(why.wait), warning=True)

"""A kubelet, a controller and an API as the node agent meets them, for test_tickets.py.

The kubelet is modelled on what Kubernetes 1.34 does: one pod is admitted after the other; the resources of a
container are asked for one by one, in any order; ids are any that are free, those of init containers first;
what was given is in the checkpoint when the container has all; the list names pods that are known and not
over, and leaves init containers out; before a container starts PreStartContainer is called for each resource.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from deviceplugin.account import Kept, Listed, account_of
from deviceplugin.allocation import Refused
from deviceplugin.desk import Desk, RefusedError
from deviceplugin.state import Account, Ids, NodePod, Owner, Resource, Ticket, count_of
from deviceplugin.tickets import Books
from vcuda.grant import CardGrant, Grant
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.nodes import Moved, NodeCard
from vcuda.kube.placements import PodPlacement
from vcuda.kube.placing import booked, place_on

UNIT_BYTES = 2**28
UNITS = 16
CARDS = 3
NODE = "node-1"
SHAPES: tuple[tuple[Ask, ...], ...] = (
    (Ask(container="a", cores=50, memory_units=8),),
    (Ask(container="a", cores=50, memory_units=4),),
    (Ask(container="a", cores=30, memory_units=4),),
    (Ask(container="a", cores=100, memory_units=0),),
    (Ask(container="a", cores=200, memory_units=0),),
    (Ask(container="a", cores=0, memory_units=8),),
    (Ask(container="a", cores=30, memory_units=4), Ask(container="b", cores=30, memory_units=8)),
    (Ask(container="init", cores=30, memory_units=4), Ask(container="a", cores=30, memory_units=4)),
    (Ask(container="init", cores=20, memory_units=4), Ask(container="a", cores=50, memory_units=8)),
)
INIT = "init"


class Killed(BaseException):
    """The agent was killed here."""


def cards() -> list[NodeCard]:
    return [
        NodeCard(uuid=f"GPU-{index}", index=index, model="model", memory_bytes=UNITS * UNIT_BYTES)
        for index in range(CARDS)
    ]


class MortalBooks(Books):
    """Books whose owner is killed at the step that is set."""

    def __init__(self, *arguments: object, fuse: Fuse, **options: object) -> None:
        self.fuse = fuse
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def _step(self, name: str) -> None:
        self.fuse.step()


@dataclass
class Fuse:
    """Kills at the n-th step from now; 0: never."""

    steps: int = 0

    def step(self) -> None:
        if self.steps:
            self.steps -= 1
            if self.steps == 0:
                raise Killed


@dataclass
class FakeApi:
    """Pods and the node's annotation. `seen` is what the agent has heard, `pods` the truth."""

    fuse: Fuse
    truth: dict[str, NodePod] = field(default_factory=dict)
    heard: dict[str, NodePod] = field(default_factory=dict)
    published: Moved = field(default_factory=dict)
    away: bool = False
    synced: bool = True
    events: list[Refused] = field(default_factory=list)

    @property
    def pods(self) -> Mapping[str, NodePod]:
        return self.heard

    @property
    def names(self) -> set[tuple[str, str]]:
        return {(pod.namespace, pod.name) for pod in self.heard.values()}

    @property
    def moved(self) -> Moved:
        return self.published

    async def refresh(self) -> bool:
        if self.away:
            return False
        self.heard = dict(self.truth)
        return True

    async def publish(self, moved: Moved) -> bool:
        if self.away:
            return False
        self.fuse.step()
        self.published = moved
        self.fuse.step()
        return True

    def report(self, refused: Refused) -> None:
        self.events.append(refused)


@dataclass
class Running:
    """A container that runs, with what it was told of and what it has mounted."""

    owner: Owner
    ask: Ask
    ticket: str
    cards: tuple[str, ...]


class FakeKubelet:
    """See the module. `exact` False: it lists pods that are over too. `blind`: no list is to be had."""

    def __init__(self, api: FakeApi, chance: random.Random, *, exact: bool) -> None:
        self.api = api
        self.chance = chance
        self.exact = exact
        self.blind = False
        self.known: dict[str, NodePod] = {}
        self.given: dict[tuple[str, str], dict[Resource, tuple[Ids, Ticket]]] = {}
        self.checkpoint: dict[tuple[str, str], dict[Resource, tuple[Ids, Ticket]]] = {}
        self.over: dict[str, NodePod] = {}
        self.admitted: set[str] = set()
        self.running: dict[tuple[str, str], Running] = {}
        self.done: set[tuple[str, str]] = set()
        self.why_failed: dict[str, str] = {}
        totals = {Resource.CORE: 100 * CARDS, Resource.MEMORY: UNITS * CARDS}
        self.all = {each: [f"{each}-{n}" for n in range(total)] for each, total in totals.items()}

    # ---- what the agent asks ----

    async def account(self, pods: Mapping[str, NodePod]) -> tuple[Account, Sequence[Kept]]:
        kept = list(self._kept())
        return account_of(None if self.blind else list(self._listed()), kept, pods), kept

    def _active(self) -> list[NodePod]:
        return [pod for uid in self.known if (pod := self.api.truth.get(uid)) is not None and not pod.over]

    def _listed(self) -> Iterator[Listed]:
        for pod in self._active() if self.exact else [*self._active(), *self.over.values()]:
            shown = [ask.container for ask in pod.ask.containers if ask.container != INIT]
            for container in shown or [""]:
                given = self.given.get((pod.uid, container), {})
                yield Listed(
                    namespace=pod.namespace,
                    pod=pod.name,
                    container=container,
                    ids={each: ids for each, (ids, _) in given.items()},
                )

    def _kept(self) -> Iterator[Kept]:
        for (uid, container), given in self.checkpoint.items():
            for resource, (ids, ticket) in given.items():
                yield Kept(
                    uid=uid,
                    container=container,
                    resource=resource,
                    ids=ids,
                    ticket=ticket.name,
                    cards=ticket.cards,
                )

    # ---- what it does ----

    def collect(self) -> None:
        """Forget what pods that are over or gone had; their containers have ended."""
        over = {uid for uid in self.known if (pod := self.api.truth.get(uid)) is None or pod.over}
        self.over |= {uid: self.known[uid] for uid in over}
        self.over = {uid: pod for uid, pod in self.over.items() if uid in self.api.truth}
        for key in [key for key in self.given if key[0] in over]:
            del self.given[key]
        for key in [key for key in self.running if key[0] in over]:
            del self.running[key]
        self.admitted -= over
        self.known = {uid: pod for uid, pod in self.known.items() if uid not in over}

    async def admit(self, pod: NodePod, desk: Desk, *, die_after: int = 0) -> bool:
        """Give all containers of a pod their ids; False: the kubelet died after so many answers."""
        self.known[pod.uid] = pod
        reusable: dict[Resource, set[str]] = {each: set() for each in Resource}
        for ask in pod.ask.containers:
            key = (pod.uid, ask.container)
            resources = [each for each in Resource if count_of(ask, each)]
            self.chance.shuffle(resources)
            for resource in resources:
                if resource in self.given.get(key, {}):
                    continue
                self.collect()
                ids = self._choose(resource, count_of(ask, resource), reusable[resource])
                if ids is None:
                    return self._fail(pod, "no ids")
                try:
                    ticket = await desk.allocate(resource, ids)
                except RefusedError as error:
                    return self._fail(pod, "unheard of" if self.api.away else str(error))
                except Killed:
                    self._fail(pod, "killed")
                    raise
                self.given.setdefault(key, {})[resource] = (ids, ticket)
                if die_after:
                    die_after -= 1
                    if die_after == 0:
                        return False
            for resource, (ids, _) in self.given.get(key, {}).items():
                if ask.container == INIT:
                    reusable[resource] |= ids
                else:
                    reusable[resource] -= ids
            self.checkpoint[key] = dict(self.given.get(key, {}))
        self.admitted.add(pod.uid)
        return True

    def _fail(self, pod: NodePod, why: str) -> bool:
        self.why_failed[pod.uid] = why
        self.api.truth[pod.uid] = replace(pod, over=True)
        self.collect()
        return True

    def _choose(self, resource: Resource, count: int, reusable: set[str]) -> Ids | None:
        chosen = self.chance.sample(sorted(reusable), min(count, len(reusable)))
        taken = {each for given in self.given.values() for each in given.get(resource, (frozenset(),))[0]}
        free = [each for each in self.all[resource] if each not in taken]
        missing = count - len(chosen)
        if missing > len(free):
            return None
        return frozenset([*chosen, *self.chance.sample(free, missing)])

    async def restart(self, desk: Desk) -> None:
        """Die and come back: what the checkpoint has not is forgotten, and all pods are looked at again."""
        before = set(self.known)
        self.given = {key: dict(each) for key, each in self.checkpoint.items() if key[0] in self.api.truth}
        self.known, self.admitted = {}, set()
        for pod in [pod for pod in self.api.truth.values() if pod.uid in before and not pod.over]:
            await self.admit(pod, desk)
        # Once all are looked at, what is kept for others is dropped.
        self.given = {key: each for key, each in self.given.items() if key[0] in self.known}

    async def start(self, owner: Owner, ask: Ask, desk: Desk, *, kill_in_between: bool = False) -> str | None:
        """Start one container; None where it runs, else why it does not."""
        given = self.given.get((owner.uid, owner.container), {})
        resources = list(given)
        self.chance.shuffle(resources)
        for resource in resources:
            try:
                await desk.start(resource, given[resource][0])
            except RefusedError as error:
                return str(error)
            if kill_in_between:
                raise Killed
        told = given[resources[0]][1]
        if owner.container == INIT:  # it has its share for as long as it runs, which is not long
            self.done.add((owner.uid, owner.container))
        self.running[owner.uid, owner.container] = Running(
            owner=owner, ask=ask, ticket=told.name, cards=told.cards
        )
        return None


class Controller:
    """Places pods in order, by what it sees: placements and the node's annotation."""

    def __init__(self, api: FakeApi) -> None:
        self.api = api
        self.serial = 0

    def create(self, shape: tuple[Ask, ...], *, forged: bool = False, unseen: int = 0) -> NodePod | None:
        """A pod, placed if it fits; a forged one claims to be.

        unseen: so many of the last ones are not known to who places it: there were two leaders for a moment.
        """
        self.serial += 1
        uid = f"uid-{self.serial}"
        pod = NodePod(
            uid=uid,
            namespace="default",
            name=f"pod-{self.serial}",
            created=(f"{self.serial:06}", "", uid),
            over=False,
            ask=PodAsk(containers=shape),
            fault="placement: was not written by the controller of this cluster" if forged else None,
        )
        if not forged:
            live = [each for each in self.api.truth.values() if not each.over and each.fault is None]
            live = live[: len(live) - unseen]
            rooms = booked(cards(), [each.shares(self.api.published) for each in live])
            shares = place_on(rooms, pod.ask, unit_bytes=UNIT_BYTES, policy="binpack")
            if shares is None:
                return None
            pod = replace(pod, placement=PodPlacement(uid=uid, node=NODE, containers=shares))
        self.api.truth[uid] = pod
        return pod


async def grant_of(ticket: Ticket) -> Grant:
    return Grant(
        name=str(ticket.owner)[-63:],
        cards=tuple(
            CardGrant(
                uuid=share.uuid,
                memory_bytes=share.memory_bytes,
                core_ppm=share.cores * 10_000,
                core_max_ppm=share.cores_max * 10_000,
                whole=share.whole,
            )
            for share in ticket.shares
        ),
    )

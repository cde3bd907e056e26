"""What the node knows at an instant: cards, pods, the kubelet's account, its own tickets. Values only."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.nodes import Moved, NodeCard
from vcuda.kube.placements import CardShare, PodPlacement
from vcuda.kube.placing import Shares, held


class Resource(StrEnum):
    """The two that a container can ask; the kubelet asks us for each by itself."""

    CORE = "core"
    MEMORY = "memory"


Ids = frozenset[str]
"""Device ids of one resource: opaque units."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """A container of a pod."""

    uid: str
    """Of the pod."""
    container: str
    namespace: str = field(default="", compare=False)
    pod: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}/{self.container}"


@dataclass(frozen=True, kw_only=True)
class NodePod:
    """A pod that is bound to this node and asks for cards."""

    uid: str
    namespace: str
    name: str
    created: tuple[str, str, str]
    """By it they are in order: the API's seconds, the webhook's stamp, the uid."""
    over: bool
    ask: PodAsk
    placement: PodPlacement | None = None
    """Believed: signed by the controller, for this pod and this node."""
    fault: str | None = None
    """Why it gets nothing here. None with no placement: the node may place it."""
    spent: bool = False
    """It is being deleted, or was started before: hardly the one that ids are asked for."""

    def owner(self, container: str) -> Owner:
        """One of its containers."""
        return Owner(uid=self.uid, container=container, namespace=self.namespace, pod=self.name)

    def shares(self, moved: Moved) -> Shares:
        """What its containers hold or are to hold; nothing for one without a placement."""
        return {} if self.placement is None else held(self.placement, moved)


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Ids that a container holds, as the kubelet says."""

    owner: Owner
    resource: Resource
    ids: Ids


@dataclass(frozen=True, kw_only=True)
class Account:
    """What the kubelet says of pods and ids."""

    listed: frozenset[tuple[str, str]] = frozenset()
    """Namespace and name of the pods that it knows. A pod that it has not looked at yet is not among them."""
    held: tuple[Held, ...] = ()
    known: bool = True
    """False: it does not answer."""

    def holders(self, resource: Resource, ids: Ids) -> list[Owner]:
        """The containers that hold exactly these; an init container's are lent to the pod's other ones."""
        return [each.owner for each in self.held if each.resource is resource and each.ids == ids]

    def holds(self, owner: Owner, resource: Resource) -> bool:
        """Whether a container has some of a resource."""
        return any(each.owner == owner and each.resource is resource for each in self.held)


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What one container was given, or is about to be: ids, cards, and a directory."""

    name: str
    """Of its directory."""
    ids: Mapping[Resource, Ids]
    shares: tuple[CardShare, ...]
    priority: int
    meant: Owner
    """For whom it was thought when the kubelet asked."""
    owner: Owner | None = None
    """Who has it: known since a container was about to start."""
    asked_ns: int = 0
    """CLOCK_REALTIME when the kubelet last asked for ids of it."""

    @property
    def cards(self) -> tuple[str, ...]:
        """The UUIDs of its cards."""
        return tuple(share.uuid for share in self.shares)


@dataclass(frozen=True, kw_only=True)
class View:
    """All of it."""

    cards: Sequence[NodeCard]
    pods: Mapping[str, NodePod]
    """By uid."""
    tickets: Sequence[Ticket]
    account: Account
    moved: Moved
    unit_bytes: int
    policy: str = "binpack"
    """How the node places pods that nobody else places."""
    require_placement: bool = True

    def running(self) -> list[NodePod]:
        """The pods that are not over, first come first."""
        return sorted((pod for pod in self.pods.values() if not pod.over), key=lambda pod: pod.created)

    def current(self, owner: Owner) -> tuple[CardShare, ...] | None:
        """What a container holds or is to hold by its pod's placement; None: nothing says so."""
        pod = self.pods.get(owner.uid)
        return None if pod is None else pod.shares(self.moved).get(owner.container)

    def asked(self, owner: Owner) -> Ask | None:
        """What a container asks; None for one that is not known."""
        pod = self.pods.get(owner.uid)
        asks: Iterable[Ask] = () if pod is None else pod.ask.containers
        return next((ask for ask in asks if ask.container == owner.container), None)

    def holder(self, ticket: Ticket) -> Owner | None:
        """Who has a ticket: its owner, else who holds its ids by the kubelet's account."""
        if ticket.owner is not None:
            return ticket.owner
        found = [
            owner for resource, ids in ticket.ids.items() for owner in self.account.holders(resource, ids)
        ]
        # An init container's ids are lent to others of its pod: each has a ticket of its own.
        lent = any(owner.uid == ticket.meant.uid for owner in found)
        return ticket.meant if lent else next(iter(found), None)


def count_of(ask: Ask, resource: Resource) -> int:
    """How many ids of a resource a container asks."""
    return ask.cores if resource is Resource.CORE else ask.memory_units

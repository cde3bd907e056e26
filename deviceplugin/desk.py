"""Where the kubelet's questions are answered, one at a time: look, decide, write, answer.

Each step leaves what the next process needs, whenever this one dies: what is decided is in `allocation` and
`starting`, what is written in `tickets`, in which order is here.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from deviceplugin import allocation, starting
from deviceplugin.account import Kept, answers
from deviceplugin.allocation import Refused
from deviceplugin.starting import Stop
from deviceplugin.state import Account, Ids, NodePod, Resource, Ticket, View
from deviceplugin.tickets import Books, TicketError
from vcuda.errors import VcudaError
from vcuda.grant import Grant
from vcuda.kube.nodes import Moved, NodeCard

UNHELD_SECONDS = 60.0
"""A ticket that no container has by the kubelet's account, for so long, was for one that never came to be."""


_AGAIN_SECONDS = 0.1


class RefusedError(VcudaError):
    """A container gets nothing, or must not start now; the kubelet and the pod's owner are told the text."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.text)
        self.refused = refused


class Api(Protocol):
    """What is known of the cluster, and said to it."""

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The pods of this node that ask for cards, by uid."""
        ...

    @property
    def names(self) -> Collection[tuple[str, str]]:
        """Namespace and name of all pods of this node, whatever they ask for."""
        ...

    @property
    def moved(self) -> Moved:
        """The node's annotation, as it was last read or written."""
        ...

    @property
    def synced(self) -> bool:
        """Whether the pods were ever listed."""
        ...

    async def refresh(self) -> bool:
        """Ask for the pods once more; whether that could be done."""
        ...

    async def publish(self, moved: Moved) -> bool:
        """Write the annotation; whether that could be done."""
        ...

    def report(self, refused: Refused) -> None:
        """Have an Event made of a refusal; soon, and if that can be."""
        ...


class Kubelet(Protocol):
    """The kubelet's own account."""

    async def account(self, pods: Mapping[str, NodePod]) -> tuple[Account, Sequence[Kept]]:
        """What it says now, and its checkpoint."""
        ...


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How this node decides."""

    unit_bytes: int
    policy: str = "binpack"
    require_placement: bool = True


class Desk:
    """Answers for the node.

    cards: those that it has. grant: what a ticket's container may use. restore: sees that paths of the host,
    which an answer of whatever age named, are there. patience_seconds: for so long it is waited for the
    kubelet's account before a container is refused.
    """

    def __init__(
        self,
        books: Books,
        *,
        api: Api,
        kubelet: Kubelet,
        cards: Callable[[], Sequence[NodeCard]],
        grant: Callable[[Ticket], Awaitable[Grant]],
        rules: Rules,
        restore: Callable[[Iterable[str]], None] = lambda _: None,
        patience_seconds: float = 10.0,
    ) -> None:
        self._books = books
        self._api = api
        self._kubelet = kubelet
        self._cards = cards
        self._grant = grant
        self._rules = rules
        self._restore = restore
        self._patience_seconds = patience_seconds
        self._one_at_a_time = asyncio.Lock()

    async def allocate(self, resource: Resource, ids: Ids) -> Ticket:
        """The ticket of a container that is given these ids.

        Raises:
            RefusedError: no container of this node can be meant.
            TicketError: it cannot be written.

        """
        async with self._one_at_a_time:
            view, _ = await self._view()
            began = time.monotonic()
            # A kubelet that was just started admits pods a moment before it answers. It waits for us.
            while not view.account.known and time.monotonic() - began < self._patience_seconds:
                await asyncio.sleep(_AGAIN_SECONDS)
                view, _ = await self._view()
            found = allocation.allocate(view, resource, ids)
            if self._in_doubt(view, resource, len(ids)):
                if await self._api.refresh():
                    view, _ = await self._view()
                    found = allocation.allocate(view, resource, ids)
                else:
                    text = f"{len(ids)} of {resource} asked, maybe for a pod that was not heard of yet"
                    found = Refused(text=text, reason="PodUnknown")
            if isinstance(found, Refused) and await self._api.refresh():
                view, _ = await self._view()
                found = allocation.allocate(view, resource, ids)
            if isinstance(found, Refused):
                self._api.report(found)
                raise RefusedError(found)
            for ticket in found.void:
                self._discard(ticket)
            return self._books.put(replace(found.ticket, asked_ns=time.time_ns()))

    async def start(self, resource: Resource, ids: Ids) -> None:
        """See that the container with these ids may start, and has what it was promised.

        Raises:
            RefusedError: it must not start, at least not now.
            TicketError: its grant cannot be written.

        """
        async with self._one_at_a_time:
            view, kept = await self._view()
            found = starting.start(view, resource, ids, answers(kept, view.account, resource, ids))
            if isinstance(found, Stop) and await self._api.refresh():
                view, kept = await self._view()
                found = starting.start(view, resource, ids, answers(kept, view.account, resource, ids))
            if isinstance(found, Stop):
                self._api.report(found.refused)
                for ticket in found.void:
                    self._discard(ticket)
                raise RefusedError(found.refused)
            if found.moved is not None and not await self._api.publish(found.moved):
                text = "the exchange of its cards cannot be published: the API server does not answer"
                raise RefusedError(Refused(text=text, reason="CardsExchanged"))
            self._restore({path for each in kept if each.ids == ids for path in each.mounts})
            written = {ticket.name: ticket for ticket in self._books.tickets}
            for ticket in found.tickets:
                if written.get(ticket.name) != ticket:
                    self._books.put(ticket)
                if not self._books.granted(ticket):
                    self._books.grant(ticket, await self._grant(ticket))

    async def reconcile(self) -> None:
        """Remove what belongs to nobody any more: tickets, and what is published of pods that are over.

        Raises:
            TicketError: something cannot be removed.

        """
        async with self._one_at_a_time:
            if not self._api.synced:
                return
            view, _ = await self._view()
            for ticket in view.tickets:
                if _ended(view, ticket):
                    self._discard(ticket)
            rest = self._books.tickets
            view = replace(view, tickets=rest)
            moved = _tidied(view)
            if moved is not None:
                await self._api.publish(moved)

    def _discard(self, ticket: Ticket) -> None:
        """Remove a ticket; while programs still run in it, it keeps its cards, and only its ids are free.

        That is so where a pod was deleted by force: the kubelet forgets it before its containers have ended.
        """
        if not self._books.in_use(ticket):
            self._books.remove(ticket)
        elif ticket.ids:
            self._books.put(replace(ticket, ids={}))

    def _in_doubt(self, view: View, resource: Resource, count: int) -> bool:
        """Whether the API has to be asked first: one was not heard of, or several may be meant."""
        names = self._api.names
        return any(each not in names for each in view.account.listed) or allocation.doubtful(
            view, resource, count
        )

    async def view(self) -> View:
        """What is known now, for those who tell of it."""
        return (await self._view())[0]

    async def _view(self) -> tuple[View, Sequence[Kept]]:
        account, kept = await self._kubelet.account(self._api.pods)
        return (
            View(
                cards=self._cards(),
                pods=self._api.pods,
                tickets=self._books.tickets,
                account=account,
                moved=self._api.moved,
                unit_bytes=self._rules.unit_bytes,
                policy=self._rules.policy,
                require_placement=self._rules.require_placement,
            ),
            kept,
        )


def _ended(view: View, ticket: Ticket) -> bool:
    """Whether a ticket is of no use any more. Where the kubelet does not answer, none is."""
    if not view.account.known or _is_held(view.account, ticket):
        return False
    pod = view.pods.get((ticket.owner or ticket.meant).uid)
    if pod is None or pod.over:
        return True
    return ticket.owner is None and time.time_ns() - ticket.asked_ns > UNHELD_SECONDS * 1e9


def _is_held(account: Account, ticket: Ticket) -> bool:
    """Whether a container of the ticket's pod has its ids by the kubelet's account."""
    uid = None if ticket.owner is None else ticket.owner.uid
    holding: Iterable[str] = (
        owner.uid for resource, ids in ticket.ids.items() for owner in account.holders(resource, ids)
    )
    return any(uid in (None, each) for each in holding)


def _tidied(view: View) -> Moved | None:
    """What is to be published when pods that are over are left out; None: nothing changes."""
    owners = {ticket.owner.uid for ticket in view.tickets if ticket.owner is not None}
    kept = {
        uid: each
        for uid, each in view.moved.items()
        if uid in owners or ((pod := view.pods.get(uid)) is not None and not pod.over)
    }
    return None if len(kept) == len(view.moved) else kept


__all__ = ["Api", "Desk", "Kubelet", "RefusedError", "Rules", "TicketError"]

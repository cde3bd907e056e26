"""The device plugin protocol: a server for each resource, of which each new kubelet is told.

Wire types come in and go out here. What is answered is the desk's; what is offered, the offers'.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from deviceplugin._proto import device_plugin_pb2 as plugin
from deviceplugin._proto.device_plugin_pb2_grpc import (
    DevicePluginServicer,
    add_DevicePluginServicer_to_server,
)
from deviceplugin.delivery import Answer
from deviceplugin.desk import Desk, RefusedError
from deviceplugin.kubelet import KubeletError, Presence, register
from deviceplugin.state import Resource, Ticket
from deviceplugin.units import Offer
from vcuda.errors import VcudaError
from vcuda.kube.names import Names

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

Answered = TypeVar("Answered")
_LOG = logging.getLogger(__name__)
_HEALTH = {True: "Unhealthy", False: "Healthy"}


@dataclass
class Counts:
    """What the kubelet asked, and how it was answered."""

    answered: dict[tuple[Resource, str, str], int] = field(
        default_factory=dict[tuple[Resource, str, str], int]
    )
    """By resource, call and outcome: `ok`, or why not."""
    seconds: dict[tuple[Resource, str], float] = field(default_factory=dict[tuple[Resource, str], float])
    """Spent, by resource and call."""

    def add(self, resource: Resource, call: str, outcome: str, seconds: float) -> None:
        """One call more."""
        self.answered[resource, call, outcome] = self.answered.get((resource, call, outcome), 0) + 1
        self.seconds[resource, call] = self.seconds.get((resource, call), 0.0) + seconds


class Offers:
    """What is offered, and who waits for it to change."""

    def __init__(self, make: Callable[[Resource], Offer]) -> None:
        self._make = make
        self._changed = asyncio.Event()
        self._now = {each: make(each) for each in Resource}

    def now(self, resource: Resource) -> Offer:
        """What is offered."""
        return self._now[resource]

    def look(self) -> None:
        """See whether anything is different, and wake who waits for that."""
        found = {each: self._make(each) for each in Resource}
        if found != self._now:
            self._now = found
            self._changed.set()
            self._changed = asyncio.Event()

    async def follow(self, resource: Resource) -> AsyncIterator[Offer]:
        """What is offered, and again when that is different."""
        said: Offer | None = None
        while True:
            changed = self._changed
            if (now := self._now[resource]) != said:
                said = now
                yield now
                continue
            await changed.wait()


class _Plugin(DevicePluginServicer):
    """One resource's server."""

    def __init__(
        self,
        resource: Resource,
        *,
        desk: Desk,
        offers: Offers,
        answer: Callable[[Ticket], Answer],
        counts: Counts,
        listens: Callable[[Resource, int], None],
    ) -> None:
        self._resource = resource
        self._listens = listens
        self._desk = desk
        self._offers = offers
        self._answer = answer
        self._counts = counts

    async def GetDevicePluginOptions(  # noqa: N802 (the protocol's names)
        self,
        request: plugin.Empty,  # noqa: ARG002
        context: "Context",  # noqa: ARG002
    ) -> plugin.DevicePluginOptions:
        """That containers are looked at before they start."""
        return plugin.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(  # noqa: N802
        self,
        request: plugin.Empty,  # noqa: ARG002
        context: "Context",  # noqa: ARG002
    ) -> AsyncIterator[plugin.ListAndWatchResponse]:
        """All ids, and all of them again when one is withdrawn or comes back."""
        told = 0
        try:
            async for offer in self._offers.follow(self._resource):
                devices = [
                    plugin.Device(id=each, health=_HEALTH[each in offer.withdrawn]) for each in offer.ids
                ]
                yield plugin.ListAndWatchResponse(devices=devices)
                if not told:
                    told = 1
                    self._listens(self._resource, 1)
        finally:
            self._listens(self._resource, -told)

    async def GetPreferredAllocation(  # noqa: N802
        self,
        request: plugin.PreferredAllocationRequest,
        context: "Context",  # noqa: ARG002
    ) -> plugin.PreferredAllocationResponse:
        """Nothing is preferred: one unit is as good as another. The kubelet is told not to ask."""
        return plugin.PreferredAllocationResponse(
            container_responses=[
                plugin.ContainerPreferredAllocationResponse() for _ in request.container_requests
            ]
        )

    async def Allocate(  # noqa: N802
        self, request: plugin.AllocateRequest, context: "Context"
    ) -> plugin.AllocateResponse:
        """Give a container what its pod was placed on."""
        answers: list[plugin.ContainerAllocateResponse] = []
        for each in request.container_requests:
            ids = frozenset(each.device_ids)
            ticket = await self._asked(context, "Allocate", self._desk.allocate(self._resource, ids))
            answers.append(_wire(self._answer(ticket)))
        return plugin.AllocateResponse(container_responses=answers)

    async def PreStartContainer(  # noqa: N802
        self, request: plugin.PreStartContainerRequest, context: "Context"
    ) -> plugin.PreStartContainerResponse:
        """Let a container start, or not."""
        ids = frozenset(request.device_ids)
        await self._asked(context, "PreStartContainer", self._desk.start(self._resource, ids))
        return plugin.PreStartContainerResponse()

    async def _asked(self, context: "Context", call: str, answer: Awaitable[Answered]) -> Answered:
        began = time.monotonic()
        outcome = "error"
        try:
            found = await answer
            outcome = "ok"
        except RefusedError as error:
            outcome = error.refused.reason
            _LOG.warning("%s: %s", call, error)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"vcuda-node: {error}")
        except VcudaError as error:
            _LOG.error("%s: %s", call, error)
            await context.abort(grpc.StatusCode.INTERNAL, f"vcuda-node: {error}")
        finally:
            self._counts.add(self._resource, call, outcome, time.monotonic() - began)
        return found


@dataclass
class Plugins:
    """Both servers, and the kubelet that is told of them."""

    directory: Path
    """The kubelet's."""
    names: Names
    desk: Desk
    offers: Offers
    answer: Callable[[Ticket], Answer]
    look_seconds: float = 0.5
    changed: Callable[[], None] = lambda: None
    """Called when `registered` is another."""
    counts: Counts = field(default_factory=Counts)
    _listening: Counter[Resource] = field(default_factory=Counter[Resource])
    """Streams: an old kubelet's may end after the new one's began."""

    @property
    def registered(self) -> bool:
        """Whether the kubelet has heard what there is of both resources, and listens for more."""
        return all(self._listening[each] > 0 for each in Resource)

    async def run(self) -> None:
        """Serve, and register anew whenever the kubelet is another one; until cancelled."""
        presence = Presence(self.directory)
        said = ""
        while True:
            kubelet = await presence.wait(self.look_seconds)
            servers: list[grpc.aio.Server] = []
            try:
                servers += [await self._serve(resource) for resource in Resource]
                for resource in Resource:
                    await register(self.directory, self._socket(resource).name, self._name(resource))
                said = ""
                _LOG.info("registered %s and %s with the kubelet", self.names.core, self.names.memory)
                # A kubelet that starts removes all sockets, ours too.
                while presence.now() == kubelet and all(self._socket(each).exists() for each in Resource):
                    await asyncio.sleep(self.look_seconds)
                _LOG.info("the kubelet was started anew, or has removed our sockets")
            except (KubeletError, OSError, RuntimeError) as error:
                if str(error) != said:
                    said = str(error)
                    _LOG.warning("not registered with the kubelet: %s; trying again", said)
                await asyncio.sleep(max(1.0, self.look_seconds))
            finally:
                await asyncio.gather(*(server.stop(0) for server in servers))

    def _listens(self, resource: Resource, more: int) -> None:
        before = self.registered
        self._listening[resource] += more
        if self.registered != before:
            self.changed()

    def _name(self, resource: Resource) -> str:
        return self.names.core if resource is Resource.CORE else self.names.memory

    def _socket(self, resource: Resource) -> Path:
        return self.directory / "device-plugins" / f"{self._name(resource).replace('/', '-')}.sock"

    async def _serve(self, resource: Resource) -> grpc.aio.Server:
        server = grpc.aio.server()
        servicer = _Plugin(
            resource,
            desk=self.desk,
            offers=self.offers,
            answer=self.answer,
            counts=self.counts,
            listens=self._listens,
        )
        add_DevicePluginServicer_to_server(servicer, server)
        socket = self._socket(resource)
        with contextlib.suppress(FileNotFoundError):
            socket.unlink()
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        return server


def _wire(answer: Answer) -> plugin.ContainerAllocateResponse:
    return plugin.ContainerAllocateResponse(
        envs=answer.variables,
        mounts=[
            plugin.Mount(container_path=each.container, host_path=each.host, read_only=each.read_only)
            for each in answer.mounts
        ],
        devices=[
            plugin.DeviceSpec(container_path=each, host_path=each, permissions="rw")
            for each in answer.devices
        ],
        cdi_devices=[plugin.CdiDevice(name=each) for each in answer.cdi],
    )

"""The kubelet as a server: its list of who has which ids, its checkpoint, and where plugins register."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from deviceplugin._proto import device_plugin_pb2 as plugin
from deviceplugin._proto import pod_resources_pb2 as resources
from deviceplugin._proto.device_plugin_pb2_grpc import RegistrationStub
from deviceplugin._proto.pod_resources_pb2_grpc import PodResourcesListerStub
from deviceplugin.account import Kept, Listed, account_of, read_checkpoint, resource_of
from deviceplugin.state import Account, NodePod, Resource
from vcuda.errors import VcudaError
from vcuda.kube.names import Names

if TYPE_CHECKING:
    from deviceplugin._proto.pod_resources_pb2_grpc import PodResourcesListerAsyncStub

_LOG = logging.getLogger(__name__)
VERSION = "v1beta1"
CHECKPOINT = "kubelet_internal_checkpoint"
_LIST_SECONDS = 5.0
_REGISTER_SECONDS = 10.0
_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 2**20),  # as the kubelet's own clients have it
    ("grpc.use_local_subchannel_pool", 1),
)


class KubeletError(VcudaError):
    """The kubelet does not answer, or refuses."""


class KubeletAccount:
    """The account of the kubelet whose directory this is."""

    def __init__(self, directory: Path, names: Names) -> None:
        self._socket = directory / "pod-resources" / "kubelet.sock"
        self._checkpoint = directory / "device-plugins" / CHECKPOINT
        self._names = names
        self._channel: grpc.aio.Channel | None = None
        self._inode = 0
        self._quiet = False

    async def account(self, pods: Mapping[str, NodePod]) -> tuple[Account, Sequence[Kept]]:
        """What it says now. Where it does not answer, what its checkpoint says."""
        listed: list[Listed] | None = None
        try:
            listed = await self._list()
            self._quiet = False
        except KubeletError as error:
            if not self._quiet:
                _LOG.warning("%s; whose ids are whose is told by its checkpoint alone", error)
            self._quiet = True
        kept = self._kept()
        return account_of(listed, kept, pods), kept

    async def offered(self) -> dict[Resource, set[str]]:
        """The ids of our resources as the kubelet has them, whoever told it.

        Raises:
            KubeletError: it does not say.

        """
        try:
            answer = await self._stub().GetAllocatableResources(
                resources.AllocatableResourcesRequest(), timeout=_LIST_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            raise KubeletError(f"{self._socket}: {error.code().name}: {error.details()}") from error
        found: dict[Resource, set[str]] = {}
        for each in answer.devices:
            resource = resource_of(each.resource_name, self._names)
            if resource is not None:
                found.setdefault(resource, set()).update(each.device_ids)
        return found

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def _list(self) -> list[Listed]:
        try:
            answer = await self._stub().List(resources.ListPodResourcesRequest(), timeout=_LIST_SECONDS)
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise KubeletError(f"{self._socket}: {error.code().name}: {error.details()}") from error
        return [
            Listed(
                namespace=pod.namespace,
                pod=pod.name,
                container=container.name,
                ids=_ids(container, self._names),
            )
            for pod in answer.pod_resources
            for container in pod.containers
        ]

    def _stub(self) -> "PodResourcesListerAsyncStub":
        """A new connection where the socket is a new one: an old one waits before it tries again."""
        try:
            inode = self._socket.stat().st_ino
        except OSError as error:
            raise KubeletError(f"{self._socket}: {error.strerror}") from error
        if self._channel is None or inode != self._inode:
            self._channel = grpc.aio.insecure_channel(f"unix:{self._socket}", options=_OPTIONS)
            self._inode = inode
        return PodResourcesListerStub(self._channel)

    def _kept(self) -> list[Kept]:
        try:
            return read_checkpoint(self._checkpoint.read_text(encoding="utf-8"), self._names)
        except (OSError, ValueError):
            return []


async def register(directory: Path, endpoint: str, resource_name: str) -> None:
    """Tell the kubelet that `endpoint`, a socket in its directory, serves a resource.

    Raises:
        KubeletError: it does not answer, or refuses.

    """
    request = plugin.RegisterRequest(
        version=VERSION,
        endpoint=endpoint,
        resource_name=resource_name,
        options=plugin.DevicePluginOptions(pre_start_required=True),
    )
    socket = directory / "device-plugins" / "kubelet.sock"
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS) as channel:
        try:
            await RegistrationStub(channel).Register(request, timeout=_REGISTER_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise KubeletError(
                f"{socket}: {resource_name}: {error.code().name}: {error.details()}"
            ) from error


class Presence:
    """Whether the kubelet is there, and whether it is another one than before: it makes its socket anew."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "device-plugins" / "kubelet.sock"

    def now(self) -> tuple[int, int] | None:
        """Which kubelet is there; None: none is."""
        with contextlib.suppress(OSError):
            status = self._socket.stat()
            return status.st_ino, status.st_ctime_ns
        return None

    async def wait(self, seconds: float) -> tuple[int, int]:
        """Until one is there."""
        while (found := self.now()) is None:
            await asyncio.sleep(seconds)
        return found


def _ids(container: resources.ContainerResources, names: Names) -> dict[Resource, frozenset[str]]:
    """A resource is in several entries where its ids are on several NUMA nodes."""
    found: dict[Resource, frozenset[str]] = {}
    for each in container.devices:
        resource = resource_of(each.resource_name, names)
        if resource is not None:
            found[resource] = found.get(resource, frozenset()) | frozenset(each.device_ids)
    return found

"""Whose ids are whose, by the kubelet's own account: its list, and its checkpoint where that says more. Pure.

The pod-resources API names pods and containers, without uids, and leaves out init containers. The checkpoint
of the kubelet's device manager has uids, init containers, and the answers that we gave. It is written a
moment after a container was given all of its ids, and keeps pods that are gone for a while.
"""

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from deviceplugin._proto.device_plugin_pb2 import ContainerAllocateResponse
from deviceplugin.starting import Answered
from deviceplugin.state import Account, Held, Ids, NodePod, Owner, Resource
from vcuda.kube.names import Names

TICKET = "VCUDA_TICKET"
"""The variable of an answer with the name of its ticket."""
CARDS = "NVIDIA_VISIBLE_DEVICES"
"""The one with the UUIDs of its cards, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A container, as the kubelet lists it."""

    namespace: str
    pod: str
    container: str
    ids: Mapping[Resource, Ids]
    """Of our resources; a container that has none is listed too."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What the kubelet's checkpoint says of one resource of a container."""

    uid: str
    container: str
    resource: Resource
    ids: Ids
    ticket: str
    cards: tuple[str, ...]
    mounts: tuple[str, ...] = ()
    """Paths of the host that it has mounted, or is to have."""


def resource_of(name: str, names: Names) -> Resource | None:
    """Which of ours a resource's name is; None for another's."""
    return {names.core: Resource.CORE, names.memory: Resource.MEMORY}.get(name)


def read_checkpoint(text: str, names: Names) -> list[Kept]:
    """What a checkpoint says of our resources; nothing where it cannot be read: its form is the kubelet's."""
    try:
        entries = json.loads(text)["Data"]["PodDeviceEntries"] or ()
        return [kept for entry in entries if (kept := _kept(entry, names)) is not None]
    except (ValueError, TypeError, KeyError, AttributeError, DecodeError):
        return []


def account_of(
    listed: Iterable[Listed] | None, checkpoint: Iterable[Kept], pods: Mapping[str, NodePod]
) -> Account:
    """Put both together; `listed` None: the kubelet does not answer."""
    kept = list(checkpoint)
    by_ids: dict[tuple[str, Resource, Ids], list[str]] = {}
    for each in kept:
        by_ids.setdefault((each.container, each.resource, each.ids), []).append(each.uid)
    by_name: dict[tuple[str, str], list[NodePod]] = {}
    for pod in sorted(pods.values(), key=lambda pod: (not pod.over, pod.created), reverse=True):
        by_name.setdefault((pod.namespace, pod.name), []).append(pod)
    held: list[Held] = []
    shown: set[tuple[str, str, str]] = set()
    names: set[tuple[str, str]] = set()
    for each in listed or ():
        name = (each.namespace, each.pod)
        names.add(name)
        shown.add((*name, each.container))
        for resource, ids in each.ids.items():
            uid = _uid(by_ids.get((each.container, resource, ids), []), by_name.get(name, []))
            owner = Owner(uid=uid, container=each.container, namespace=each.namespace, pod=each.pod)
            held.append(Held(owner=owner, resource=resource, ids=ids))
    for each in kept:
        pod = pods.get(each.uid)
        if pod is None or pod.over:
            continue
        name = (pod.namespace, pod.name)
        if listed is None or (name in names and (*name, each.container) not in shown):
            held.append(Held(owner=pod.owner(each.container), resource=each.resource, ids=each.ids))
    return Account(listed=frozenset(names), held=tuple(held), known=listed is not None)


def answers(checkpoint: Iterable[Kept], account: Account, resource: Resource, ids: Ids) -> list[Answered]:
    """What was answered for these ids to those who hold them."""
    owners = {(owner.uid, owner.container): owner for owner in account.holders(resource, ids)}
    return [
        Answered(owner=owners[each.uid, each.container], name=each.ticket, cards=each.cards)
        for each in checkpoint
        if each.resource is resource and each.ids == ids and (each.uid, each.container) in owners
    ]


def _uid(by_ids: list[str], by_name: list[NodePod]) -> str:
    """The uid of a listed container's pod. An old pod may have had the same name, or the same ids."""
    both = [pod.uid for pod in by_name if pod.uid in by_ids]
    return next(iter([*both, *(pod.uid for pod in by_name), *by_ids]), "")


def _kept(entry: Any, names: Names) -> Kept | None:  # noqa: ANN401 (JSON)
    resource = resource_of(entry["ResourceName"], names)
    if resource is None:
        return None
    try:
        answer = ContainerAllocateResponse.FromString(base64.b64decode(entry["AllocResp"] or ""))
    except binascii.Error:
        answer = ContainerAllocateResponse()
    return Kept(
        uid=str(entry["PodUID"]),
        container=str(entry["ContainerName"]),
        resource=resource,
        ids=frozenset(str(each) for ids in entry["DeviceIDs"].values() for each in ids),
        ticket=answer.envs.get(TICKET, ""),
        cards=tuple(filter(None, answer.envs.get(CARDS, "").split(","))),
        mounts=tuple(mount.host_path for mount in answer.mounts),
    )

"""A placement: node, cards and shares of a pod, as the controller writes it on the pod and signs it.

The annotation is `SIGNATURE.CONTENT`: base64url of an Ed25519 signature (RFC 8032) over the content's bytes,
a dot, and the content, JSON. The content names the pod's uid, so that no other pod can use it. Who can write
pods can write annotations; only who has the controller's key can write one that a node believes.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from vcuda.errors import VcudaError

VERSION = 1


class PlacementError(VcudaError):
    """An annotation is no placement, or not one that the controller wrote for this pod."""


@dataclass(frozen=True, kw_only=True)
class CardShare:
    """What a container gets of one card."""

    uuid: str
    cores: int
    """Guaranteed, in percent of the card; 0: nothing is guaranteed."""
    cores_max: int
    """The ceiling; 100 and cores 100: not limited."""
    memory_bytes: int
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class PodPlacement:
    """Where a pod was placed."""

    uid: str
    node: str
    containers: Mapping[str, tuple[CardShare, ...]]
    """By container; each on as many cards as it asked for."""
    priority: int = 0


def encode(placement: PodPlacement, key: Ed25519PrivateKey) -> str:
    """The annotation's value."""
    content = json.dumps(
        {
            "version": VERSION,
            "uid": placement.uid,
            "node": placement.node,
            "priority": placement.priority,
            "containers": {
                name: [
                    {
                        "uuid": share.uuid,
                        "cores": share.cores,
                        "coresMax": share.cores_max,
                        "memoryBytes": share.memory_bytes,
                        "whole": share.whole,
                    }
                    for share in shares
                ]
                for name, shares in placement.containers.items()
            },
        },
        separators=(",", ":"),
    )
    signature = base64.urlsafe_b64encode(key.sign(content.encode())).decode()
    return f"{signature}.{content}"


def decode(text: str, uid: str, key: Ed25519PublicKey | None) -> PodPlacement:
    """What an annotation's value says of the pod with this uid; key None: whoever wrote it.

    Raises:
        PlacementError: it is no placement, of another pod, or not signed with the key.

    """
    signature, _, content = text.partition(".")
    if key is not None:
        try:
            key.verify(base64.urlsafe_b64decode(signature), content.encode())
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise PlacementError("placement: was not written by the controller of this cluster") from error
    try:
        found = _read(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise PlacementError(f"placement: cannot be read: {error}") from error
    if found.uid != uid:
        raise PlacementError(f"placement: is of the pod with uid {found.uid}, not of this one")
    return found


def _read(content: Any) -> PodPlacement:  # noqa: ANN401 (JSON)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, not {VERSION}; upgrade vcuda on this node")
    containers = {
        str(name): tuple(
            CardShare(
                uuid=str(share["uuid"]),
                cores=int(share["cores"]),
                cores_max=int(share["coresMax"]),
                memory_bytes=int(share["memoryBytes"]),
                whole=bool(share["whole"]),
            )
            for share in shares
        )
        for name, shares in content["containers"].items()
    }
    return PodPlacement(
        uid=str(content["uid"]),
        node=str(content["node"]),
        priority=int(content["priority"]),
        containers=containers,
    )

"""A pod of this node, from the API's JSON: what it asks, and whether its placement is believed. Pure."""

from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from deviceplugin.state import NodePod
from vcuda.kube import placements
from vcuda.kube.asks import AskError, Pod, PodAsk, asked_of, mapping
from vcuda.kube.names import Names
from vcuda.kube.placements import PlacementError, PodPlacement

OVER = ("Succeeded", "Failed")


@dataclass(frozen=True, kw_only=True)
class Trust:
    """What a placement must be to be believed here."""

    node: str
    names: Names
    key: Ed25519PublicKey | None
    """The controller's; None: not known, and nothing is believed."""
    required: bool = True
    """False: a pod without a placement is placed by the node."""


def read_pod(pod: Pod, trust: Trust) -> NodePod | None:
    """The pod as the node sees it; None for one that asks for nothing of ours."""
    fault: str | None = None
    try:
        ask = asked_of(pod, trust.names)
    except AskError as error:
        ask, fault = PodAsk(containers=()), str(error)
    if not ask.containers and fault is None:
        return None
    metadata, status = mapping(pod.get("metadata")), mapping(pod.get("status"))
    annotations = mapping(metadata.get("annotations"))
    uid = str(metadata.get("uid", ""))
    placement: PodPlacement | None = None
    text = annotations.get(trust.names.placement)
    if fault is None and (text is not None or trust.required):
        try:
            placement = _believed(text, uid, ask, trust)
        except PlacementError as error:
            fault = str(error)
    return NodePod(
        uid=uid,
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        created=(
            str(metadata.get("creationTimestamp", "")),
            str(annotations.get(trust.names.arrival, "")).zfill(20),
            uid,
        ),
        over=status.get("phase") in OVER,
        ask=ask,
        placement=placement,
        fault=fault,
        spent="deletionTimestamp" in metadata or "startTime" in status,
    )


def reduced(pod: Pod) -> dict[str, Any]:
    """The parts of a pod that `read_pod` looks at: a node keeps no others in memory."""
    metadata, spec, status = (mapping(pod.get(name)) for name in ("metadata", "spec", "status"))
    kept = ("uid", "namespace", "name", "creationTimestamp", "deletionTimestamp", "annotations")
    return {
        "metadata": {name: metadata[name] for name in kept if name in metadata},
        "spec": {
            field: [
                {"name": mapping(each).get("name"), "resources": mapping(each).get("resources")}
                for each in spec.get(field) or ()
            ]
            for field in ("initContainers", "containers")
        },
        "status": {name: status[name] for name in ("phase", "startTime") if name in status},
    }


def _believed(text: object, uid: str, ask: PodAsk, trust: Trust) -> PodPlacement:
    if not isinstance(text, str):
        raise PlacementError("has no placement: vcuda's admission did not see it")
    if trust.key is None:
        raise PlacementError("placement: the controller's public key is not known on this node yet")
    placement = placements.decode(text, uid, trust.key)
    if placement.node != trust.node:
        raise PlacementError(f"placement: is on node {placement.node}, the pod on {trust.node}")
    for asked in ask.containers:
        shares = placement.containers.get(asked.container, ())
        if len(shares) != max(1, asked.whole):
            raise PlacementError(
                f"placement: has {len(shares)} cards for container {asked.container}, "
                f"which asks {max(1, asked.whole)}"
            )
    return placement

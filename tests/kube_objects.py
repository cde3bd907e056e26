"""Pods and nodes as the API server writes them in JSON, for tests of those who read them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vcuda.kube.names import MEMORY_UNIT_BYTES, Names
from vcuda.kube.nodes import Moved, NodeCard, NodeCards, encode_cards, encode_moved

NAMES = Names()
GIB = 2**30
UNITS_PER_GIB = GIB // MEMORY_UNIT_BYTES
_ONE_AFTER_ANOTHER = itertools.count(1)


def node(
    name: str,
    cards: Sequence[int | NodeCard] = (16,),
    *,
    unit_bytes: int = MEMORY_UNIT_BYTES,
    labels: Mapping[str, str] | None = None,
    taints: Sequence[Mapping[str, str]] = (),
    ready: bool = True,
    cordoned: bool = False,
    served: bool = True,
    moved: Moved | None = None,
    **allocatable: str,
) -> dict[str, Any]:
    """A node with these cards: GiB of each, or the cards themselves. NAME-0 is the UUID of its first."""
    listed = [
        NodeCard(uuid=f"{name}-{index}", index=index, model="test", memory_bytes=card * GIB)
        if isinstance(card, int)
        else card
        for index, card in enumerate(cards)
    ]
    annotations = {
        NAMES.cards: encode_cards(
            NodeCards(cards=tuple(listed), memory_unit_bytes=unit_bytes, served=served)
        ),
        **({NAMES.moved: encode_moved(moved)} if moved else {}),
    }
    healthy = [card for card in listed if card.healthy]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": dict(labels or {}), "annotations": annotations},
        "spec": {"taints": [dict(taint) for taint in taints], "unschedulable": cordoned},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "allocatable": {
                "cpu": "64",
                "memory": "256Gi",
                "pods": "110",
                NAMES.core: str(100 * len(healthy)),
                NAMES.memory: str(sum(-(-card.memory_bytes // unit_bytes) for card in healthy)),
                **allocatable,
            },
        },
    }


def container(name: str, cores: int = 0, units: int = 0, **requests: str) -> dict[str, Any]:
    """A container that asks for these cores and units of memory."""
    asked = {NAMES.core: str(cores)} if cores else {}
    asked |= {NAMES.memory: str(units)} if units else {}
    return {
        "name": name,
        "image": "test",
        "resources": {"limits": dict(asked), "requests": {**asked, **requests}},
    }


def pod(
    name: str,
    cores: int = 0,
    units: int = 0,
    *,
    namespace: str = "team",
    queue: str | None = None,
    containers: Sequence[Mapping[str, Any]] | None = None,
    arrival: int | None = None,
    second: int = 0,
    gates: Sequence[str] = (NAMES.gate,),
    annotations: Mapping[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    """A pod as it is after admission, waiting at its gate. Those made later came later."""
    stamp = next(_ONE_AFTER_ANOTHER) if arrival is None else arrival
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "creationTimestamp": f"2026-01-01T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z",
            "labels": {NAMES.managed: "true", **({NAMES.queue: queue} if queue else {})},
            "annotations": {NAMES.arrival: str(stamp), **(annotations or {})},
        },
        "spec": {
            "containers": list(containers) if containers is not None else [container("main", cores, units)],
            "schedulingGates": [{"name": gate} for gate in gates],
            **spec,
        },
        "status": {"phase": "Pending"},
    }

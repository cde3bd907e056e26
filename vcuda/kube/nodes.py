"""What a node says of itself, in annotations on its Node: its cards, and who holds which other ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vcuda.errors import VcudaError

VERSION = 1

# What reading JSON of any shape can raise; OverflowError is that of int(Infinity).
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


class NodeError(VcudaError):
    """A node's annotation cannot be read."""


@dataclass(frozen=True, kw_only=True)
class NodeCard:
    """One card of a node."""

    uuid: str
    index: int
    model: str
    memory_bytes: int
    """That can be granted."""
    healthy: bool = True
    numa: int | None = None


@dataclass(frozen=True, kw_only=True)
class NodeCards:
    """The cards of a node."""

    cards: tuple[NodeCard, ...]
    memory_unit_bytes: int
    served: bool = True
    """False: its agent is not with the kubelet just now, which would fail pods that ask for a share."""


def encode_cards(node: NodeCards) -> str:
    """The value of the annotation with a node's cards."""
    return json.dumps(
        {
            "version": VERSION,
            "memoryUnitBytes": node.memory_unit_bytes,
            "served": node.served,
            "cards": [
                {
                    "uuid": card.uuid,
                    "index": card.index,
                    "model": card.model,
                    "memoryBytes": card.memory_bytes,
                    "healthy": card.healthy,
                    "numa": card.numa,
                }
                for card in node.cards
            ],
        },
        separators=(",", ":"),
    )


def decode_cards(text: str) -> NodeCards:
    """What the annotation says.

    Raises:
        NodeError: it cannot be read. Nothing is to be placed on such a node.

    """
    try:
        return _read_cards(json.loads(text))
    except _UNREADABLE as error:
        raise NodeError(f"the node's cards cannot be read: {error}") from error


def _read_cards(content: Any) -> NodeCards:  # noqa: ANN401 (JSON)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, not {VERSION}")
    unit = int(content["memoryUnitBytes"])
    cards = tuple(
        NodeCard(
            uuid=str(card["uuid"]),
            index=int(card["index"]),
            model=str(card["model"]),
            memory_bytes=int(card["memoryBytes"]),
            healthy=bool(card["healthy"]),
            numa=None if card["numa"] is None else int(card["numa"]),
        )
        for card in content["cards"]
    )
    if unit <= 0 or any(card.memory_bytes < 0 for card in cards):
        raise ValueError("a size is negative or zero")
    if len({card.uuid for card in cards}) < len(cards):
        raise ValueError("two cards have the same UUID")
    return NodeCards(cards=cards, memory_unit_bytes=unit, served=bool(content.get("served", True)))


Moved = Mapping[str, Mapping[str, Sequence[str]]]
"""By pod uid and container: the UUIDs of the cards that it holds, in the order of its placement's."""


def encode_moved(moved: Moved) -> str:
    """The value of the annotation with the pods that hold other cards than they were placed on."""
    return json.dumps(
        {uid: {name: list(cards) for name, cards in each.items()} for uid, each in moved.items()}
    )


def decode_moved(text: str | None) -> dict[str, dict[str, tuple[str, ...]]]:
    """What the annotation says; nothing where there is none.

    Raises:
        NodeError: it cannot be read.

    """
    try:
        return _read_moved(json.loads(text or "{}"))
    except _UNREADABLE as error:
        raise NodeError(f"the node's moved shares cannot be read: {error}") from error


def _read_moved(content: Any) -> dict[str, dict[str, tuple[str, ...]]]:  # noqa: ANN401 (JSON)
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for uid, containers in content.items():
        found[str(uid)] = {}
        for name, cards in containers.items():
            if not isinstance(cards, list):  # a string would pass for a list of its characters
                raise TypeError(f"{name} of {uid} has no list of cards")
            found[str(uid)][str(name)] = tuple(map(str, cast("list[object]", cards)))
    return found

"""What nodes and the controller write in annotations: it comes back whole, or is refused with a reason."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from vcuda.kube.nodes import (
    NodeCard,
    NodeCards,
    NodeError,
    decode_cards,
    decode_moved,
    encode_cards,
    encode_moved,
)
from vcuda.kube.placements import CardShare, PlacementError, PodPlacement, decode, encode

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes([1] * 32))
PLACEMENT = PodPlacement(
    uid="uid-1",
    node="node-1",
    containers={
        "main": (CardShare(uuid="GPU-1", cores=30, cores_max=60, memory_bytes=2**31),),
        "train": tuple(
            CardShare(uuid=f"GPU-{card}", cores=100, cores_max=100, memory_bytes=2**34, whole=True)
            for card in (2, 3)
        ),
    },
    priority=-1,
)
CARDS = NodeCards(
    memory_unit_bytes=2**28,
    cards=(
        NodeCard(uuid="GPU-1", index=0, model="V100", memory_bytes=2**34, numa=1),
        NodeCard(uuid="GPU-2", index=1, model="V100", memory_bytes=2**34, healthy=False),
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["version", "uid", "node", "priority", "containers", "cards", "memoryUnitBytes", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
)


def test_placement_comes_back_whole() -> None:
    assert decode(encode(PLACEMENT, KEY), "uid-1", KEY.public_key()) == PLACEMENT


def test_placement_of_another_pod_is_refused() -> None:
    with pytest.raises(PlacementError, match="is of the pod with uid uid-1, not of this one"):
        decode(encode(PLACEMENT, KEY), "uid-2", KEY.public_key())


@pytest.mark.parametrize(
    "forge",
    [
        lambda _: encode(PLACEMENT, OTHER_KEY),
        lambda text: text.replace('"memoryBytes":2147483648', '"memoryBytes":4294967296'),
        lambda text: text.replace("node-1", "node-2"),
        lambda text: text + " ",
        lambda text: text.partition(".")[2],
        lambda text: "." + text.partition(".")[2],
        lambda text: base64.urlsafe_b64encode(bytes(64)).decode() + "." + text.partition(".")[2],
        lambda text: "é" + text,
        lambda text: text.replace("uid-1", "\ud800"),
        lambda _: "",
    ],
    ids=[
        "another key",
        "more memory",
        "another node",
        "one byte more",
        "no signature",
        "an empty signature",
        "a signature of zeros",
        "a signature that is not ASCII",
        "a content that is not UTF-8",
        "nothing",
    ],
)
def test_forged_placement_is_refused(forge: Any) -> None:
    with pytest.raises(PlacementError, match="was not written by the controller of this cluster"):
        decode(forge(encode(PLACEMENT, KEY)), "uid-1", KEY.public_key())


def test_placement_of_another_version_says_what_to_do() -> None:
    with pytest.raises(PlacementError, match="version 2, not 1; upgrade vcuda on this node"):
        decode('.{"version":2}', "uid-1", None)


def test_cards_come_back_whole() -> None:
    assert decode_cards(encode_cards(CARDS)) == CARDS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2, not 1"),
        ({"memoryUnitBytes": 0}, "a size is negative or zero"),
        ({"memoryUnitBytes": float("inf")}, "cannot convert float infinity to integer"),
        ({"cards": [json.loads(encode_cards(CARDS))["cards"][0]] * 2}, "two cards have the same UUID"),
        ({"cards": [{"uuid": "GPU-1"}]}, "'index'"),
    ],
    ids=str,
)
def test_cards_that_cannot_be_are_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(NodeError) as error:
        decode_cards(json.dumps(json.loads(encode_cards(CARDS)) | change))
    assert str(error.value) == f"the node's cards cannot be read: {reason}"


def test_moved_shares_come_back_whole() -> None:
    moved = {"uid-1": {"main": ("GPU-2",), "train": ("GPU-3", "GPU-1")}, "uid-2": {}}
    assert decode_moved(encode_moved(moved)) == moved
    assert decode_moved(None) == {}


def test_moved_share_that_is_no_list_is_refused() -> None:
    with pytest.raises(NodeError, match="main of uid-1 has no list of cards"):
        decode_moved('{"uid-1": {"main": "GPU-1"}}')


def test_deep_json_is_refused() -> None:
    deep = "[" * 100_000
    for read in (decode_cards, decode_moved):
        with pytest.raises(NodeError):
            read(deep)
    with pytest.raises(PlacementError):
        decode(f".{deep}", "uid-1", None)


@given(JSON)
def test_any_json_is_read_or_refused(content: Any) -> None:
    text = json.dumps(content)
    for read, error in (
        (decode_cards, NodeError),
        (decode_moved, NodeError),
        (lambda text: decode(f".{text}", "uid", None), PlacementError),
    ):
        try:
            read(text)
        except error as refusal:
            assert "\n" not in str(refusal)

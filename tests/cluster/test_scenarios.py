"""What users do, end to end: shares in real containers, their memory to the byte and their part of the card.

Programs are unmodified: they find the driver as they always do. How much of a card's time one had is what the
program itself counts: the length of its kernels is known, and its queue holds no more than 0.2 s of them.
"""

from __future__ import annotations

import json
import shlex
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Node

from tests.cluster.installation import NAMES, Installation
from tests.cluster.machine import NODE, Cluster, pods, until
from tests.native.node_support import SHOW, UNIT_BYTES
from tests.support import BUILD
from vcuda.kube.nodes import decode_cards

CARDS = "V100-SXM2-16GB,V100-SXM2-16GB"
IMAGE = "scenarios:test"
SECONDS = 16
OUT_OF_MEMORY = 2
TOO_MUCH = 3.0
"""Points above a share that a run so short may show: what is in the queue at the end has not run yet."""
BUSY_HOST = 5.0
"""Points below it, since a host that is busy makes programs late."""


HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, at = ctypes.c_void_p(), ctypes.c_uint64()
cuda.cuInit(0)
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
cuda.cuCtxSetCurrent(context)
print(cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(3 << 30)), flush=True)
sys.stdin.readline()
"""
"""A program: takes 3 GiB, says whether it got them, and holds them until its input ends."""


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """All of vcuda, on a node with two cards; and an image with the workload."""
    cluster.image(IMAGE, {"/bin/cores": Path(BUILD) / "bench" / "cores"})
    made = Installation(cluster, cards=CARDS)
    yield made
    made.close()


@pytest.fixture
def namespace(installation: Installation) -> Iterator[str]:
    """A namespace of the test's own; its pods are removed with it."""
    name = f"scenario-{uuid.uuid4().hex[:6]}"
    installation.client.create(Namespace(metadata=ObjectMeta(name=name)))
    yield name
    for pod in installation.pods(name):
        pods.delete(installation.client, pod, namespace=name)
    installation.client.delete(Namespace, name)
    until("nothing is left", lambda: not installation.held())


def works(seconds: int = SECONDS) -> tuple[str, ...]:
    """A container's command: take all memory that can be had, then keep the card at work."""
    busy = f"(echo go; sleep {seconds + 1}) | cores mode=queue ns=200000 blocks=640 seconds={seconds}"
    return "sh", "-c", f"python3 -c {shlex.quote(SHOW)} && {busy}"


def put(
    installation: Installation, namespace: str, name: str, asks: dict[str, int], *command: str, **more: Any
) -> None:
    made = pods.pod(name, *command, namespace=namespace, image=IMAGE, resources=asks, **more)
    installation.client.create(made, namespace=namespace)


def card_of(installation: Installation, namespace: str, name: str) -> str:
    """The card of a running pod, by the grant on the node's disk."""
    uid = pods.get(installation.client, name, namespace=namespace).metadata.uid
    (held,) = [each for each in installation.held() if each.uid == uid]
    ((card, _, _),) = held.cards
    return card


def had(installation: Installation, namespace: str, name: str) -> tuple[tuple[int, ...], float]:
    """What a pod's first program saw of its card, and the percentage of time that its second one had."""
    pods.wait_phase(installation.client, name, "Succeeded", namespace=namespace, timeout_s=90)
    lines = pods.log(installation.client, name, namespace=namespace).splitlines()
    (report,) = json.loads(lines[-1])
    elapsed = report["ended_ns"] - report["began_ns"]
    return tuple(map(int, lines[0].split())), 100 * report["work_ns"] / elapsed


def test_whole_card_and_two_shares_of_the_other(installation: Installation, namespace: str) -> None:
    asked = {"whole": (100, 64), "forty": (40, 24), "thirty": (30, 24)}
    for name, (cores, units) in asked.items():
        put(installation, namespace, name, {NAMES.core: cores, NAMES.memory: units}, *works())
    for name in asked:
        pods.wait_phase(installation.client, name, "Running", namespace=namespace)
    cards = {name: card_of(installation, namespace, name) for name in asked}
    assert cards["forty"] == cards["thirty"] != cards["whole"]
    text = (installation.client.get(Node, NODE).metadata.annotations or {})[NAMES.cards]
    sizes = {card.uuid: card.memory_bytes for card in decode_cards(text).cards}
    for name, (cores, units) in asked.items():
        seen, percent = had(installation, namespace, name)
        size = sizes[cards[name]] if cores == 100 else units * UNIT_BYTES
        assert seen == (1, size, 0, OUT_OF_MEMORY), name
        assert cores - BUSY_HOST <= percent <= cores + TOO_MUCH, (name, percent)


def test_two_of_8065_mib_in_another_systems_name_share_the_first_card(
    installation: Installation, namespace: str
) -> None:
    for name in ("one", "two"):
        put(installation, namespace, name, {"aliyun.com/gpu-mem": 8065}, *works(2))
    for name in ("one", "two"):
        pods.wait_phase(installation.client, name, "Running", namespace=namespace)
    assert len({card_of(installation, namespace, name) for name in ("one", "two")}) == 1
    for name in ("one", "two"):
        seen, _ = had(installation, namespace, name)
        assert seen == (1, 8065 * 2**20, 0, OUT_OF_MEMORY), name


def test_programs_of_one_user_are_in_one_share(installation: Installation, namespace: str) -> None:
    """A machine for development: each user has a pod that stays, and starts programs in it."""
    for user in ("anna", "ben"):
        put(installation, namespace, user, {NAMES.core: 40, NAMES.memory: 16}, "sleep", "3600")
    for user in ("anna", "ben"):
        pods.wait_phase(installation.client, user, "Running", namespace=namespace)
    hold = f"python3 -c {shlex.quote(HOLD)}"
    script = f"(sleep 5 | {hold}) & sleep 2; {hold} </dev/null; wait"
    for user in ("anna", "ben"):
        said = installation.cluster.kubectl("exec", f"-n={namespace}", user, "--", "sh", "-c", script)
        # Of 4 GiB, the first one has 3, so the second one cannot; the other user's programs count elsewhere.
        assert said.split() == ["0", str(OUT_OF_MEMORY)], user


def test_more_pods_than_fit_are_served_in_order_of_arrival(
    installation: Installation, namespace: str
) -> None:
    """Four clients at once, for twice of what there is; each pod ends by itself."""
    names = [f"p{index:02}" for index in range(12)]

    def create(mine: list[str]) -> None:
        for name in mine:
            put(installation, namespace, name, {NAMES.core: 33, NAMES.memory: 16}, "sleep", "3")

    clients = [threading.Thread(target=create, args=(names[index::4],)) for index in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    for name in names:
        pods.wait_phase(installation.client, name, "Succeeded", namespace=namespace, timeout_s=120)
    found = installation.pods(namespace)
    by_arrival = sorted(found.values(), key=lambda pod: int(pod["metadata"]["annotations"][NAMES.arrival]))
    bound = [
        each["lastTransitionTime"]
        for pod in by_arrival
        for each in pod["status"]["conditions"]
        if each["type"] == "PodScheduled"
    ]
    assert len(bound) == len(names)
    assert bound == sorted(bound)

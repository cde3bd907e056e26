"""`vcuda-node` beside a real kubelet: real containers with simulated cards, held to their placements.

Placements are signed here, with a key whose public half lies where the controller's would.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from lightkube.core.exceptions import ApiError
from lightkube.resources.core_v1 import ConfigMap, Namespace, Node, Pod

from tests.cluster.machine import NODE, Cluster, pods, until
from tests.cluster.machine.programs import ROOT
from tests.native.node_support import SHOW, UNIT_BYTES
from vcuda.kube import placements
from vcuda.kube.names import Names
from vcuda.kube.nodes import decode_cards, decode_moved
from vcuda.kube.placements import CardShare, PodPlacement

NAMES = Names()
SYSTEM = "vcuda-system"
PREFIX = "node-"
TWO = "V100-SXM2-16GB,V100-SXM2-16GB"
OUT_OF_MEMORY = 2
PLUGIN_AWAY = (
    "no healthy devices present",
    "unregistered device",
    "code = Unavailable",
    "code = Canceled",
    "Device Plugin",
)
"""What the kubelet says of pods that it was asked to admit while there was no agent."""
STAY = f"{SHOW}\nimport time\ntime.sleep(3600)\n"


class Placer:
    """In the controller's place: signs what a test says."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client = cluster.client()
        self.key = Ed25519PrivateKey.generate()
        self.names: list[str] = []
        public = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        content: dict[str, Any] = {
            "metadata": {"name": "vcuda-placement-key", "namespace": SYSTEM},
            "data": {"public.pem": public.decode()},
        }
        cluster.create(ConfigMap.from_dict(content))

    @property
    def node(self) -> dict[str, str]:
        return self.client.get(Node, NODE).metadata.annotations or {}

    @property
    def cards(self) -> list[str]:
        return [card.uuid for card in decode_cards(self.node[NAMES.cards]).cards]

    def create(self, *, cores: int, units: int, command: tuple[str, ...] = (), **more: Any) -> str:
        """A gated pod; its name."""
        name = f"{PREFIX}{uuid.uuid4().hex[:8]}"
        self.names.append(name)
        asks = {NAMES.core: cores, NAMES.memory: units}
        made = pods.pod(
            name,
            *(command or ("python3", "-c", STAY)),
            image="glibc:test",
            resources={each: count for each, count in asks.items() if count},
            gates=[NAMES.gate],
            **more,
        )
        self.cluster.create(made)
        return name

    def place(
        self, name: str, *, card: str, cores: int, units: int, key: Ed25519PrivateKey | None = None
    ) -> None:
        uid = pods.get(self.client, name).metadata.uid
        share = CardShare(uuid=card, cores=cores, cores_max=cores, memory_bytes=units * UNIT_BYTES)
        placed = PodPlacement(uid=uid, node=NODE, containers={"main": (share,)})
        text = placements.encode(placed, key or self.key)
        self.client.patch(
            Pod,
            name,
            {"metadata": {"annotations": {NAMES.placement: text}}, "spec": {"schedulingGates": None}},
        )

    def put(self, *, card: str, cores: int, units: int, **more: Any) -> str:
        name = self.create(cores=cores, units=units, **more)
        self.place(name, card=card, cores=cores, units=units)
        return name

    def close(self) -> None:
        for name in self.names:
            with contextlib.suppress(ApiError):
                pods.delete(self.client, name)
        self.client.delete(ConfigMap, "vcuda-placement-key", namespace=SYSTEM)


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Iterator[Any]:
    """The agent on the node, with no more rights than its manifests give it."""
    with contextlib.suppress(ApiError):
        cluster.create(Namespace.from_dict({"metadata": {"name": SYSTEM}}))
    cluster.kubectl("apply", "-f", str(ROOT / "manifests" / "node" / "rbac.yaml"))
    cluster.add_user("node-agent", cluster.account_token("vcuda-node", namespace=SYSTEM, node=NODE))
    started = cluster.node.start(
        "vcuda-node",
        [sys.executable, "-P", "-m", "deviceplugin"],
        env={
            "PYTHONPATH": str(ROOT),
            "VCUDA_NODE_NAME": NODE,
            "VCUDA_NODE_KUBECONFIG": str(cluster.kubeconfig("node-agent")),
            "VCUDA_NODE_SIMULATED": TWO,
            "VCUDA_NODE_METRICS_ADDRESS": "none",
            "VCUDA_NODE_RECONCILE_SECONDS": "0.5",
        },
    )
    yield started
    started.stop()
    cluster.kubectl("delete", "-f", str(ROOT / "manifests" / "node" / "rbac.yaml"))


@pytest.fixture
def placer(cluster: Cluster, agent: Any) -> Iterator[Placer]:
    made = Placer(cluster)
    until("the node's cards", lambda: allocatable(made) == 200)
    yield made
    made.close()
    until("all tickets gone", lambda: tickets(cluster) == [])


def allocatable(placer: Placer) -> int:
    return int((placer.client.get(Node, NODE).status.allocatable or {}).get(NAMES.core, 0))


def tickets(cluster: Cluster) -> list[str]:
    return cluster.node.run("ls", "-A", "/run/vcuda-node/shares").stdout.split()


def seen(placer: Placer, name: str) -> tuple[int, ...]:
    """What a program in the pod printed: cards, the first one's size, whether what is free fits, and more."""
    line = until(f"output of {name}", lambda: pods.log(placer.client, name))
    return tuple(map(int, line.split()))


def owners(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in tickets(cluster):
        text = cluster.node.run("cat", f"/run/vcuda-node/shares/{name}/ticket.json").stdout
        found.append(json.loads(text))
    return found


def test_container_is_held_to_its_share_by_an_unmodified_cuda_program(cluster: Cluster, placer: Placer):
    _, second = placer.cards
    name = placer.put(card=second, cores=30, units=16)
    pods.wait_phase(placer.client, name, "Running")
    assert seen(placer, name) == (1, 16 * UNIT_BYTES, 0, OUT_OF_MEMORY)
    (ticket,) = owners(cluster)
    assert ticket["owner"]["pod"] == name
    assert [share["uuid"] for share in ticket["shares"]] == [second]
    assert NAMES.moved not in placer.node
    pods.delete(placer.client, name)
    until("its ticket gone", lambda: tickets(cluster) == [])


def test_container_can_change_nothing_of_its_grant(placer: Placer):
    tries = ("echo x >> /run/vcuda/grant", "echo x >> /etc/ld.so.preload", "echo x > /run/vcuda/y")
    script = "; ".join(tries)
    name = placer.put(
        card=placer.cards[0],
        cores=30,
        units=4,
        command=("sh", "-c", f"({script}) 2>&1; id -u; cat /etc/ld.so.preload"),
    )
    pods.wait_phase(placer.client, name, "Succeeded")
    lines = pods.log(placer.client, name).splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:3]] == ["Read-only file system"] * 3
    assert lines[-2:] == ["0", "/opt/vcuda/lib/libvcuda.so"]


def test_program_of_another_user_accounts_in_the_ledger(placer: Placer):
    name = placer.put(card=placer.cards[0], cores=30, units=8, securityContext={"runAsUser": 12345})
    pods.wait_phase(placer.client, name, "Running")
    assert seen(placer, name) == (1, 8 * UNIT_BYTES, 0, OUT_OF_MEMORY)


def test_forged_placement_never_runs_and_an_event_says_why(placer: Placer):
    name = placer.create(cores=30, units=4)
    placer.place(name, card=placer.cards[0], cores=30, units=4, key=Ed25519PrivateKey.generate())
    pods.wait_phase(placer.client, name, "Failed")
    texts = until("an Event", lambda: [text for text in events(placer, name) if "controller" in text])
    assert texts == ["placement: was not written by the controller of this cluster"]


def events(placer: Placer, name: str) -> list[str]:
    from lightkube.resources.core_v1 import Event

    found = placer.client.list(Event, namespace="default", fields={"involvedObject.name": name})
    return [event.message or "" for event in found if event.source and event.source.component == "vcuda-node"]


def test_burst_of_pods_with_agent_and_kubelet_killed(cluster: Cluster, placer: Placer, agent: Any):
    chance = random.Random(3)
    asked = [(20, 4), (20, 8), (20, 8), (10, 4)] * 2
    chosen = {index: placer.cards[index // 4] for index in range(8)}
    made = {index: placer.create(cores=cores, units=units) for index, (cores, units) in enumerate(asked)}
    order = list(made)
    chance.shuffle(order)
    for count, index in enumerate(order):
        cores, units = asked[index]
        placer.place(made[index], card=chosen[index], cores=cores, units=units)
        time.sleep(chance.random() * 0.3)
        if count == 2:
            agent.restart()
        if count == 5:
            cluster.restart("kubelet")

    def settled() -> bool:
        phases = {pods.get(placer.client, name).status.phase for name in made.values()}
        return phases <= {"Running", "Failed"}

    until("all pods run or failed", settled, timeout_s=120)
    running = {
        index: name for index, name in made.items() if pods.get(placer.client, name).status.phase == "Running"
    }
    failed = [pods.get(placer.client, name).status for index, name in made.items() if index not in running]
    # The kubelet itself fails a pod that is bound while its plugin is away; whoever made it makes another.
    for status in failed:
        assert any(text in status.message for text in PLUGIN_AWAY), status.message
    assert len(running) >= 2
    by_pod = {ticket["owner"]["pod"]: ticket for ticket in owners(cluster) if ticket["owner"]}
    moved = decode_moved(placer.node.get(NAMES.moved))
    for index, name in running.items():
        cores, units = asked[index]
        (share,) = by_pod[name]["shares"]
        uid = pods.get(placer.client, name).metadata.uid
        assert share["uuid"] == moved.get(uid, {}).get("main", (chosen[index],))[0]
        assert (share["cores"], share["memoryBytes"]) == (cores, units * UNIT_BYTES)
        assert seen(placer, name)[:2] == (1, units * UNIT_BYTES)
    assert len(by_pod) == len(set(by_pod)) >= len(running)


def test_reboot_leaves_no_ticket_of_before(cluster: Cluster, placer: Placer, agent: Any):
    name = placer.put(card=placer.cards[0], cores=30, units=4)
    pods.wait_phase(placer.client, name, "Running")
    before = tickets(cluster)
    cluster.reboot()
    agent.start()
    until("the resources again", lambda: allocatable(placer) == 200, timeout_s=120)
    later = placer.put(card=placer.cards[0], cores=70, units=8)
    # The kubelet may fail the old pod, since its plugin was not there yet, or start it again.
    until(
        "a share for the later one",
        lambda: pods.get(placer.client, later).status.phase in ("Running", "Failed"),
        timeout_s=120,
    )
    assert pods.get(placer.client, later).status.phase == "Running", events(placer, later)
    assert seen(placer, later)[1] == 8 * UNIT_BYTES
    assert len(before) == 1

"""`vcuda-node` as a process, between a kubelet and an API server; simulated cards, real CUDA clients."""

from __future__ import annotations

import json
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.native.node_support import (
    NAMES,
    UNIT_BYTES,
    Agent,
    FakeApiServer,
    FakeKubelet,
    program,
    shown,
)
from tests.support import PAGE_BYTES, eventually
from vcuda import grant as grants
from vcuda.kube.nodes import decode_cards, decode_moved

TWO = "V100-SXM2-16GB,V100-SXM2-16GB"
OUT_OF_MEMORY = 2


class Node:
    def __init__(self, tmp_path: Path, **settings: str) -> None:
        self.api = FakeApiServer(tmp_path)
        self.kubelet = FakeKubelet(tmp_path / "kubelet")
        self.agent = Agent(tmp_path, self.api, cards=TWO, **settings)
        self.programs: list[Any] = []

    def up(self) -> None:
        self.agent.start()
        assert eventually(self.kubelet.ready), self.agent.log.read_text()[-2000:]
        assert eventually(lambda: NAMES.cards in self.api.annotations)
        assert eventually(lambda: self.agent.metrics()["vcuda_node_synced"] == {("node-1",): 1.0})

    def again(self) -> None:
        """Kill the agent, and start it; wait until the kubelet has both resources of the new one."""
        before = len(self.kubelet.registrations)
        self.agent.kill()
        self.agent.start()
        assert eventually(lambda: len(self.kubelet.registrations) == before + 2 and self.kubelet.ready()), (
            self.agent.log.read_text()[-2000:]
        )

    @property
    def cards(self) -> list[str]:
        return [card.uuid for card in decode_cards(self.api.annotations[NAMES.cards]).cards]

    def run(self, env: dict[str, str], *arguments: str):
        process = program(env, *arguments)
        self.programs.append(process)
        return process

    def over(self, pod: dict[str, Any]) -> None:
        self.kubelet.forget(pod)
        self.api.delete(pod)

    def grant(self, env: dict[str, str]) -> grants.Grant:
        return grants.read(Path(env["VCUDA_GRANT_DIR"]) / "grant")

    def close(self) -> None:
        for process in self.programs:
            process.kill()
            process.communicate()
        self.agent.kill()
        self.kubelet.end()
        self.api.close()


@pytest.fixture
def node() -> Iterator[Node]:
    # Not tmp_path: the path of a socket has 107 characters.
    with tempfile.TemporaryDirectory(prefix="vcuda-node-") as directory:
        made = Node(Path(directory))
        yield made
        made.close()


def test_pod_gets_its_share_from_request_to_end(node: Node) -> None:
    node.up()
    first, second = node.cards
    pod = node.api.pod("one", cores=30, units=16, cards=(second,))
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    limit = 16 * UNIT_BYTES

    process = node.run(env, "stay")
    assert shown(process) == (1, limit, 0, OUT_OF_MEMORY)
    card = node.grant(env).cards[0]
    assert (card.uuid, card.memory_bytes, card.core_ppm) == (second, limit, 300_000)
    assert card.context_bytes > 0

    metrics = node.agent.metrics()
    mine = (second, "main", "default", "node-1", "one")
    assert metrics["vcuda_container_memory_limit_bytes"] == {mine: limit}
    used = metrics["vcuda_container_memory_used_bytes"][mine]
    assert limit - 2 * PAGE_BYTES <= used <= limit
    assert metrics["vcuda_container_allocations_refused_total"] == {mine: 1.0}
    granted = {labels[0]: value for labels, value in metrics["vcuda_card_granted_bytes"].items()}
    assert granted == {first: 0.0, second: limit}

    process.communicate("\n")
    again = node.kubelet.start(pod)  # the container is started once more
    assert again["VCUDA_GRANT_DIR"] == env["VCUDA_GRANT_DIR"]
    assert node.agent.metrics()["vcuda_container_allocations_refused_total"] == {mine: 1.0}

    node.over(pod)
    assert eventually(lambda: node.agent.tickets() == [])
    assert "vcuda_container_memory_limit_bytes" not in node.agent.metrics()
    assert node.agent.terminate() == 0
    assert "Traceback" not in node.agent.log.read_text()


def test_share_of_a_pod_deleted_by_force_is_free_when_its_program_ends(node: Node) -> None:
    node.up()
    card, _ = node.cards
    forced = node.api.pod("forced", cores=100, units=64, cards=(card,))
    node.kubelet.admit(forced)
    process = node.run(node.kubelet.start(forced), "stay")
    shown(process)
    node.over(forced)  # the API has no such pod, nor has the kubelet; its container runs on
    after = node.api.pod("after", cores=50, units=16, cards=(card,))
    node.kubelet.admit(after)
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            node.kubelet.start(after)
        assert "not free yet" in caught.value.details()
        node.again()
    assert process.poll() is None
    process.communicate("\n")
    assert eventually(lambda: len(node.agent.tickets()) == 1)
    assert shown(node.run(node.kubelet.start(after)))[1] == 16 * UNIT_BYTES


def test_forged_placement_gets_nothing_and_an_event_says_so(node: Node) -> None:
    node.up()
    forged = node.api.pod(
        "forged", cores=30, units=4, cards=(node.cards[0],), key=Ed25519PrivateKey.generate()
    )
    honest = node.api.pod("honest", cores=30, units=4, cards=(node.cards[0],))
    with pytest.raises(grpc.RpcError) as caught:
        node.kubelet.admit(forged)
    assert "was not written by the controller" in caught.value.details()
    assert eventually(lambda: [event["involvedObject"]["name"] for event in node.api.events] == ["forged"]), (
        node.api.events
    )
    node.kubelet.admit(honest)
    assert shown(node.run(node.kubelet.start(honest)))[1] == 4 * UNIT_BYTES


def test_kubelet_that_starts_anew_is_told_again(node: Node) -> None:
    node.up()
    pod = node.api.pod("one", cores=50, units=8, cards=(node.cards[0],))
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    process = node.run(env, "stay")
    shown(process)
    before = len(node.kubelet.registrations)
    node.kubelet.restart()
    assert eventually(node.kubelet.ready)
    assert sorted(node.kubelet.registrations[before:]) == sorted([NAMES.core, NAMES.memory])
    assert node.kubelet.start(pod)["VCUDA_GRANT_DIR"] == env["VCUDA_GRANT_DIR"]
    assert process.poll() is None
    other = node.api.pod("two", cores=50, units=8, cards=(node.cards[0],))
    node.kubelet.admit(other)
    assert node.grant(node.kubelet.start(other)).cards[0].uuid == node.cards[0]


def test_node_is_served_while_the_kubelet_listens_to_the_agent(node: Node) -> None:
    def served() -> bool:
        return decode_cards(node.api.annotations[NAMES.cards]).served

    node.up()
    assert eventually(served)
    assert node.agent.ready()
    node.kubelet.end()
    assert eventually(lambda: not served())
    assert not node.agent.ready()
    node.kubelet.begin()
    assert eventually(served)
    assert node.agent.terminate() == 0
    assert not served()  # nothing is placed on it from now on
    node.agent.start()
    assert eventually(served)


def test_metrics_address_that_another_has_is_named(node: Node) -> None:
    with socket.create_server(("127.0.0.1", node.agent.port)):
        node.agent.start()
        assert node.agent.process is not None
        assert node.agent.process.wait(timeout=60) == 1
    said = node.agent.log.read_text().splitlines()
    assert said[-1] == f"vcuda-node: metrics_address 127.0.0.1:{node.agent.port}: Address already in use"


def test_without_the_api_what_is_known_is_served(node: Node) -> None:
    node.up()
    known = node.api.pod("known", cores=30, units=4, cards=(node.cards[0],))
    ran = node.api.pod("ran", cores=20, units=4, cards=(node.cards[1],))
    node.kubelet.admit(ran)
    node.kubelet.start(ran)
    node.api.away = True
    node.kubelet.admit(known)
    assert node.grant(node.kubelet.start(known)).cards[0].memory_bytes == 4 * UNIT_BYTES
    node.again()
    node.kubelet.start(ran)  # a container of before, started again
    node.kubelet.start(known)


def test_reboot_makes_shares_again_from_what_the_kubelet_keeps(node: Node) -> None:
    import shutil

    node.up()
    pod = node.api.pod("one", cores=50, units=8, cards=(node.cards[1],))
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    node.agent.kill()
    node.kubelet.end()
    shutil.rmtree(node.agent.run_dir)
    node.kubelet.begin()
    node.up()
    again = node.kubelet.start(pod)
    assert again == env
    assert node.grant(again).cards[0].uuid == node.cards[1]
    assert shown(node.run(again)) == (1, 8 * UNIT_BYTES, 0, OUT_OF_MEMORY)


def test_killed_at_random_instants_leaves_books_right(node: Node) -> None:
    chance = random.Random(7)
    node.up()
    first, second = node.cards
    placed = [(30, 8), (30, 8), (30, 8), (50, 16), (50, 16)]
    pods = [
        node.api.pod(f"pod-{index}", cores=cores, units=units, cards=(first if index < 3 else second,))
        for index, (cores, units) in enumerate(placed)
    ]
    waiting = list(range(len(pods)))
    envs: dict[int, dict[str, str]] = {}
    started: dict[int, Any] = {}
    kills = 0
    end = time.monotonic() + 90
    while (waiting or kills < 10) and time.monotonic() < end:
        if kills < 10:
            time.sleep(chance.random() * 0.1)
            node.again()
            kills += 1
        for index in list(waiting):
            pod = pods[index]
            try:
                if pod["metadata"]["uid"] not in node.kubelet.pods:
                    node.kubelet.admit(pod)
                envs[index] = node.kubelet.start(pod)
            except (grpc.RpcError, KeyError):
                if (pod["metadata"]["uid"], "main") not in node.kubelet.given:
                    continue  # it would be made anew by its owner; here it is tried again
                continue
            waiting.remove(index)
            started[index] = node.run(envs[index], "stay")
            shown(started[index])
            if kills < 10:
                break
    assert kills == 10
    assert waiting == []
    for index, (cores, units) in enumerate(placed):
        card = node.grant(envs[index]).cards[0]
        assert card.uuid == (first if index < 3 else second)
        assert (card.core_ppm, card.memory_bytes) == (cores * 10_000, units * UNIT_BYTES)
        assert started[index].poll() is None
    directories = [env["VCUDA_GRANT_DIR"] for env in envs.values()]
    assert len(set(directories)) == len(directories)
    assert decode_moved(node.api.annotations.get(NAMES.moved)) == {}
    for index, pod in enumerate(pods):
        started[index].communicate("\n")
        node.over(pod)
    assert eventually(lambda: node.agent.tickets() == [])


def test_lost_card_is_withdrawn(node: Node) -> None:
    node.up()
    assert node.kubelet.healthy(NAMES.core) == 200
    pod = node.api.pod("one", cores=30, units=4, cards=(node.cards[0],))
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    node.run({**env, "SIMGPU_FAULTS": "card0:lost"}).wait()
    assert eventually(lambda: node.kubelet.healthy(NAMES.core) == 100)
    held = node.kubelet.given[pod["metadata"]["uid"], "main"][NAMES.core][0]
    assert {node.kubelet.devices[NAMES.core][each] for each in held} == {"Unhealthy"}
    assert eventually(
        lambda: (
            [card.healthy for card in decode_cards(node.api.annotations[NAMES.cards]).cards] == [False, True]
        )
    )
    healthy = {labels[0]: value for labels, value in node.agent.metrics()["vcuda_card_healthy"].items()}
    assert list(healthy.values()) == [0.0, 1.0]


def test_process_outside_any_share_is_reported(node: Node) -> None:
    node.up()
    pod = node.api.pod("one", cores=30, units=4, cards=(node.cards[0],))
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    inside = node.run(env, "stay")
    shown(inside)
    plain = {name: value for name, value in env.items() if name not in ("LD_PRELOAD", "VCUDA_GRANT_DIR")}
    outside = node.run({**plain, "CUDA_VISIBLE_DEVICES": node.cards[1]}, "stay")
    shown(outside)

    def count() -> list[float]:
        return list(node.agent.metrics()["vcuda_card_outside_processes"].values())

    assert eventually(lambda: count() == [0.0, 1.0])
    assert eventually(lambda: [event["reason"] for event in node.api.events] == ["OutsideShare"])
    assert f"process {outside.pid} " in node.api.events[0]["message"]


def test_whole_cards_are_had_alone(node: Node) -> None:
    node.up()
    size = decode_cards(node.api.annotations[NAMES.cards]).cards[0].memory_bytes
    pod = node.api.pod("two-cards", cores=200, units=0, cards=tuple(node.cards), memory_bytes=size)
    node.kubelet.admit(pod)
    env = node.kubelet.start(pod)
    assert [card.whole for card in node.grant(env).cards] == [True, True]
    assert shown(node.run(env))[0] == 2
    node.over(pod)
    assert eventually(lambda: node.agent.tickets() == [])
    # A pod that two controllers have placed on the same card waits until it is free.
    pod = node.api.pod("whole", cores=100, units=0, cards=(node.cards[0],), memory_bytes=size)
    node.kubelet.admit(pod)
    node.kubelet.start(pod)
    late = node.api.pod("late", cores=30, units=4, cards=(node.cards[0],))
    node.kubelet.admit(late)
    with pytest.raises(grpc.RpcError) as caught:
        node.kubelet.start(late)
    assert "is not free yet" in caught.value.details()
    node.over(pod)
    assert eventually(lambda: len(node.agent.tickets()) == 1)
    node.kubelet.start(late)


def test_vcuda_ps_lists_containers_of_the_node(node: Node) -> None:
    import subprocess
    import sys

    node.up()
    pod = node.api.pod("one", cores=30, units=4, cards=(node.cards[0],))
    node.kubelet.admit(pod)
    process = node.run(node.kubelet.start(pod), "stay")
    shown(process)
    for command in ("ps", "top"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "vcuda", command, "--json"],
            env={**node.agent.env, "VCUDA_RUNTIME_DIR": str(node.agent.run_dir.parent / "user")},
            capture_output=True,
            text=True,
            check=True,
        )
        (share,) = json.loads(done.stdout)["shares"]
        assert share["name"] == "default/one/main"
        assert share["card"] == {"uuid": node.cards[0], "name": "V100-SXM2-16GB", "simulated": True}
        assert (share["memory_bytes"], share["core_percent"]) == (4 * UNIT_BYTES, 30)
        assert [each["pid"] for each in share["processes"]] == [process.pid]


def test_second_agent_waits_for_the_first(node: Node) -> None:
    node.up()
    other = Agent(node.agent.run_dir.parent, node.api, cards=TWO)
    other.log = node.agent.run_dir.parent / "other.log"
    try:
        other.start()
        assert eventually(lambda: "another vcuda-node has these books" in other.log.read_text())
        assert len(node.kubelet.registrations) == 2
        assert node.agent.terminate() == 0
        assert eventually(lambda: len(node.kubelet.registrations) == 4)
    finally:
        other.kill()

"""`vcuda queue` and `vcuda explain` against a small API server: what they print, and what they refuse."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.api_server import ApiServer, Asked, Refused
from tests.kube_objects import GIB, NAMES, container, node, pod
from tests.support import ROOT
from vcuda.kube.placements import CardShare, PodPlacement, encode


def runs(
    name: str, uuid: str, cores: int, gib: int, *, node: str = "n1", whole: bool = False
) -> dict[str, Any]:
    """A pod that was placed and is bound."""
    found = pod(name, cores, gib * 4, gates=(), nodeName=node)
    share = CardShare(uuid=uuid, cores=cores, cores_max=cores, memory_bytes=gib * GIB, whole=whole)
    placement = PodPlacement(uid=found["metadata"]["uid"], node=node, containers={"main": (share,)})
    found["metadata"]["annotations"][NAMES.placement] = encode(placement, Ed25519PrivateKey.generate())
    return found


def says(found: dict[str, Any], reason: str, message: str) -> dict[str, Any]:
    """The same pod with the controller's condition."""
    found["status"]["conditions"] = [
        {"type": NAMES.condition, "status": "False", "reason": reason, "message": message}
    ]
    return found


def vcuda(directory: Path, objects: list[dict[str, Any]], *arguments: str, deny: str = "") -> Any:
    """Run the command in a process of its own, with a server that has these objects."""

    async def forbid(asked: Asked) -> None:
        if deny and asked.path == deny:
            raise Refused(403, f"alice cannot list {deny}")

    async def run() -> tuple[int, str, str]:
        async with ApiServer(directory) as server:
            for each in objects:
                server.put(each)
            server.before = forbid
            env = {**os.environ, "KUBECONFIG": str(server.kubeconfig("alice")), "PYTHONPATH": str(ROOT)}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "vcuda", *arguments),
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await asyncio.wait_for(process.communicate(), 60)
            assert all(asked.method == "GET" for asked in server.asked), "commands only read"
            return process.returncode or 0, out.decode(), err.decode()

    return asyncio.run(run())


WAITING = [
    says(pod("giant", 10, 400, second=1), "Unmeetable", "no node could hold it"),
    says(pod("first", 50, 8, second=2), "NoRoom", "position 1 in queue team"),
    says(pod("second", 10, 4, second=3), "BehindOthers", "position 2 in queue team"),
    pod("other", 10, 4, namespace="apart", second=4),
]


def test_queue_lists_who_waits_in_order(tmp_path: Path) -> None:
    status, out, err = vcuda(tmp_path, [runs("runs", "n1-0", 60, 6), *WAITING], "queue")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["QUEUE", "POSITION", "POD", "WAITS", "REASON", "MESSAGE"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["apart", "1", "apart/other"],
        ["team", "1", "team/first"],
        ["team", "2", "team/second"],
        ["team", "-", "team/giant"],
    ]
    assert "NoRoom" in lines[2]
    assert lines[2].endswith("position 1 in queue team")


def test_queue_as_json_of_one_namespace(tmp_path: Path) -> None:
    status, out, _ = vcuda(tmp_path, WAITING, "queue", "--namespace", "team", "--json")
    assert status == 0
    found = json.loads(out)["pods"]
    assert [(each["name"], each["position"], each["reason"]) for each in found] == [
        ("first", 1, "NoRoom"),
        ("second", 2, "BehindOthers"),
        ("giant", None, "Unmeetable"),
    ]


def test_queue_says_so_where_nobody_waits(tmp_path: Path) -> None:
    assert vcuda(tmp_path, [], "queue") == (0, "", "vcuda queue: nobody waits\n")


def test_queue_shows_one_namespace_to_who_may_not_see_all(tmp_path: Path) -> None:
    status, out, err = vcuda(tmp_path, WAITING, "queue", "--json", deny="/api/v1/pods")
    assert status == 0
    assert "only namespace team is shown" in err
    assert {each["namespace"] for each in json.loads(out)["pods"]} == {"team"}


NODES = [
    node("n1", [16, 16, 16, 4]),
    node("n2", [16], ready=False),
    node("n3", [16], taints=[{"key": "a", "value": "b", "effect": "NoSchedule"}]),
    node("n4", [16], cpu="1"),
]
RUNNING = [runs("x", "n1-0", 60, 6), runs("y", "n1-1", 10, 12), runs("z", "n1-2", 100, 16, whole=True)]


def test_explain_says_card_by_card_why_not(tmp_path: Path) -> None:
    asked = pod("p", containers=[container("main", 50, 24, cpu="2")])
    status, out, _ = vcuda(
        tmp_path, [*NODES, *RUNNING, says(asked, "NoRoom", "waits")], "explain", "p", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert (found["pod"], found["queue"], found["position"]) == ("team/p", "team", 1)
    assert found["condition"] == "NoRoom: waits"
    assert found["asks"] == "main: 50% of cores and 24 units of memory"
    assert [(each["node"], each["card"], each["reason"], each["text"]) for each in found["cards"]] == [
        ("n1", 0, "CoresTaken", "50% of cores asked, 40% free"),
        ("n1", 1, "MemoryTaken", "6GiB asked, 4GiB free"),
        ("n1", 2, "CardTakenWhole", "one share has it alone"),
        ("n1", 3, "CardTooSmall", "6GiB needed, the card has 4GiB"),
        ("n2", None, "NodeNotReady", "the node is not ready"),
        ("n3", None, "NodeTainted", "taint a=b:NoSchedule is not tolerated"),
        (
            "n4",
            0,
            "NodeResourcesTaken",
            "the card has room, the node has not: milli-CPUs: 2000 asked, 1000 of 1000 free",
        ),
    ]


def test_explain_agrees_with_the_table_it_prints(tmp_path: Path) -> None:
    status, out, _ = vcuda(tmp_path, [*NODES, *RUNNING, pod("p", 30, 8)], "explain", "p")
    assert status == 0
    rows = [line.split() for line in out.splitlines() if line.startswith("n1 ")]
    assert rows[0][:6] == ["n1", "0", "16GiB", "10GiB", "40%", "-"]
    assert rows[0][6:] == ["has", "room"]
    assert out.splitlines()[-1].startswith("4 has room")


def test_explain_of_two_containers_that_fit_only_apart(tmp_path: Path) -> None:
    both = pod("p", containers=[container("a", 60, 4), container("b", 60, 4)])
    _, out, _ = vcuda(tmp_path, [node("n", [16]), both], "explain", "p", "--json")
    (found,) = json.loads(out)["cards"]
    assert found["reason"] == "TooFewCards"


def test_explain_says_where_a_pod_is(tmp_path: Path) -> None:
    _, out, _ = vcuda(tmp_path, [*NODES, *RUNNING], "explain", "x")
    assert "on node n1: main: n1-0 60% 6GiB; bound" in out


def test_explain_of_no_such_pod(tmp_path: Path) -> None:
    assert vcuda(tmp_path, [], "explain", "-n", "a", "p") == (
        1,
        "",
        "vcuda explain: no pod p in namespace a; see 'vcuda queue'\n",
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Without lightkube, and without a cluster: one line each, which says what to do."""
    hide = "import sys; sys.modules['lightkube'] = None; from vcuda.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", hide, "queue"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "lightkube is not installed" in done.stderr
    assert "pip install 'vcuda[kube]'" in done.stderr
    status, _, err = vcuda(tmp_path, [], "queue", "--kubeconfig", "/nowhere")
    assert status == 1
    assert err.startswith("vcuda queue: no way to a cluster: ")
    assert err.count("\n") == 1

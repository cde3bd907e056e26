"""vcuda as its users install it: three parts in pods, with their rights alone, and a pod's whole life."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace

from tests.cluster.applied import ROLLED_OUT, Applied
from tests.cluster.installation import NAMES, RUN, SYSTEM
from tests.cluster.machine import Cluster, ClusterError, pods, until
from tests.cluster.machine.programs import ROOT
from tests.native.node_support import SHOW, UNIT_BYTES

CARDS = 2
OUT_OF_MEMORY = 2
PPM_PER_CORE = 10_000
WHOLE = {NAMES.core: 100, NAMES.memory: 64}
PARTS = ("vcuda-admission", "vcuda-controller", "vcuda-node")


@pytest.fixture(scope="module")
def applied(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    """All of vcuda, applied; a node with two cards."""
    directory = tmp_path_factory.mktemp("applied")
    with Applied(cluster, directory, cards=",".join(["V100-SXM2-16GB"] * CARDS)) as made:
        yield made


@pytest.fixture
def namespace(applied: Applied) -> Iterator[str]:
    """A namespace of the test's own; its pods are removed with it."""
    name = f"applied-{uuid.uuid4().hex[:6]}"
    applied.client.create(Namespace(metadata=ObjectMeta(name=name)))
    yield name
    pods.delete(applied.client, *applied.pods(name), namespace=name)
    applied.client.delete(Namespace, name)
    until("nothing is left", lambda: not applied.held())


def inside(applied: Applied, part: str, *command: str) -> str:
    """What a command prints in a container of a part."""
    kind = "daemonset" if part == "vcuda-node" else "deployment"
    return applied.cluster.kubectl("exec", f"--namespace={SYSTEM}", f"{kind}/{part}", "--", *command)


def vcuda(applied: Applied, *arguments: str, user: str = "admin") -> Any:
    """What a `vcuda` command of a user prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "vcuda", *arguments, "--json"],
        env={**os.environ, "KUBECONFIG": str(applied.cluster.kubeconfig(user))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def series(applied: Applied, pod: str) -> dict[str, float]:
    """The metrics of a pod's container, by name."""
    found = re.findall(rf'^(\w+)\{{[^}}]*pod="{pod}"[^}}]*\}} (\S+)$', applied.metrics(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def running(applied: Applied, namespace: str, name: str) -> Any:
    return pods.wait_phase(applied.client, name, "Running", namespace=namespace)


def put(applied: Applied, namespace: str, name: str, asks: dict[str, int], user: str = "admin") -> None:
    made = pods.pod(name, namespace=namespace, resources=asks)
    applied.cluster.client(user).create(made, namespace=namespace)


@pytest.mark.parametrize(
    ("part", "user", "capabilities"),
    # The agent needs SYS_PTRACE, bit 19, to see which pid of the node a container's process has.
    [(PARTS[0], 65532, 0), (PARTS[1], 65532, 0), (PARTS[2], 0, 1 << 19)],
)
def test_parts_can_do_no_more_than_they_must(
    applied: Applied, part: str, user: int, capabilities: int
) -> None:
    status = dict(
        line.split(":\t", 1) for line in inside(applied, part, "cat", "/proc/self/status").splitlines()
    )
    assert status["Uid"].split() == [str(user)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == capabilities
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    with pytest.raises(ClusterError, match="Read-only file system"):
        inside(applied, part, "touch", "/made")


def test_accounts_have_no_more_rights_than_they_must(applied: Applied) -> None:
    def may(
        account: str, verb: str, resource: str, *, name: str = "", namespace: str = "", **more: str
    ) -> bool:
        asked = {"verb": verb, "resource": resource, "name": name, "namespace": namespace, **more}
        spec = {"user": f"system:serviceaccount:{SYSTEM}:{account}", "resourceAttributes": asked}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**spec, "groups": ["system:serviceaccounts", "system:authenticated"]},
        }
        said = applied.cluster.kubectl(
            "create", "-f", "-", "-o", "jsonpath={.status.allowed}", stdin=json.dumps(review)
        )
        return said == "true"

    key = {"name": "vcuda-placement-key", "namespace": SYSTEM}
    for account in PARTS:
        for verb, resource in (
            ("create", "pods"),
            ("delete", "pods"),
            ("list", "secrets"),
            ("update", "nodes"),
        ):
            assert not may(account, verb, resource), (account, verb, resource)
            assert not may(account, verb, resource, namespace=SYSTEM), (account, verb, resource)
        assert not may(account, "escalate", "clusterroles", group="rbac.authorization.k8s.io")
        assert not may(account, "create", "serviceaccounts", subresource="token", namespace=SYSTEM)
        assert may(account, "get", "secrets", **key) == (account == "vcuda-controller")
        assert may(account, "patch", "pods") == (account == "vcuda-controller")
        assert may(account, "patch", "nodes") == (account == "vcuda-node")
        assert may(account, "list", "pods") == (account != "vcuda-admission")


def test_life_of_a_pod(applied: Applied, namespace: str) -> None:
    cluster, limit = applied.cluster, 8 * UNIT_BYTES
    cluster.kubectl(
        "create", "rolebinding", "alice", "--clusterrole=edit", "--user=alice", f"--namespace={namespace}"
    )
    for index in range(CARDS):
        put(applied, namespace, f"before-{index}", WHOLE)
    for index in range(CARDS):
        running(applied, namespace, f"before-{index}")

    # Requested, by somebody who may do nothing else.
    amounts = {NAMES.core: "30", NAMES.memory: "8"}
    main = {
        "name": "main",
        "image": "glibc:test",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", SHOW, "stay"],
        "stdin": True,  # it stays until somebody writes to it
        "resources": {"requests": amounts, "limits": amounts},
    }
    made = pods.pod("life", namespace=namespace, containers=[main])
    cluster.client("alice").create(made, namespace=namespace)
    pod = applied.pods(namespace)["life"]
    assert [gate["name"] for gate in pod["spec"]["schedulingGates"]] == [NAMES.gate]
    assert pod["metadata"]["labels"][NAMES.managed] == "true"
    assert int(pod["metadata"]["annotations"][NAMES.arrival]) > 0

    # Queued, and told so.
    until(
        "its condition says why it waits",
        lambda: any(
            each["type"] == NAMES.condition and each["status"] == "False"
            for each in applied.pods(namespace)["life"]["status"].get("conditions", ())
        ),
    )
    (waits,) = vcuda(applied, "queue", "-n", namespace)["pods"]
    assert (waits["name"], waits["position"]) == ("life", 1)
    assert [
        card["reason"] is None for card in vcuda(applied, "explain", "-n", namespace, "life")["cards"]
    ] == [False] * CARDS

    # Placed, and bound.
    pods.delete(applied.client, "before-0", namespace=namespace)
    uid = running(applied, namespace, "life").metadata.uid
    pod = applied.pods(namespace)["life"]
    (share,) = applied.placed(pod)["main"]
    assert not pod["spec"].get("schedulingGates")
    assert vcuda(applied, "queue", "-n", namespace)["pods"] == []

    # Limited, to the byte.
    (held,) = [each for each in applied.held() if each.uid == uid]
    assert held.cards == ((share.uuid, 30 * PPM_PER_CORE, limit),)
    until("its program has said what it sees", lambda: pods.log(applied.client, "life", namespace=namespace))
    seen = pods.log(applied.client, "life", namespace=namespace)
    assert tuple(map(int, seen.split())) == (1, limit, 0, OUT_OF_MEMORY)

    # Seen.
    told = series(applied, "life")
    assert told["vcuda_container_memory_limit_bytes"] == limit
    assert limit - 2 * 2**21 <= told["vcuda_container_memory_used_bytes"] <= limit
    assert told["vcuda_container_allocations_refused_total"] == 1
    assert told["vcuda_container_core_share_ratio"] == 0.3
    (listed,) = [
        each
        for each in json.loads(inside(applied, "vcuda-node", "vcuda", "ps", "--json"))["shares"]
        if each["name"] == f"{namespace}/life/main"
    ]
    assert listed["used_bytes"] == told["vcuda_container_memory_used_bytes"]

    # Gone, with all that there was of it.
    pods.delete(applied.client, "life", namespace=namespace)
    until("its grant is gone", lambda: all(each.uid != uid for each in applied.held()))
    assert held.ticket not in cluster.node.run("ls", "-a", f"{RUN}/shares").stdout
    assert held.ticket not in cluster.node.run("cat", "/proc/mounts").stdout
    assert series(applied, "life") == {}
    assert uid not in applied.moved()
    put(applied, namespace, "after", WHOLE)  # needs all of its card
    after = running(applied, namespace, "after").metadata.uid
    assert [each.cards[0][0] for each in applied.held() if each.uid == after] == [share.uuid]


def test_each_part_comes_back_and_what_runs_goes_on(applied: Applied, namespace: str) -> None:
    cluster = applied.cluster
    put(applied, namespace, "runs", {NAMES.core: 50, NAMES.memory: 8})
    before = running(applied, namespace, "runs").status.containerStatuses[0].containerID

    def remove(part: str) -> str:
        name = applied.part(part).metadata.name
        cluster.kubectl("delete", "pod", name, f"--namespace={SYSTEM}", "--wait=true", "--now")
        return name

    gone = remove("vcuda-controller")
    put(applied, namespace, "waits", {NAMES.core: 50, NAMES.memory: 8})
    running(applied, namespace, "waits")
    assert applied.part("vcuda-controller").metadata.name != gone

    remove("vcuda-admission")
    cluster.create(pods.pod("none", namespace=namespace))  # does not ask: nobody is asked
    until("the API server asks the next webhook", applied.admits, timeout_s=60)

    remove("vcuda-node")  # it waits to be placed until the next one serves
    put(applied, namespace, "last", {NAMES.core: 100, NAMES.memory: 64})
    running(applied, namespace, "last")
    assert running(applied, namespace, "runs").status.containerStatuses[0].containerID == before
    assert {each.cards[0][1] // PPM_PER_CORE for each in applied.held()} == {50, 100}


def test_without_the_webhook_pods_that_ask_are_refused_and_others_are_not(
    applied: Applied, namespace: str
) -> None:
    scale = f"--namespace={SYSTEM}", "deployment/vcuda-admission"
    applied.cluster.kubectl("scale", *scale, "--replicas=0")
    try:
        until("the webhook is away", lambda: not applied.admits())
        with pytest.raises(ApiError, match=r"pods\.vcuda\.dev"):
            put(applied, namespace, "asks", {NAMES.core: 10, NAMES.memory: 1})
        applied.cluster.create(pods.pod("does-not", namespace=namespace))
        running(applied, namespace, "does-not")
    finally:
        applied.cluster.kubectl("scale", *scale, "--replicas=1")
    until("the webhook is back", applied.admits, timeout_s=60)


def test_applied_once_more_changes_nothing(applied: Applied) -> None:
    before = {part: applied.part(part).metadata.uid for part in PARTS}
    said = applied.cluster.kubectl("apply", "-k", applied.directory).splitlines()
    assert [line for line in said if not line.endswith((" unchanged", " configured"))] == []
    for each in ROLLED_OUT:
        applied.rolled_out(each)
    assert {part: applied.part(part).metadata.uid for part in PARTS} == before

"""What vcuda costs in a cluster: `python -m tools.bench_cluster`. Prints JSON. Needs what its tests need.

drained: pods of four queues wait on the real API server, then the controller starts. Nodes with cards are
    objects without a kubelet. Pods placed per second, and the most memory that the controller had.
first_call: from the creation of a pod to the end of its program's first CUDA call, with a share, and without
    vcuda: the same program and image, with the same simulated driver mounted from the host.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Node, Pod

from tests import kube_objects
from tests.cluster.installation import NAMES, RUN, Installation, manifests, start_controller
from tests.cluster.machine import Cluster, pods, until
from tests.cluster.machine.programs import Program
from tests.kube_objects import GIB
from vcuda.kube.nodes import NodeCard

ASKS = ((30, 24), (50, 16), (10, 4), (25, 32), (60, 40), (100, 64))
"""Cores and units of memory."""
QUEUES = 4
FIRST = """
import ctypes, time
cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit(0) == 0
print(time.time_ns(), flush=True)
"""
"""A program: the time when its first CUDA call is done."""


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=40, help="with 8 cards each")
    parser.add_argument("--pods", type=int, default=300, help="to be placed")
    parser.add_argument("--starts", type=int, default=20, help="pods with, and so many without a share")
    given = parser.parse_args()
    with Cluster() as cluster:
        found = {
            "drained": drained(cluster, nodes=given.nodes, count=given.pods),
            "first_call_s": first_call(cluster, count=given.starts),
        }
    print(json.dumps(found, indent=2))


def drained(cluster: Cluster, *, nodes: int, count: int) -> dict[str, Any]:
    """Place so many pods on so many nodes."""
    client = cluster.client()
    # Without the webhook: pods are as it leaves them.
    given = [each for each in manifests(cluster, "base") if each["kind"] != "MutatingWebhookConfiguration"]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": given})
    cluster.kubectl("apply", "-f", "-", stdin=listed)
    token = cluster.account_token("vcuda-controller", namespace="vcuda-system")
    cluster.add_user("vcuda-controller", token)
    names = [f"n{index:04}" for index in range(nodes)]
    for name in names:
        client.create(Node.from_dict(_node(name)))
    namespace = f"bench-{uuid.uuid4().hex[:6]}"
    client.create(Namespace(metadata=ObjectMeta(name=namespace)))
    for index in range(count):
        client.create(Pod.from_dict(_waiting(f"p{index:05}", index, namespace)))
    controller = start_controller(cluster, "bench-controller")
    try:
        until("the first one is placed", lambda: _placed(cluster, namespace) > 0, timeout_s=60, every_s=0.02)
        began, first = time.monotonic(), _placed(cluster, namespace)
        until(
            f"{count} pods are placed",
            lambda: _placed(cluster, namespace) == count,
            timeout_s=600,
            every_s=0.2,
        )
        took = time.monotonic() - began
        memory = _peak_mib(controller)
    finally:
        controller.stop()
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")
        cluster.kubectl(
            *("delete", "pods", "--all", f"--namespace={namespace}", "--force", "--grace-period=0"),
            timeout_s=600,
        )
        cluster.kubectl("delete", "nodes", *names)
        cluster.kubectl("delete", "-f", "-", stdin=listed, timeout_s=120)
    return {
        "nodes": nodes,
        "cards": nodes * 8,
        "pods": count,
        "pods_per_second": round((count - first) / took, 1),
        "controller_peak_mib": memory,
    }


def first_call(cluster: Cluster, *, count: int) -> dict[str, Any]:
    """Start pods one after the other, with and without a share by turns."""
    site = Installation(cluster, cards="V100-SXM2-16GB,V100-SXM2-16GB")
    try:
        found: dict[str, list[float]] = {"with_vcuda": [], "without": []}
        for number in range(count):
            found["with_vcuda"].append(_start(site, f"with-{number}", shared=True))
            found["without"].append(_start(site, f"without-{number}", shared=False))
        agent_mib = _peak_mib(site.agent)
    finally:
        site.close()
    summary = {
        kind: {"p50": round(statistics.median(times), 2), "most": round(max(times), 2)}
        for kind, times in found.items()
    }
    return {**summary, "pods": count, "agent_peak_mib": agent_mib}


def _start(site: Installation, name: str, *, shared: bool) -> float:
    asks = {NAMES.core: 20, NAMES.memory: 4} if shared else None
    more: dict[str, Any] = {}
    if not shared:
        more["volumes"] = [{"name": "node", "hostPath": {"path": RUN}}]
        main = {
            "name": "main",
            "image": "glibc:test",
            "imagePullPolicy": "Never",
            "command": ["python3", "-c", FIRST],
            "env": [
                {"name": "LD_LIBRARY_PATH", "value": _simulator(site)},
                {"name": "SIMGPU_DIR", "value": f"{RUN}/sim"},
            ],
            "volumeMounts": [{"name": "node", "mountPath": RUN}],
        }
        more["containers"] = [main]
    made = pods.pod(name, "python3", "-c", FIRST, image="glibc:test", resources=asks, **more)
    began = time.time_ns()
    site.client.create(made)
    pods.wait_phase(site.client, name, "Succeeded")
    took = (int(pods.log(site.client, name)) - began) / 1e9
    pods.delete(site.client, name)
    return took


def _simulator(site: Installation) -> str:
    """The directory of the simulated driver that the agent has put on the node."""
    found = site.cluster.node.run("find", RUN, "-name", "libcuda.so.1").stdout.split()
    return str(Path(found[0]).parent)


def _node(name: str) -> dict[str, Any]:
    cards = [
        NodeCard(uuid=f"{name}-{index}", index=index, model="test", memory_bytes=16 * GIB)
        for index in range(8)
    ]
    found = kube_objects.node(name, cards, labels={"bench": "drained"})
    del found["spec"]["taints"]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found["status"]["conditions"][0] |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
    found["status"]["capacity"] = found["status"]["allocatable"]
    return found


def _waiting(name: str, index: int, namespace: str) -> dict[str, Any]:
    found = kube_objects.pod(
        name,
        *ASKS[index % len(ASKS)],
        namespace=namespace,
        queue=f"q{index % QUEUES}",
        arrival=time.time_ns(),
        nodeSelector={"bench": "drained"},
        tolerations=[{"operator": "Exists"}],
    )
    del found["metadata"]["uid"], found["metadata"]["creationTimestamp"], found["status"]
    return found


def _placed(cluster: Cluster, namespace: str) -> int:
    """How many pods' gates are gone."""
    found = cluster.client().list(Pod, namespace=namespace, chunk_size=0)
    return sum(1 for pod in found if pod.spec and not pod.spec.schedulingGates)


def _peak_mib(program: Program) -> float:
    """The most memory that a program ever had resident."""
    for line in Path(f"/proc/{program.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"{program.name} has ended")


if __name__ == "__main__":
    main()

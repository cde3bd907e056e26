"""What runs goes on while the API server is away, and what happened meanwhile is caught up with."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace

from tests.cluster.installation import NAMES, Installation
from tests.cluster.machine import Cluster, pods, until
from vcuda.kube.names import MEMORY_UNIT_BYTES

COUNT = """
import ctypes, itertools, time
cuda = ctypes.CDLL("libcuda.so.1")
free, total, context, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
cuda.cuCtxSetCurrent(context)
for number in itertools.count():
    assert cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(1 << 30)) == 0
    cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    assert cuda.cuMemFree_v2(at) == 0
    print(number, total.value, flush=True)
    time.sleep(0.2)
"""
"""A program: takes and gives memory five times a second, and numbers what it sees of its card."""
UNITS = 8
AWAY_S, AWAY_LONG_S = 15, 120


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> Iterator[Installation]:
    """All of vcuda, on a node with two cards."""
    made = Installation(cluster, cards="V100-SXM2-16GB,V100-SXM2-16GB")
    yield made
    made.close()
    # A kubelet that has tried in vain tries less and less often; tests after these would wait for it.
    cluster.restart("kubelet")
    cluster.wait_node_ready()


@pytest.fixture
def namespace(installation: Installation) -> Iterator[str]:
    """A namespace of the test's own; its pods are removed with it."""
    name = f"fault-{uuid.uuid4().hex[:6]}"
    installation.client.create(Namespace(metadata=ObjectMeta(name=name)))
    yield name
    pods.delete(installation.client, *installation.pods(name), namespace=name)
    installation.client.delete(Namespace, name)
    until("nothing is left", lambda: not installation.held())


def put(installation: Installation, namespace: str, name: str, *, cores: int = 40) -> None:
    made = pods.pod(
        name,
        "python3",
        "-c",
        COUNT,
        namespace=namespace,
        image="glibc:test",
        resources={NAMES.core: cores, NAMES.memory: UNITS},
    )
    installation.client.create(made, namespace=namespace)


def counted(installation: Installation, namespace: str, name: str) -> int:
    """How far a pod's program is, by its log on the node: no server is asked."""
    script = f"tail -qn1 /var/log/pods/{namespace}_{name}_*/main/*.log"
    _, _, _, number, total = installation.cluster.node.run("sh", "-c", script).stdout.split()
    assert int(total) == UNITS * MEMORY_UNIT_BYTES
    return int(number)


def goes_on(installation: Installation, namespace: str, name: str) -> None:
    """Wait until a pod's program has done something more."""
    before = counted(installation, namespace, name)
    until(f"{name} goes on", lambda: counted(installation, namespace, name) > before + 5)


def test_api_server_that_was_away_harms_nobody_and_is_caught_up_with(
    installation: Installation, namespace: str, soak: bool
) -> None:
    cluster, client = installation.cluster, installation.client
    for name in ("stays", "goes"):
        put(installation, namespace, name)
    before = {
        name: pods.wait_phase(client, name, "Running", namespace=namespace).status.containerStatuses[0]
        for name in ("stays", "goes")
    }
    goes_on(installation, namespace, "stays")
    cluster.kill("apiserver")
    try:
        time.sleep(AWAY_LONG_S if soak else AWAY_S)
        goes_on(installation, namespace, "stays")
        assert {len(each.cards) for each in installation.held()} == {1}
        assert len(installation.held()) == 2
        assert installation.agent.running
    finally:
        cluster.start("apiserver")
        cluster.servers["apiserver"].wait_ready()
    pods.delete(client, "goes", namespace=namespace, timeout_s=180)
    until("the webhook is asked again", installation.admits)
    cluster.wait_node_ready()
    put(installation, namespace, "comes", cores=60)
    pods.wait_phase(client, "comes", "Running", namespace=namespace, timeout_s=180)
    goes_on(installation, namespace, "comes")
    goes_on(installation, namespace, "stays")
    (now,) = pods.get(client, "stays", namespace=namespace).status.containerStatuses
    assert (now.containerID, now.restartCount) == (before["stays"].containerID, 0)
    until("two grants", lambda: len(installation.held()) == 2)

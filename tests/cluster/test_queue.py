"""The controller on a real API server, with its own account's rights, and the stock scheduler after it.

Nodes with cards are objects here, without a kubelet: what is shown ends where a pod is bound.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from lightkube.core.exceptions import ApiError
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import ConfigMap, Namespace, Node, Pod
from lightkube.resources.events_v1 import Event

from tests import kube_objects
from tests.cluster.installation import start_controller
from tests.cluster.machine import Cluster, until
from tests.cluster.machine.programs import ROOT, Program
from tests.kube_objects import GIB, NAMES
from vcuda.kube.placements import PodPlacement, decode
from vcuda.kube.pods import pod_facts

BASE = ROOT / "manifests" / "base"
SYSTEM = "vcuda-system"


class Site:
    """A namespace, nodes with cards of its own, and a controller."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace
        self.client = cluster.client()
        self.controller: Program | None = None
        self.nodes: list[str] = []

    def start(self) -> None:
        if self.controller is not None:
            self.controller.start()
            return
        self.controller = start_controller(self.cluster, f"controller-{self.namespace}")

    def kill(self) -> None:
        assert self.controller is not None
        self.controller.kill()

    def add_nodes(self, *cards: Sequence[int]) -> None:
        """Nodes that are ready as long as no controller misses their heartbeat: 50 s."""
        for each in cards:
            name = f"{self.namespace}-{len(self.nodes)}"
            found = kube_objects.node(name, each, labels={"site": self.namespace})
            del found["spec"]["taints"]
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            found["status"]["conditions"][0] |= {"lastHeartbeatTime": now, "lastTransitionTime": now}
            found["status"]["capacity"] = found["status"]["allocatable"]
            self.client.create(Node.from_dict(found))
            self.nodes.append(name)

    def add_pod(self, name: str, cores: int, units: int, **more: Any) -> None:
        """A pod as the webhook leaves it, for the nodes of this site."""
        more = {"nodeSelector": {"site": self.namespace}, "tolerations": [{"operator": "Exists"}], **more}
        found = kube_objects.pod(name, cores, units, namespace=self.namespace, arrival=time.time_ns(), **more)
        del found["metadata"]["uid"], found["metadata"]["creationTimestamp"], found["status"]
        self.client.create(Pod.from_dict(found))

    def delete_pod(self, name: str) -> None:
        with contextlib.suppress(ApiError):
            self.client.delete(Pod, name, namespace=self.namespace, grace_period=0)

    def pods(self) -> dict[str, dict[str, Any]]:
        return {pod.metadata.name: pod.to_dict() for pod in self.client.list(Pod, namespace=self.namespace)}

    def placements(self) -> dict[str, PodPlacement]:
        """Of all pods that are placed, with the signature checked as a node does."""
        found = self.client.get(ConfigMap, "vcuda-placement-key", namespace=SYSTEM)
        key: Any = serialization.load_pem_public_key(found.data["public.pem"].encode())
        facts = {name: pod_facts(pod, NAMES) for name, pod in self.pods().items()}
        return {
            name: decode(each.placement, each.uid, key)
            for name, each in facts.items()
            if each.placement is not None and not each.gated
        }

    def bound(self) -> dict[str, str]:
        return {
            name: pod["spec"]["nodeName"] for name, pod in self.pods().items() if pod["spec"].get("nodeName")
        }

    def condition(self, name: str) -> dict[str, Any]:
        conditions = self.pods()[name]["status"].get("conditions") or []
        return next((each for each in conditions if each["type"] == NAMES.condition), {})

    def check(self) -> None:
        """Counted from pods alone: no card beyond what it has; bound where they were placed."""
        placements, bound = self.placements(), self.bound()
        cards: dict[str, list[Any]] = {}
        for name, placement in placements.items():
            assert bound.get(name, placement.node) == placement.node
            for share in (share for shares in placement.containers.values() for share in shares):
                cards.setdefault(share.uuid, []).append(share)
        for shares in cards.values():
            assert sum(share.cores for share in shares) <= 100
            assert sum(share.memory_bytes for share in shares) <= 16 * GIB
            assert len(shares) == 1 or not any(share.whole for share in shares)
        assert set(bound) <= set(placements)


@pytest.fixture(scope="module")
def rights(cluster: Cluster) -> Iterator[None]:
    """The controller's account and rights as the manifests have them, and the policy that guards pods."""
    text = yaml.safe_dump_all(
        each
        for name in ("namespace", "controller", "policy-pods")
        for each in yaml.safe_load_all((BASE / f"{name}.yaml").read_text())
        if each["kind"] != "Deployment"
    )
    cluster.kubectl("apply", "-f", "-", stdin=text)
    cluster.add_user("vcuda-controller", cluster.account_token("vcuda-controller", namespace=SYSTEM))
    yield
    cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=text)


@pytest.fixture
def site(cluster: Cluster, rights: None) -> Iterator[Site]:
    name = f"queue-{uuid.uuid4().hex[:6]}"
    client = cluster.client()
    client.create(Namespace(metadata=ObjectMeta(name=name)))
    made = Site(cluster, name)
    made.start()
    yield made
    if made.controller is not None:
        made.controller.stop()
    for pod in made.pods():
        made.delete_pod(pod)
    for node in made.nodes:
        client.delete(Node, node)
    client.delete(Namespace, name)


def test_scheduler_binds_pods_where_they_were_placed(site: Site) -> None:
    site.add_nodes([16], [16])
    zone = {"matchExpressions": [{"key": "site", "operator": "In", "values": [site.namespace]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [zone, zone]}}
    site.add_pod("whole", 100, 64)
    site.add_pod("half", 40, 24, affinity={"nodeAffinity": required})
    site.add_pod("third", 30, 24)
    site.add_pod("waits", 50, 8)
    until("three are bound", lambda: set(site.bound()) == {"whole", "half", "third"})
    site.check()
    placements = site.placements()
    assert placements["half"].node == placements["third"].node != placements["whole"].node
    until("it is told", lambda: site.condition("waits").get("reason") == "NoRoom")
    assert "kept for it" in site.condition("waits")["message"]
    until("it is told", lambda: site.condition("half").get("status") == "True")
    notes = [
        each.reason
        for each in site.client.list(Event, namespace=site.namespace)
        if each.regarding.name == "waits"
    ]
    assert notes.count("Waiting") == 1
    site.delete_pod("half")
    until("it goes", lambda: "waits" in site.bound())
    site.check()


def test_controller_that_is_killed_again_and_again_places_all_in_order(site: Site) -> None:
    chance = random.Random(7)
    site.add_nodes([16] * 8, [16] * 8)
    for index in range(48):
        site.add_pod(f"p{index:02}", 25, 8, queue=f"q{index % 4}")
        if index % 8 == 7:
            time.sleep(chance.uniform(0, 0.4))
            site.kill()
            site.start()
    until("all are bound", lambda: len(site.bound()) == 48, timeout_s=60)
    site.check()
    assert set(site.placements()) == {f"p{index:02}" for index in range(48)}


def test_api_server_that_was_away_is_caught_up_with(site: Site) -> None:
    site.add_nodes([16])
    site.add_pod("a", 80, 40)
    site.add_pod("b", 80, 40)
    until("it is bound", lambda: set(site.bound()) == {"a"})
    site.cluster.kill("apiserver")
    time.sleep(4)  # longer than the lease
    site.cluster.start("apiserver")
    until("the server answers", site.pods)
    site.delete_pod("a")
    until("the next one goes", lambda: set(site.bound()) == {"b"}, timeout_s=40)
    site.check()


def test_placed_pod_that_finds_its_node_full_is_evicted_and_made_anew(site: Site) -> None:
    """The node's CPUs are taken by a pod without a share, of which placement does not know."""
    site.add_nodes([16])
    filler = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "filler", "namespace": site.namespace},
        "spec": {
            "nodeName": site.nodes[0],
            "containers": [{"name": "main", "image": "test", "resources": {"requests": {"cpu": "64"}}}],
        },
    }
    site.client.create(Pod.from_dict(filler))
    made = kube_objects.pod(
        "made",
        namespace=site.namespace,
        containers=[kube_objects.container("main", 30, 8, cpu="1")],
        nodeSelector={"site": site.namespace},
        tolerations=[{"operator": "Exists"}],
    )
    labels = {**made["metadata"]["labels"], "app": "made"}
    replicas = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "made", "namespace": site.namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "made"}},
            "template": {
                "metadata": {"labels": labels, "annotations": made["metadata"]["annotations"]},
                "spec": made["spec"],
            },
        },
    }
    # The policy asks for an arrival and a gate, which the template has as the webhook would set them.
    site.cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(replicas))

    def uids() -> set[str]:
        return {pod["metadata"]["uid"] for name, pod in site.pods().items() if name.startswith("made-")}

    until("a pod is made", uids)
    (before,) = uids()
    assert site.controller is not None
    site.controller.stop()
    site.controller = start_controller(site.cluster, f"impatient-{site.namespace}", unbound_s="2")
    until("another pod is in its place", lambda: uids() and before not in uids())
    told = ("get", "events", "--field-selector=reason=Unbound", f"--namespace={site.namespace}", "-o", "yaml")
    until("an Event says why", lambda: "Insufficient cpu" in site.cluster.kubectl(*told))
    site.delete_pod("filler")
    until("it is bound", lambda: set(site.bound()) - {"filler"}, timeout_s=90)
    site.cluster.kubectl("delete", "replicaset", "made", f"--namespace={site.namespace}")

"""All of vcuda on the tests' cluster, each part a program of its own that a test can kill.

The webhook and the controller run beside the control plane, the agent on the node, with the rights that the
manifests give them. What is counted here is counted from pods, and from the grants on the node's disk.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from lightkube.core.exceptions import ApiError
from lightkube.resources.core_v1 import ConfigMap, Node, Pod

from tests.cluster.machine import NODE, Cluster, pods, until
from tests.cluster.machine.programs import ROOT, Program
from vcuda.kube.names import Names
from vcuda.kube.nodes import decode_moved
from vcuda.kube.placements import CardShare, decode
from vcuda.kube.pods import pod_facts

NAMES = Names()
SYSTEM = "vcuda-system"
RUN = "/run/vcuda-node"
HEALTH_PORT = 18080
QUICK = {"LEASE_S": "3", "RENEW_S": "2", "RETRY_S": "0.3", "PATIENCE_S": "0", "TELL_S": "0.2"}
"""Settings of the controller with which another leader need not be waited for long."""
_PRINT = "from tests.cluster.installation import on_node; on_node()"


@dataclass(frozen=True, kw_only=True)
class Held:
    """A container's grant, as it lies on the node's disk."""

    ticket: str
    uid: str
    container: str
    cards: tuple[tuple[str, int, int], ...]
    """UUID, cores in millionths of the card, bytes: from the grant itself."""


class Site:
    """A cluster with vcuda on it, and what can be seen there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.client = cluster.client()

    def admits(self) -> bool:
        """Whether a pod that asks can be created, as a trial."""
        trial: Any = pods.pod("trial", resources={NAMES.core: 10, NAMES.memory: 1})
        with contextlib.suppress(ApiError):
            made = self.client.create(trial, dry_run=True)
            return NAMES.managed in (made.metadata.labels or {})
        return False

    def offered(self) -> int:
        """Cores that the node has for pods, as the scheduler sees it."""
        status = self.client.get(Node, NODE).status
        return int(((status and status.allocatable) or {}).get(NAMES.core, 0))

    def pods(self, namespace: str) -> dict[str, dict[str, Any]]:
        """All pods of a namespace, by name."""
        return {pod.metadata.name: pod.to_dict() for pod in self.client.list(Pod, namespace=namespace)}

    def placed(self, pod: dict[str, Any]) -> dict[str, tuple[CardShare, ...]]:
        """Where a pod's containers are by its placement, whose signature must be the controller's."""
        found = self.client.get(ConfigMap, "vcuda-placement-key", namespace=SYSTEM)
        key: Any = serialization.load_pem_public_key(found.data["public.pem"].encode())
        facts = pod_facts(pod, NAMES)
        return dict(decode(facts.placement or "", facts.uid, key).containers)

    def moved(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What the node says that it put elsewhere."""
        text = (self.client.get(Node, NODE).metadata.annotations or {}).get(NAMES.moved)
        return {} if text is None else {uid: dict(each) for uid, each in decode_moved(text).items()}

    def held(self) -> list[Held]:
        """All grants that are on the node's disk, read there."""
        argv = [sys.executable, "-P", "-c", _PRINT]
        done = self.cluster.node.run(*argv, env={"PYTHONPATH": str(ROOT)}, timeout_s=60)
        return [
            Held(**{**each, "cards": tuple(tuple(card) for card in each["cards"])})
            for each in json.loads(done.stdout)
        ]


class Installation(Site):
    """vcuda on a cluster, running from construction until `close`; cards: models of simulated cards."""

    def __init__(self, cluster: Cluster, *, cards: str) -> None:
        super().__init__(cluster)
        self._given = yaml.safe_dump_all(manifests(cluster, "base", "node"))
        cluster.kubectl("apply", "-f", "-", stdin=self._given)
        for account in ("vcuda-admission", "vcuda-controller", "vcuda-node"):
            bound_to = NODE if account == "vcuda-node" else ""
            cluster.add_user(account, cluster.account_token(account, namespace=SYSTEM, node=bound_to))
        self.webhook = start_webhook(cluster, "burst-webhook")
        self.controller = start_controller(cluster, "burst-controller")
        self.agent = self._agent(cards)
        until("the API server asks the webhook", self.admits, timeout_s=60)
        until("the node offers its cards", lambda: self.offered() > 0, timeout_s=60)

    @property
    def programs(self) -> dict[str, Program]:
        """What a test can kill, and start again, by name."""
        return {"webhook": self.webhook, "controller": self.controller, "agent": self.agent}

    def close(self) -> None:
        for program in self.programs.values():
            program.stop()
        self.cluster.node.run("rm", "-rf", RUN)  # the simulated cards, too
        self.cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=self._given)

    def _agent(self, cards: str) -> Program:
        env = {
            "PYTHONPATH": str(ROOT),
            "VCUDA_NODE_NAME": NODE,
            "VCUDA_NODE_KUBECONFIG": str(self.cluster.kubeconfig("vcuda-node")),
            "VCUDA_NODE_SIMULATED": cards,
            "VCUDA_NODE_METRICS_ADDRESS": f"{self.cluster.address(51)}:9402",
            "VCUDA_NODE_RECONCILE_SECONDS": "0.5",
        }
        return self.cluster.node.start("burst-agent", [sys.executable, "-P", "-m", "deviceplugin"], env=env)


def on_node() -> None:
    """What `Installation.held` runs on the node: prints the grants that are there."""
    from vcuda import grant as grants

    found: list[dict[str, Any]] = []
    for path in sorted(Path(RUN, "shares").glob("*/share/grant")):
        with contextlib.suppress(OSError):  # it ends just now
            owner = json.loads((path.parents[1] / "ticket.json").read_text(encoding="utf-8"))["owner"]
            cards = [(card.uuid, card.core_ppm, card.memory_bytes) for card in grants.read(path).cards]
            names = {"uid": owner["uid"], "container": owner["container"]}
            found.append({"ticket": path.parents[1].name, **names, "cards": cards})
    print(json.dumps(found))


def start_webhook(cluster: Cluster, name: str, **settings: str) -> Program:
    """The webhook, beside the control plane; settings go over those that the cluster needs."""
    env = {
        "HOST": cluster.address(50),
        "PORT": "443",
        "HEALTH_PORT": str(HEALTH_PORT),
        "DRAIN_S": "0",
        "KUBECONFIG": str(cluster.kubeconfig("vcuda-admission")),
        **{setting.upper(): value for setting, value in settings.items()},
    }
    return _start(cluster, name, "webhook", {f"VCUDA_ADMISSION_{key}": value for key, value in env.items()})


def start_controller(cluster: Cluster, name: str, **settings: str) -> Program:
    """A controller, beside the control plane; settings go over QUICK."""
    given = {setting.upper(): value for setting, value in settings.items()}
    env = {"KUBECONFIG": str(cluster.kubeconfig("vcuda-controller")), **QUICK, **given}
    return _start(
        cluster, name, "controller", {f"VCUDA_CONTROLLER_{key}": value for key, value in env.items()}
    )


def _start(cluster: Cluster, name: str, part: str, env: dict[str, str]) -> Program:
    return cluster.control.start(name, [sys.executable, "-m", "admission", part], env=env)


def manifests(cluster: Cluster, *directories: str) -> list[dict[str, Any]]:
    """All that these directories of manifests install, but what runs containers of an image."""
    found = [
        each
        for directory in directories
        for path in sorted((ROOT / "manifests" / directory).glob("*.yaml"))
        if path.name != "kustomization.yaml"
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8"))
        if each["kind"] not in {"Deployment", "DaemonSet", "PodDisruptionBudget"}
    ]
    for each in found:
        if (each["kind"], each["metadata"]["name"]) == ("Service", "vcuda-admission"):
            each["spec"] = {"clusterIP": cluster.address(50), "ports": [{"port": 443, "name": "webhook"}]}
    return sorted(found, key=lambda each: each["kind"] != "Namespace")

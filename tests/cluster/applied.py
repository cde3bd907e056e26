"""All of vcuda on the tests' cluster as its users install it: `kubectl apply -k`, and pods of one image.

The image stands in for the Containerfile's, which needs a registry. What is laid over the manifests is what
this cluster lacks: it has one node, and pods reach the API server through the host's network alone, where
each server needs an address of its own.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from lightkube.resources.core_v1 import Pod

from tests.cluster.installation import QUICK, RUN, SYSTEM, Site
from tests.cluster.machine import Cluster, packages, until
from tests.cluster.machine.programs import ROOT

OVERLAY = ROOT / "manifests" / "overlays" / "simulated"
WEBHOOK_PORT = 8443
AGENT_PORT = 9402
ROLLED_OUT = ("deployment/vcuda-admission", "deployment/vcuda-controller", "daemonset/vcuda-node")
_ROLLOUT_S = 120
_FETCH = (
    "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1], timeout=10).read().decode())"
)


class Applied(Site):
    """vcuda on a cluster while the block lasts; cards: models of simulated cards."""

    def __init__(self, cluster: Cluster, directory: Path, *, cards: str) -> None:
        super().__init__(cluster)
        self.directory = directory / "kustomization"
        (image,) = {
            container["image"]
            for each in yaml.safe_load_all(cluster.kubectl("kustomize", OVERLAY))
            for container in _containers(each)
        }
        files = packages.vcuda(directory / "commands")
        cluster.image(image, files, env={"PYTHONPATH": packages.PACKAGES, "PYTHONUNBUFFERED": "1"})
        self._write(cards)

    def __enter__(self) -> Self:
        self.cluster.kubectl("apply", "-k", self.directory)
        try:
            for each in ROLLED_OUT:
                self.rolled_out(each)
            until("the API server asks the webhook", self.admits, timeout_s=60)
            until("the node offers its cards", lambda: self.offered() > 0, timeout_s=60)
        except BaseException:
            print(self.told())
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.told())
        self._remove()

    def rolled_out(self, each: str) -> None:
        """Wait until the pods of a Deployment or the DaemonSet are ready."""
        self.cluster.kubectl(
            "rollout", "status", each, f"--namespace={SYSTEM}", f"--timeout={_ROLLOUT_S}s", timeout_s=150
        )

    def part(self, part: str) -> Pod:
        """The one pod of a part that is not being deleted, such as vcuda-node."""
        (found,) = [
            pod
            for pod in self.client.list(Pod, namespace=SYSTEM, labels={"app.kubernetes.io/name": part})
            if pod.metadata and not pod.metadata.deletionTimestamp
        ]
        return found

    def metrics(self) -> str:
        """What the agent's pod tells Prometheus."""
        url = f"http://{self.cluster.address(51)}:{AGENT_PORT}/metrics"
        return self.cluster.node.run("python3", "-c", _FETCH, url).stdout

    def told(self) -> str:
        """The ends of the logs of all parts, and what their pods are at."""
        lines = [self.cluster.kubectl("get", "pods", "-o", "wide", f"--namespace={SYSTEM}")]
        for each in ROLLED_OUT:
            with contextlib.suppress(Exception):
                lines.append(self.cluster.kubectl("logs", each, "--tail=30", f"--namespace={SYSTEM}"))
        return "\n".join(lines)

    def _remove(self) -> None:
        self.cluster.kubectl(
            "delete", "--ignore-not-found", "--wait=true", "-k", self.directory, timeout_s=120
        )
        self.cluster.node.run("rm", "-rf", RUN)  # the simulated cards, too

    def _write(self, cards: str) -> None:
        """The kustomization over the overlay; its resources must be named by a relative path."""
        self.directory.mkdir(parents=True)
        resource = "../" * len(self.directory.resolve().parts[1:]) + str(OVERLAY)[1:]
        webhook, agent, controller = (self.cluster.address(number) for number in (50, 51, 52))
        once = {"replicas": 1, "strategy": {"type": "Recreate", "rollingUpdate": None}}
        patches: list[dict[str, Any]] = [
            _operations(
                "Service",
                ("add", "/spec/clusterIP", webhook),
                ("replace", "/spec/ports/0/port", WEBHOOK_PORT),
            ),
            _operations(
                "MutatingWebhookConfiguration",
                ("replace", "/webhooks/0/clientConfig/service/port", WEBHOOK_PORT),
            ),
            _on_the_host(
                "Deployment",
                "vcuda-admission",
                "webhook",
                webhook,
                {"VCUDA_ADMISSION_HOST": webhook, "VCUDA_ADMISSION_DRAIN_S": "0"},
                probes=("readinessProbe", "livenessProbe"),
                spec=once,
            ),
            _on_the_host(
                "Deployment",
                "vcuda-controller",
                "controller",
                controller,
                {
                    f"VCUDA_CONTROLLER_{key}": value
                    for key, value in {"METRICS_HOST": controller, **QUICK}.items()
                },
                spec=once,
            ),
            _on_the_host(
                "DaemonSet",
                "vcuda-node",
                "vcuda-node",
                agent,
                {"VCUDA_NODE_METRICS_ADDRESS": f"{agent}:{AGENT_PORT}", "VCUDA_NODE_SIMULATED": cards},
                probes=("readinessProbe", "livenessProbe"),
            ),
        ]
        content = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [resource],
            "patches": patches,
        }
        (self.directory / "kustomization.yaml").write_text(yaml.safe_dump(content))


def _containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    spec = manifest.get("spec") or {}
    template = spec.get("template") if isinstance(spec, dict) else None
    return [] if template is None else template["spec"]["containers"]


def _operations(kind: str, *operations: tuple[str, str, object]) -> dict[str, Any]:
    found = [{"op": operation, "path": path, "value": value} for operation, path, value in operations]
    return {"target": {"kind": kind, "name": "vcuda-admission"}, "patch": json.dumps(found)}


def _on_the_host(
    kind: str,
    name: str,
    container: str,
    address: str,
    env: Mapping[str, str],
    *,
    probes: Sequence[str] = ("livenessProbe",),
    spec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """In the host's network, listening at one address of the cluster's range, where it is probed too."""
    main = {
        "name": container,
        "imagePullPolicy": "Never",
        "env": [{"name": key, "value": value} for key, value in env.items()],
        **{probe: {"httpGet": {"host": address}} for probe in probes},
    }
    patch = {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": {**(spec or {}), "template": {"spec": {"hostNetwork": True, "containers": [main]}}},
    }
    return {"patch": json.dumps(patch)}

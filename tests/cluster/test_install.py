"""`kubectl apply -k` puts in all there is, and a cluster goes on where the servers do not come up."""

from __future__ import annotations

import pytest
import yaml
from lightkube.core.exceptions import ApiError
from lightkube.resources.core_v1 import Pod

from tests.cluster.machine import Cluster, pods
from tests.cluster.machine.programs import ROOT
from vcuda.kube.names import Names

NAMES = Names()


def test_applied_and_removed_as_a_whole(cluster: Cluster) -> None:
    directory = ROOT / "manifests" / "base"
    given = [each for each in yaml.safe_load_all(cluster.kubectl("kustomize", directory)) if each]
    cluster.kubectl("apply", "-k", directory)
    try:
        names = [f"{each['kind']}/{each['metadata']['name']}" for each in given]
        assert {"Deployment/vcuda-admission", "Deployment/vcuda-controller", "DaemonSet/vcuda-node"} <= {
            *names
        }
        for each in given:
            namespace = each["metadata"].get("namespace", "default")
            cluster.kubectl("get", each["kind"], each["metadata"]["name"], f"--namespace={namespace}")
        client = cluster.client()
        client.create(pods.pod("no-share"))
        pods.delete(client, "no-share")
        # Nobody has the image here, so the webhook does not answer.
        with pytest.raises(ApiError, match=r"pods\.vcuda\.dev"):
            client.create(pods.pod("share", resources={NAMES.core: 30, NAMES.memory: 4}))
        assert all(pod.metadata.name != "share" for pod in client.list(Pod, namespace="default"))
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--wait=true", "-k", directory, timeout_s=120)

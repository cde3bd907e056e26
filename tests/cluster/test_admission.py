"""Admission on a real API server: our webhook with its own account's rights, and the policies beside it."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from lightkube.core.exceptions import ApiError
from lightkube.models.core_v1 import Binding, ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import (
    MutatingWebhookConfiguration,
    ValidatingAdmissionPolicy,
)
from lightkube.resources.core_v1 import ConfigMap, Node, Pod, Secret
from lightkube.types import PatchType

from tests.cluster.installation import HEALTH_PORT, manifests, start_webhook
from tests.cluster.machine import NODE, Cluster, ClusterError, pods, until
from tests.cluster.machine.programs import ROOT, Program
from tests.unit.test_admission_mutate import REFUSED
from vcuda.kube.names import ALIASES, Names
from vcuda.kube.nodes import NodeCard, NodeCards, encode_cards
from vcuda.kube.placements import decode

NAMES = Names()
CORE, MEMORY = NAMES.core, NAMES.memory
BASE = ROOT / "manifests" / "base"
NAMESPACE = "vcuda-system"
PORT = 443
SHARE = {CORE: 30, MEMORY: 8}
PATCHED = ("vcuda_admission_reviews_total", "patched")

RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: test-admission}
rules:
  - {apiGroups: [""], resources: [pods, pods/status], verbs: [get, create, update, patch, delete]}
  - {apiGroups: [""], resources: [pods/ephemeralcontainers], verbs: [get, update, patch]}
  - {apiGroups: [""], resources: [nodes, nodes/status], verbs: [get, update, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: test-admission}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: test-admission}
subjects:
  - {kind: User, apiGroup: rbac.authorization.k8s.io, name: alice}
  - {kind: ServiceAccount, name: vcuda-node, namespace: vcuda-system}
"""
"""More than they have: what is refused here, the policies refuse. The controller has those of the base."""


class Installed:
    """vcuda's admission on a cluster, with the webhook beside the control plane."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.webhook: Program | None = None
        self.address = cluster.address(50)

    def start(self, **settings: str) -> None:
        """Start the webhook, or one with other settings, and wait until the API server trusts it."""
        self.webhook = start_webhook(self.cluster, "vcuda-admission", **settings)
        until("webhook: ready", lambda: self.get("/readyz") == "ok\n")
        until("webhook: asked by the API server", self.answers)

    def stop(self) -> None:
        if self.webhook is not None:
            self.webhook.stop()
            self.webhook = None

    def get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://{self.address}:{HEALTH_PORT}{path}", timeout=5) as got:
                return got.read().decode()
        except OSError:
            return None

    def answers(self) -> bool:
        """Whether a pod that asks can be created, as a trial."""
        with contextlib.suppress(ApiError):
            self.dry_run(pods.pod("trial", resources=SHARE))
            return True
        return False

    def dry_run(self, pod: Pod | Mapping[str, Any], *, user: str = "admin") -> dict[str, Any]:
        """What the API server makes of a pod; nothing is kept."""
        body = pod.to_dict() if isinstance(pod, Pod) else dict(pod)
        client: Any = self.cluster.client(user)
        return client.create(Pod.from_dict(body), namespace="default", dry_run=True).to_dict()

    def metric(self, name: str, verdict: str) -> int:
        line = f'{name}{{verdict="{verdict}"}} '
        text = self.get("/metrics") or ""
        (found,) = [each.removeprefix(line) for each in text.splitlines() if each.startswith(line)]
        return int(float(found))


@pytest.fixture(scope="module")
def installed(cluster: Cluster) -> Iterator[Installed]:
    """The policies, the webhook's configuration and rights, and the webhook, running."""
    text = yaml.safe_dump_all(manifests(cluster, "base"))
    cluster.kubectl("apply", "-f", "-", stdin=text)
    try:
        cluster.kubectl("apply", "-f", "-", stdin=RIGHTS)
        for account in ("vcuda-admission", "vcuda-controller", "vcuda-node"):
            with contextlib.suppress(ClusterError):  # it is in the base
                cluster.kubectl("create", "serviceaccount", account, f"--namespace={NAMESPACE}")
            node = NODE if account == "vcuda-node" else ""
            cluster.add_user(account, cluster.account_token(account, namespace=NAMESPACE, node=node))
        running = Installed(cluster)
        running.start()
        yield running
        running.stop()
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=RIGHTS)
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=text)


@pytest.fixture
def name(cluster: Cluster) -> Iterator[str]:
    """A pod's name of the test's own; the pod is removed afterwards."""
    chosen = f"admission-{uuid.uuid4().hex[:8]}"
    yield chosen
    pods.delete(cluster.client(), chosen)


@contextlib.contextmanager
def refused(*texts: str, codes: tuple[int, ...] = (403, 422)) -> Iterator[None]:
    with pytest.raises(ApiError) as error:
        yield
    for text in texts:
        assert text in str(error.value)
    assert error.value.status.code in codes


def placement_of(cluster: Cluster, name: str, *, user: str, **extra: Any) -> None:
    """Place a pod as the controller does: one patch."""
    patch = {"metadata": {"annotations": {NAMES.placement: "signed"}}, "spec": {"schedulingGates": None}}
    cluster.client(user).patch(Pod, name, {**patch, **extra}, patch_type=PatchType.MERGE)


def test_pod_that_asks_is_translated_marked_and_held(installed: Installed, name: str) -> None:
    client = installed.cluster.client("alice")
    client.create(pods.pod(name, resources={"aliyun.com/gpu-mem": 8065}))
    made = client.get(Pod, name)
    assert made.spec.containers[0].resources.limits == {MEMORY: "32"}
    assert made.spec.containers[0].resources.requests == {MEMORY: "32"}
    assert [gate.name for gate in made.spec.schedulingGates] == [NAMES.gate]
    assert made.metadata.labels == {NAMES.managed: "true"}
    assert made.metadata.annotations[NAMES.arrival].isdecimal()
    held = until("the gate's condition", lambda: pods.condition(pods.get(client, name), "PodScheduled"))
    assert held.reason == "SchedulingGated"


def test_counts_come_back_as_the_api_writes_them(installed: Installed) -> None:
    made = installed.dry_run(pods.pod("trial", resources={CORE: "1000", MEMORY: "2Ki"}))
    assert made["spec"]["containers"][0]["resources"]["limits"] == {CORE: "1k", MEMORY: "2Ki"}


def test_user_sees_what_was_rounded_up(installed: Installed) -> None:
    manifest = json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            **pods.pod("trial", resources={"aliyun.com/gpu-mem": 8065}).to_dict(),
        }
    )
    cluster = installed.cluster
    command = [str(cluster.kubectl_path), f"--kubeconfig={cluster.kubeconfig()}"]
    done = subprocess.run(
        [*command, "create", "--dry-run=server", "-f", "-"],
        input=manifest,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"8065: counts as 32 {MEMORY} of 256MiB" in done.stderr


def test_pods_without_vcuda_never_meet_the_webhook(installed: Installed) -> None:
    before = installed.metric(PATCHED[0], "untouched")
    made = installed.dry_run(
        pods.pod("trial", resources={"cpu": "10m"}, labels={NAMES.managed: "true"}, nodeName=NODE)
    )
    assert "schedulingGates" not in made["spec"]
    assert installed.metric(PATCHED[0], "untouched") == before


def test_without_the_webhook_pods_without_vcuda_are_created_and_others_refused(
    installed: Installed, name: str
) -> None:
    installed.stop()
    try:
        installed.cluster.create(pods.pod(name, "true", resources={"cpu": "10m", CORE: 0}))
        pods.wait_phase(installed.cluster.client(), name, "Succeeded")
        for resource in (MEMORY, *ALIASES):
            with refused("failed calling webhook", "pods.vcuda.dev", codes=(500,)):
                installed.dry_run(pods.pod("trial", resources={resource: 1}))
    finally:
        installed.start()


def test_policy_stands_alone_where_the_webhook_s_configuration_is_gone(installed: Installed) -> None:
    client = installed.cluster.client()
    kept = client.get(MutatingWebhookConfiguration, "vcuda-admission")
    client.delete(MutatingWebhookConfiguration, "vcuda-admission")
    try:
        made_up = pods.pod(
            "trial",
            resources=SHARE,
            gates=[NAMES.gate],
            labels={NAMES.managed: "true"},
            annotations={NAMES.arrival: "1"},
        )

        def unseen() -> bool:
            with contextlib.suppress(ApiError):
                return installed.dry_run(made_up)["metadata"]["annotations"][NAMES.arrival] == "1"
            return False

        until("the configuration is forgotten", unseen)
        with refused("spec.schedulingGates, metadata: gate vcuda.dev/placement"):
            installed.dry_run(pods.pod("trial", resources=SHARE))
        for alias in ALIASES:
            with refused("were not replaced by vcuda's own"):
                installed.dry_run(pods.pod("trial", resources={alias: 1}))
        placed = made_up.to_dict()
        placed["metadata"]["annotations"][NAMES.placement] = "x"
        with refused("is written by vcuda's controller alone"):
            installed.dry_run(placed)
        bound = made_up.to_dict()
        del bound["spec"]["schedulingGates"]
        bound["spec"]["nodeName"] = NODE
        with refused("spec.schedulingGates, metadata: gate vcuda.dev/placement"):
            installed.dry_run(bound)
    finally:
        kept.metadata = ObjectMeta(name="vcuda-admission", labels=kept.metadata.labels)
        client.create(kept)
        until("webhook: asked again", installed.answers)


@pytest.mark.parametrize("user", ["alice", "admin", "vcuda-node"])
@pytest.mark.parametrize("subresource", [None, "status"])
def test_what_is_the_controller_s_nobody_else_writes(
    installed: Installed, name: str, user: str, subresource: str | None
) -> None:
    cluster = installed.cluster
    cluster.create(pods.pod(name, resources=SHARE), user="alice")
    path = f"/api/v1/namespaces/default/pods/{name}{f'/{subresource}' if subresource else ''}"

    def patch(body: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {cluster.token(user)}", "Content-Type": PatchType.MERGE.value}
        answer = httpx2.patch(cluster.url + path, json=body, headers=headers, verify=False, trust_env=False)
        if answer.status_code >= 400:
            raise ApiError(request=answer.request, response=answer)

    for field, attribute in (("annotations", NAMES.placement), ("annotations", NAMES.arrival)):
        with refused("metadata.annotations: vcuda.dev/placement and vcuda.dev/arrival"):
            patch({"metadata": {field: {attribute: "1"}}})
    with refused("metadata.annotations: vcuda.dev/placement and vcuda.dev/arrival"):
        patch({"metadata": {"annotations": {NAMES.arrival: None}}})
    for value in ("false", None):
        with refused("metadata.labels[vcuda.dev/managed]: is set by vcuda itself"):
            patch({"metadata": {"labels": {NAMES.managed: value}}})
    if subresource is None:
        with refused("spec.schedulingGates: vcuda.dev/placement is taken off by vcuda's controller alone"):
            patch({"spec": {"schedulingGates": None}})
        with refused("spec.schedulingGates: vcuda.dev/placement is taken off by vcuda's controller alone"):
            placement_of(cluster, name, user=user)
    patch({"metadata": {"labels": {"app": "x"}, "annotations": {"note": "y"}}})
    pod = pods.get(cluster.client(), name)
    assert (pod.metadata.labels["app"], pod.metadata.annotations["note"]) == ("x", "y")


def test_controller_places_and_then_nobody_changes_it(installed: Installed, name: str) -> None:
    cluster = installed.cluster
    cluster.create(pods.pod(name, resources=SHARE), user="alice")
    placement_of(cluster, name, user="vcuda-controller")
    assert pods.get(cluster.client(), name).spec.schedulingGates is None
    for user in ("alice", "admin"):
        with refused("metadata.annotations: vcuda.dev/placement and vcuda.dev/arrival"):
            placement_of(cluster, name, user=user, metadata={"annotations": {NAMES.placement: "other"}})


def test_held_pod_can_be_debugged_deleted_and_its_configuration_applied_again(
    installed: Installed, name: str
) -> None:
    cluster = installed.cluster
    cluster.create(pods.pod(name, resources=SHARE), user="alice")
    container = {"name": "debug", "image": "busybox:test", "imagePullPolicy": "Never"}
    patch = json.dumps({"spec": {"ephemeralContainers": [container]}})
    cluster.kubectl("patch", "pod", name, "--subresource=ephemeralcontainers", "-p", patch, user="alice")
    (added,) = pods.get(cluster.client(), name).spec.ephemeralContainers
    assert added.name == "debug"
    client = cluster.client()
    before = client.get(MutatingWebhookConfiguration, "vcuda-admission").webhooks[0].clientConfig.caBundle
    cluster.kubectl("apply", "-f", BASE / "webhook.yaml")
    assert (
        client.get(MutatingWebhookConfiguration, "vcuda-admission").webhooks[0].clientConfig.caBundle
        == before
    )


def test_controller_does_with_the_rights_of_the_base_all_that_it_does(
    installed: Installed, name: str
) -> None:
    cluster = installed.cluster
    agent, client = cluster.client("vcuda-node"), cluster.client()
    card = NodeCard(uuid="GPU-1", index=0, model="V100", memory_bytes=2**34)
    cards = encode_cards(NodeCards(cards=(card,), memory_unit_bytes=2**28))
    amounts = {CORE: "100", MEMORY: "64"}
    client.patch(Node.Status, NODE, {"status": {"capacity": amounts, "allocatable": amounts}})
    agent.patch(Node, NODE, {"metadata": {"annotations": {NAMES.cards: cards}}})
    env = {
        "VCUDA_CONTROLLER_KUBECONFIG": str(cluster.kubeconfig("vcuda-controller")),
        "VCUDA_CONTROLLER_PATIENCE_S": "0",
    }
    argv = [sys.executable, "-m", "admission", "controller"]
    program = cluster.control.start("vcuda-controller", argv, env=env)
    waits = f"{name}-waits"
    try:
        cluster.create(pods.pod(name, resources=SHARE), user="alice")
        placed = until(
            "placed", lambda: NAMES.placement in (pods.get(client, name).metadata.annotations or {})
        )
        assert placed
        made = pods.get(client, name)
        assert made.spec.schedulingGates is None
        public = client.get(ConfigMap, "vcuda-placement-key", namespace=NAMESPACE).data["public.pem"]
        key = serialization.load_pem_public_key(public.encode())
        assert isinstance(key, Ed25519PublicKey)
        placement = decode(made.metadata.annotations[NAMES.placement], made.metadata.uid, key)
        assert placement.node == NODE
        assert [(share.uuid, share.cores, share.memory_bytes) for share in placement.containers["main"]] == [
            ("GPU-1", 30, 2**31)
        ]
        cluster.create(pods.pod(waits, resources={CORE: 100}), user="alice")
        until("told that it waits", lambda: pods.condition(pods.get(client, waits), NAMES.condition))
        program.stop()
        assert program.returncode == 0
        assert "forbidden" not in program.log().lower()
        assert "Traceback" not in program.log()
    finally:
        program.kill()
        pods.delete(client, waits)
        for secret in ("secret", "configmap"):
            cluster.kubectl("delete", secret, "vcuda-placement-key", f"--namespace={NAMESPACE}")
        agent.patch(Node, NODE, {"metadata": {"annotations": {NAMES.cards: None}}})
        none = dict.fromkeys(amounts)
        client.patch(Node.Status, NODE, {"status": {"capacity": none, "allocatable": none}})


def test_binding_writes_nothing_of_ours(installed: Installed, name: str) -> None:
    cluster = installed.cluster
    cluster.create(pods.pod(name, resources={"cpu": "10m"}, gates=[]), user="alice")
    client: Any = cluster.client()
    for field in ("annotations", "labels"):
        binding = Binding(
            metadata=ObjectMeta(name=name, **{field: {NAMES.placement: "x"}}),
            target=ObjectReference(kind="Node", name=NODE),
        )
        with refused("metadata: labels and annotations vcuda.dev/* cannot be given with a binding"):
            client.create(Pod.Binding.from_dict(binding.to_dict()), name)


def test_node_s_cards_are_written_by_its_own_agent_alone(installed: Installed) -> None:
    cluster = installed.cluster
    body = {"metadata": {"annotations": {NAMES.cards: "{}"}}}
    for user in ("alice", "admin", "node"):
        with refused("vcuda.dev/* of a node are written by its vcuda-node alone"):
            cluster.client(user).patch(Node, NODE, body)
    agent = cluster.client("vcuda-node")
    try:
        agent.patch(Node, NODE, body)
        assert agent.get(Node, NODE).metadata.annotations[NAMES.cards] == "{}"
        for other in ({"metadata": {"labels": {"a": "b"}}}, {"spec": {"unschedulable": True}}):
            with refused("vcuda-node writes annotations vcuda.dev/* of a node and nothing else"):
                agent.patch(Node, NODE, other)
        with refused("vcuda.dev/* of a node are written by its vcuda-node alone"):
            cluster.client("node").patch(Node, NODE, {"metadata": {"annotations": {NAMES.cards: None}}})
    finally:
        agent.patch(Node, NODE, {"metadata": {"annotations": {NAMES.cards: None}}})


def test_agent_of_another_node_is_refused(installed: Installed) -> None:
    cluster = installed.cluster
    cluster.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "other"}})
    try:
        with refused("a vcuda-node writes to the node that it runs on alone"):
            cluster.client("vcuda-node").patch(
                Node, "other", {"metadata": {"annotations": {NAMES.cards: "{}"}}}
            )
    finally:
        cluster.client().delete(Node, "other")


UNSEEN = {
    "shapes that are no pod's",
    "an ephemeral container with a share",
    "everything at once, in the order of the pod",
}
"""Cases of the unit tests of which the API server itself refuses the pods, before any webhook."""


def malformed() -> dict[str, dict[str, Any]]:
    """A hundred pods that cannot be, by what is wrong with them."""
    values = ["-1", "500m", "1.5", "", "x", "1e99", "0x10", "30%", "1Ki1", "99999999999", "1n", "1 1"]
    found: dict[str, dict[str, Any]] = {}
    for resource in (CORE, MEMORY, *ALIASES):
        for value in values:
            found[f"{resource}: {value!r}"] = {"resources": {resource: value}}
    for cores in (1, 99, 101, 150, 12345):
        found[f"{cores} cores without memory"] = {"resources": {CORE: cores}}
        found[f"{cores} of gpu-manager's cores"] = {"resources": {"tencent.com/vcuda-core": cores}}
    for count in (2, 8, 99999999):
        found[f"gpushare's share of {count} cards"] = {
            "resources": {"aliyun.com/gpu-mem": 8065, "aliyun.com/gpu-count": count}
        }
    for alias in ALIASES:
        found[f"{alias} beside vcuda's"] = {"resources": {alias: 1, MEMORY: 1}}
    for annotation, text in (
        (NAMES.cores_max, "0"),
        (NAMES.cores_max, "101"),
        (NAMES.cores_max, "29"),
        (NAMES.cores_max, ""),
        (NAMES.priority, "urgent"),
        (NAMES.policy, "random"),
        (NAMES.placement, "{}"),
        (NAMES.placement, ""),
    ):
        found[f"{annotation}: {text!r}"] = {"resources": SHARE, "annotations": {annotation: text}}
    found["a node of one's own"] = {"resources": SHARE, "nodeName": NODE}
    found["a label that should skip us"] = {"resources": SHARE, "labels": {NAMES.managed: "false"}}
    found["another scheduler, no memory"] = {"resources": {CORE: 30}, "schedulerName": "mine"}
    return found


def test_a_hundred_pods_that_cannot_be_are_refused_with_a_message(installed: Installed) -> None:
    cases = malformed()
    assert len(cases) >= 100
    reasons: dict[str, int] = {}
    for what, fields in cases.items():
        try:
            made = installed.dry_run(pods.pod("trial", **fields), user="alice")
        except ApiError as error:
            code, message = error.status.code, str(error)
        else:
            pytest.fail(f"{what}: was created as {made}")
        assert code in (400, 422), f"{what}: {code} {message}"
        ours = message.startswith('admission webhook "pods.vcuda.dev" denied the request: ')
        # What is no quantity at all, the API server itself does not read.
        assert ours or "quantities must match" in message or "unable to parse quantity" in message, (
            f"{what}: {message}"
        )
        reasons["ours" if ours else "the API server's"] = (
            reasons.get("ours" if ours else "the API server's", 0) + 1
        )
    assert reasons["ours"] >= 60
    assert installed.metric(PATCHED[0], "invalid") == 0
    assert installed.answers()


@pytest.mark.parametrize("case", [case for case in REFUSED if case not in UNSEEN])
def test_messages_reach_the_user_whole(installed: Installed, case: str) -> None:
    """The cases of the unit tests, where the API server gets as far as the webhook with them."""
    given, faults = REFUSED[case]
    manifest = json.loads(json.dumps(given))
    manifest.setdefault("metadata", {})["name"] = "trial"
    for container in manifest["spec"]["containers"]:
        container.update(image="busybox:test")
    with pytest.raises(ApiError) as error:
        installed.dry_run(manifest)
    text = str(error.value)
    if "quantities must match" in text or "unable to parse quantity" in text:
        return
    for fault in faults:
        assert fault.split(": ")[0] in text
    assert error.value.status.code == 422


def test_webhook_s_account_can_do_its_own_alone(installed: Installed) -> None:
    cluster = installed.cluster
    client = cluster.client("vcuda-admission")
    assert client.get(Secret, "vcuda-admission-certificate", namespace=NAMESPACE).data
    cluster.kubectl("create", "secret", "generic", "other", f"--namespace={NAMESPACE}")
    try:
        with refused("forbidden"):
            client.get(Secret, "other", namespace=NAMESPACE)
    finally:
        cluster.kubectl("delete", "secret", "other", f"--namespace={NAMESPACE}")
    for act in (lambda: list(client.list(Pod)), lambda: client.get(Node, NODE)):
        with refused("forbidden"):
            act()


def test_api_server_finds_no_fault_in_the_expressions(installed: Installed) -> None:
    def checked() -> list[Any] | None:
        found = [
            each
            for each in installed.cluster.client().list(ValidatingAdmissionPolicy)
            if each.metadata.name.startswith("vcuda-")
        ]
        if any(each.status is None or each.status.typeChecking is None for each in found):
            return None
        return found

    policies = until("policies: type checked", checked)
    assert len(policies) == 3
    for policy in policies:
        assert not policy.status.typeChecking.expressionWarnings, policy.metadata.name


def test_replicas_that_start_at_once_serve_with_one_authority(installed: Installed) -> None:
    """A second one, at another port; nothing sends it pods, but it keeps the same Secret."""
    client = installed.cluster.client()
    client.delete(Secret, "vcuda-admission-certificate", namespace=NAMESPACE)
    env = {
        "VCUDA_ADMISSION_HOST": installed.address,
        "VCUDA_ADMISSION_PORT": "18443",
        "VCUDA_ADMISSION_HEALTH_PORT": "18081",
        "VCUDA_ADMISSION_KUBECONFIG": str(installed.cluster.kubeconfig("vcuda-admission")),
    }
    installed.stop()
    second = installed.cluster.control.start(
        "second", [sys.executable, "-m", "admission", "webhook"], env=env
    )
    try:
        installed.start()
        until("second: serves", lambda: b"serving /mutate" in second.log().encode())
        data = client.get(Secret, "vcuda-admission-certificate", namespace=NAMESPACE).data
        (webhook,) = client.get(MutatingWebhookConfiguration, "vcuda-admission").webhooks
        assert webhook.clientConfig.caBundle == data["ca.crt"]
        assert len(x509.load_pem_x509_certificates(base64.b64decode(data["ca.crt"]))) == 1
    finally:
        second.stop()


def test_certificates_change_and_no_pod_is_refused(installed: Installed) -> None:
    """Lives of seconds: certificate and authority are replaced while pods are created all the time."""
    client = installed.cluster.client()

    def serial() -> tuple[str, str]:
        data = client.get(Secret, "vcuda-admission-certificate", namespace=NAMESPACE).data
        first = x509.load_pem_x509_certificates(base64.b64decode(data["ca.crt"]))[0]
        served = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
        return f"{first.serial_number:x}", f"{served.serial_number:x}"

    installed.stop()
    client.delete(Secret, "vcuda-admission-certificate", namespace=NAMESPACE)
    installed.start(certificate_life="PT18S", authority_life="PT54S", overlap="PT3S")
    try:
        authorities: set[str] = set()
        served: set[str] = set()
        created = 0
        while len(authorities) < 2 or len(served) < 4:
            authority, certificate = serial()
            authorities.add(authority)
            served.add(certificate)
            installed.dry_run(pods.pod("trial", resources=SHARE))
            created += 1
            time.sleep(0.1)
        assert created >= len(served)
        assert "serving with one that ends" in (installed.webhook.log() if installed.webhook else "")
    finally:
        installed.stop()
        client.delete(Secret, "vcuda-admission-certificate", namespace=NAMESPACE)
        installed.start()

"""The cluster itself: whether it is a Kubernetes on which the promises of vcuda can be tested."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightkube.core.exceptions import ApiError
from lightkube.resources.core_v1 import ConfigMap, Node, Pod

from tests.cluster.machine import NODE, Cluster, ClusterError, pods, until
from tests.cluster.machine.cluster import sweep
from tests.cluster.machine.programs import ROOT

PREFIX = "harness-"
RUNTIME = "/run/containerd/containerd.sock"


@pytest.fixture
def name(cluster: Cluster) -> Iterator[str]:
    """A pod's name of the test's own; the pod is removed afterwards."""
    chosen = f"{PREFIX}{uuid.uuid4().hex[:8]}"
    yield chosen
    pods.delete(cluster.client(), chosen)


def test_node_is_ready_and_all_servers_have_the_pinned_version(cluster: Cluster):
    node = cluster.client().get(Node, NODE)
    assert node.status.nodeInfo.kubeletVersion == "v1.34.4"
    assert '"gitVersion":"v1.34.4"' in cluster.kubectl("get", "--raw=/version").replace(" ", "").replace(
        "\n", ""
    )
    assert [each.address for each in node.status.addresses if each.type == "Hostname"] == [NODE]


def test_gated_pod_waits_until_its_gate_is_taken_off_then_runs_and_logs(cluster: Cluster, name: str):
    client = cluster.client()
    cluster.create(pods.pod(name, "echo", "hello from the pod", gates=["vcuda.dev/test"]))
    waiting = until("the gate's condition", lambda: pods.condition(pods.get(client, name), "PodScheduled"))
    assert (waiting.status, waiting.reason) == ("False", "SchedulingGated")
    assert pods.get(client, name).spec.nodeName is None
    client.patch(Pod, name, {"spec": {"schedulingGates": None}})
    pods.wait_phase(client, name, "Succeeded")
    assert pods.get(client, name).spec.nodeName == NODE
    assert pods.log(client, name) == "hello from the pod\n"


def test_kubelet_killed_and_started_again_leaves_the_container_running(cluster: Cluster, name: str):
    client = cluster.client()
    cluster.create(pods.pod(name, "sh", "-c", "echo started; exec sleep 3600"))
    before = pods.wait_phase(client, name, "Running").status.containerStatuses[0]
    process = _process_of(cluster, before.containerID)
    killed = cluster.servers["kubelet"].pid
    cluster.kill("kubelet")
    assert not Path(f"/proc/{killed}").exists()
    assert _process_of(cluster, before.containerID) == process
    cluster.start("kubelet")
    cluster.servers["kubelet"].wait_ready()
    cluster.wait_node_ready()
    # The kubelet gives logs of pods that it has taken up again, not before.
    until("the log, from the new kubelet", lambda: pods.log(client, name) == "started\n")
    after = pods.wait_phase(client, name, "Running").status.containerStatuses[0]
    assert (after.containerID, after.restartCount) == (before.containerID, 0)
    assert _process_of(cluster, before.containerID) == process


def test_containerd_killed_and_started_again_leaves_the_container_running(cluster: Cluster, name: str):
    client = cluster.client()
    cluster.create(pods.pod(name))
    before = pods.wait_phase(client, name, "Running").status.containerStatuses[0]
    process = _process_of(cluster, before.containerID)
    cluster.restart("containerd")
    assert _process_of(cluster, before.containerID) == process


@pytest.mark.parametrize("server", ["etcd", "apiserver", "controller-manager", "scheduler"])
def test_control_plane_goes_on_after_a_server_was_killed(cluster: Cluster, name: str, server: str):
    client = cluster.client()
    client.create(
        ConfigMap.from_dict({"metadata": {"name": name, "namespace": "default"}, "data": {"a": "b"}})
    )
    cluster.restart(server)
    cluster.servers["apiserver"].wait_ready()
    assert until("the map", lambda: client.get(ConfigMap, name, namespace="default").data) == {"a": "b"}
    client.delete(ConfigMap, name, namespace="default")
    until("a pod made", lambda: cluster.create(pods.pod(name, "true")))
    pods.wait_phase(client, name, "Succeeded")


def test_memory_limit_of_a_pod_is_the_kernels(cluster: Cluster, name: str):
    cluster.create(pods.pod(name, "sh", "-c", "tail /dev/zero", resources={"memory": "32Mi", "cpu": "100m"}))
    ended = pods.wait_phase(cluster.client(), name, "Failed").status.containerStatuses[0].state.terminated
    assert (ended.reason, ended.exitCode) in {("OOMKilled", 137), ("OOMKilled", 1)}


def test_preload_file_gets_into_dynamic_programs_of_a_made_image(cluster: Cluster, name: str, tmp_path: Path):
    library = _shared_library(
        tmp_path, 'void __attribute__((constructor)) hi(void) { write(2, "preloaded\\n", 10); }'
    )
    image = cluster.image(
        f"{name}:test", {"/lib/libhi.so": library, "/etc/ld.so.preload": b"/lib/libhi.so\n"}
    )
    cluster.create(pods.pod(name, "python3", "-c", "import json, ssl; print(json.dumps([1]))", image=image))
    pods.wait_phase(cluster.client(), name, "Succeeded")
    assert sorted(pods.log(cluster.client(), name).splitlines()) == ["[1]", "preloaded"]


def test_image_with_a_program_whose_library_is_missing_is_refused_by_name(cluster: Cluster, tmp_path: Path):
    library = _shared_library(tmp_path, "int answer(void) { return 42; }")
    source = tmp_path / "main.c"
    source.write_text("int answer(void); int main(void) { return answer(); }")
    subprocess.run(["gcc", source, library, "-o", tmp_path / "main"], check=True)
    library.unlink()
    with pytest.raises(ClusterError, match=r"main needs .*libmade\.so, which this machine lacks"):
        cluster.image("refused:test", {"/bin/main": tmp_path / "main"})


def test_tokens_name_users_groups_and_the_node_of_a_service_account(cluster: Cluster):
    def who(user: str) -> dict[str, object]:
        said = cluster.kubectl("auth", "whoami", "-o", "json", user=user)
        return json.loads(said)["status"]["userInfo"]

    assert who("alice")["username"] == "alice"
    assert "team-a" in who("alice")["groups"]
    cluster.add_user("account", cluster.account_token("default", node=NODE))
    account = who("account")
    assert account["username"] == "system:serviceaccount:default:default"
    assert account["extra"]["authentication.kubernetes.io/node-name"] == [NODE]
    with pytest.raises(ApiError, match="forbidden"):
        list(cluster.client("alice").list(Pod))


def test_node_may_change_its_own_node_object_and_no_others(cluster: Cluster):
    marks = {"metadata": {"annotations": {"harness": "here"}}}
    cluster.client("node").patch(Node, NODE, marks)
    assert cluster.client().get(Node, NODE).metadata.annotations["harness"] == "here"
    other = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-2"}}
    with pytest.raises(ApiError, match="is not allowed to modify node"):
        cluster.create(other, user="node")


def test_webhook_is_called_through_a_service_at_the_address_that_its_server_has(
    cluster: Cluster, name: str, tmp_path: Path
):
    certificate, key = cluster.identity.pair(name, names=[f"{name}.default.svc"])
    server = tmp_path / "server.py"
    server.write_text(_WEBHOOK)
    address = cluster.address(50)
    running = cluster.control.start(name, [sys.executable, server, address, certificate, key])
    webhook = _WEBHOOK_CONFIGURATION.format(
        name=name,
        address=address,
        authority=base64.b64encode(cluster.identity.authority.read_bytes()).decode(),
    )
    try:
        until("the server", lambda: "listens" in running.log())
        cluster.kubectl("apply", "-f", "-", stdin=webhook)
        until(
            "the webhook's mark on a pod",
            lambda: _dry_run(cluster, pods.pod(name)).metadata.annotations.get("seen-by") == "the webhook",
        )
        cluster.create(pods.pod(name))
        assert pods.get(cluster.client(), name).metadata.annotations["seen-by"] == "the webhook"
        running.kill()
        with pytest.raises(ApiError, match="failed calling webhook"):
            cluster.create(pods.pod(f"{name}-late"))
    finally:
        cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=webhook)
        running.kill()


def test_exec_reaches_a_running_container(cluster: Cluster, name: str):
    cluster.create(pods.pod(name))
    pods.wait_phase(cluster.client(), name, "Running")
    assert cluster.kubectl("exec", name, "--", "cat", "/proc/1/comm") == "sleep\n"


def test_containers_are_in_the_nodes_own_control_groups(cluster: Cluster, name: str):
    cluster.create(pods.pod(name, resources={"memory": "64Mi", "cpu": "100m"}))
    pod = pods.wait_phase(cluster.client(), name, "Running")
    container = pod.status.containerStatuses[0].containerID.removeprefix("containerd://")
    group = f"{cluster.directory.name}/kubepods/pod{pod.metadata.uid}/{container}"
    limit = Path("/sys/fs/cgroup/memory") / group / "memory.limit_in_bytes"
    assert int(limit.read_text()) == 64 * 2**20


def test_validating_admission_policy_is_in_force(cluster: Cluster, name: str):
    cluster.kubectl("apply", "-f", "-", stdin=_POLICY)
    try:
        until("the policy", lambda: _refused(cluster, pods.pod(name, labels={"refuse-me": "yes"})))
        cluster.create(pods.pod(name))
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=_POLICY)


def test_host_network_pod_reaches_the_api_at_its_in_cluster_address(cluster: Cluster, name: str):
    ask = (
        "import os, ssl, urllib.request as u;"
        "d = '/var/run/secrets/kubernetes.io/serviceaccount/';"
        "r = u.Request(f\"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/version\","
        "headers={'Authorization': 'Bearer ' + open(d + 'token').read()});"
        "print(u.urlopen(r, context=ssl.create_default_context(cafile=d + 'ca.crt')).status)"
    )
    cluster.create(pods.pod(name, "python3", "-c", ask, image="glibc:test", hostNetwork=True))
    pods.wait_phase(cluster.client(), name, "Succeeded")
    assert pods.log(cluster.client(), name) == "200\n"


def test_program_on_the_node_sees_the_nodes_paths_and_nothing_of_them_is_on_the_host(cluster: Cluster):
    listed = cluster.node.run(
        "ls", "/var/lib/kubelet/device-plugins", "/var/lib/kubelet/pod-resources"
    ).stdout
    assert "kubelet.sock" in listed
    assert not Path("/var/lib/kubelet").exists()
    agent = cluster.node.start("sleeper", ["sleep", "3600"])
    first = agent.pid
    agent.restart()
    assert agent.pid != first
    until("sleep", lambda: Path(f"/proc/{agent.pid}/comm").read_text() == "sleep\n")
    agent.stop()
    assert agent.returncode == -15


def test_reboot_ends_containers_and_agents_empties_run_and_changes_the_boot_id(cluster: Cluster, name: str):
    client = cluster.client()
    boot = client.get(Node, NODE).status.nodeInfo.bootID
    cluster.create(pods.pod(name, restartPolicy="Always"))
    first = pods.wait_phase(client, name, "Running").status.containerStatuses[0].containerID
    cluster.node.run("touch", "/run/of-this-boot")
    agent = cluster.node.start("until-reboot", ["sleep", "3600"])
    cluster.reboot()
    assert not agent.running
    assert cluster.node.run("ls", "/run/of-this-boot", check=False).returncode != 0
    until("another boot id", lambda: client.get(Node, NODE).status.nodeInfo.bootID != boot)

    def again() -> bool:
        status = pods.get(client, name).status.containerStatuses[0]
        return bool(status.state.running) and status.containerID != first and status.restartCount == 1

    until("the container, anew", again)


def test_server_that_cannot_start_is_named_with_the_end_of_its_log():
    with pytest.raises(ClusterError, match=r"apiserver: ended with 1\n(.*\n)*.*unknown flag: --no-such-flag"):
        Cluster(apiserver_flags=["--no-such-flag"]).__enter__()


def test_killed_owner_takes_everything_along():
    script = (
        "import time\nfrom tests.cluster.machine import Cluster\n"
        "c = Cluster().__enter__()\n"
        "pids = [c.control.first_pid, c.node.first_pid, *(each.pid for each in c.servers.values())]\n"
        "print(c.directory, *pids, flush=True)\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with owner:
        assert owner.stdout is not None
        directory, *pids = owner.stdout.readline().split()
        assert len(pids) == 8
        owner.kill()
        owner.wait()
    until("all gone", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    sweep()
    assert not Path(directory).exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{Path(directory).name}"))


def _process_of(cluster: Cluster, container: str) -> str:
    """The container's first process, as containerd has it; fails if it does not run."""
    listed = cluster.node.run("ctr", "--address", RUNTIME, "-n", "k8s.io", "tasks", "ls").stdout
    rows = [line.split() for line in listed.splitlines()]
    [(_, pid, status)] = [row for row in rows if row[0] == container.removeprefix("containerd://")]
    assert status == "RUNNING"
    return pid


def _shared_library(directory: Path, code: str) -> Path:
    source, library = directory / "made.c", directory / "libmade.so"
    source.write_text(f"#include <unistd.h>\n{code}\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def _refused(cluster: Cluster, pod: Pod) -> bool:
    try:
        cluster.create(pod)
    except ApiError as error:
        return "not welcome here" in str(error)
    with contextlib.suppress(ClusterError):
        pods.delete(cluster.client(), str(pod.metadata.name))
    return False


def _dry_run(cluster: Cluster, pod: Pod) -> Pod:
    manifest = {"apiVersion": "v1", "kind": "Pod", **pod.to_dict()}
    made = cluster.kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(manifest))
    return Pod.from_dict(json.loads(made))


_WEBHOOK = """
import base64, http.server, json, ssl, sys

class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        patch = [{"op": "add", "path": "/metadata/annotations", "value": {"seen-by": "the webhook"}}]
        answer = {"uid": review["request"]["uid"], "allowed": True, "patchType": "JSONPatch"}
        answer["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
        body = json.dumps({**review, "response": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

address, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer((address, 443), Hook)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("listens", flush=True)
server.serve_forever()
"""

_WEBHOOK_CONFIGURATION = """
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec: {{clusterIP: {address}, ports: [{{port: 443}}]}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: {name}}}
webhooks:
- name: {name}.vcuda.dev
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 5
  clientConfig: {{service: {{name: {name}, namespace: default, path: /}}, caBundle: {authority}}}
  rules: [{{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}}]
"""

_POLICY = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: harness}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  validations:
  - expression: "!has(object.metadata.labels) || !('refuse-me' in object.metadata.labels)"
    message: not welcome here
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: harness}
spec: {policyName: harness, validationActions: [Deny]}
"""

"""The control plane: command lines of etcd, API server, controller-manager, scheduler; when each is ready."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine.identity import Identity
from tests.cluster.machine.network import Network

_ETCD_PORT, _ETCD_PEER_PORT = 2379, 2380
_CONTROLLER_PORT, _SCHEDULER_PORT = 10257, 10259
_READY_S = 5
_ADMISSION = (
    "NodeRestriction",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """How a server is started, and a question that is true, or raises, depending on whether it is ready."""

    name: str
    argv: Sequence[str | Path]
    ready: Callable[[], object]


def etcd(programs: Path, network: Network, directory: Path) -> Server:
    client = f"http://{network.control}:{_ETCD_PORT}"
    peer = f"http://{network.control}:{_ETCD_PEER_PORT}"
    argv = [
        programs / "etcd",
        "--name=test",
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=test={peer}",
        "--unsafe-no-fsync",  # a test's cluster needs to outlive SIGKILL, not a power cut
        "--log-level=warn",
    ]
    return Server(name="etcd", argv=argv, ready=lambda: answers(f"{client}/health"))


def apiserver(programs: Path, network: Network, identity: Identity, *, more: Sequence[str] = ()) -> Server:
    certificate, key = identity.server
    client_certificate, client_key = identity.kubelet_client
    argv = [
        programs / "kube-apiserver",
        f"--etcd-servers=http://{network.control}:{_ETCD_PORT}",
        f"--bind-address={network.service}",
        f"--secure-port={network.PORT}",
        f"--advertise-address={network.host}",
        "--endpoint-reconciler-type=none",  # they cannot be loopback; the Service's address is ours
        f"--service-cluster-ip-range={network.range}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--client-ca-file={identity.authority}",
        f"--token-auth-file={identity.token_file}",
        "--anonymous-auth=false",
        "--authorization-mode=Node,RBAC",
        f"--enable-admission-plugins={','.join(_ADMISSION)}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={identity.account_public}",
        f"--service-account-signing-key-file={identity.account_key}",
        f"--kubelet-client-certificate={client_certificate}",
        f"--kubelet-client-key={client_key}",
        f"--kubelet-certificate-authority={identity.authority}",
        "--kubelet-preferred-address-types=Hostname",
        "--allow-privileged=true",
        "--profiling=false",
        *more,
    ]
    return Server(
        name="apiserver",
        argv=argv,
        ready=lambda: answers(
            f"{network.url}/readyz", authority=identity.authority, token=identity.tokens["admin"]
        ),
    )


def controller_manager(programs: Path, network: Network, identity: Identity) -> Server:
    kubeconfig = identity.kubeconfig("admin")
    argv = [
        programs / "kube-controller-manager",
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={network.control}",
        f"--secure-port={_CONTROLLER_PORT}",
        f"--service-account-private-key-file={identity.account_key}",
        f"--root-ca-file={identity.authority}",
        f"--cluster-signing-cert-file={identity.authority}",
        f"--cluster-signing-key-file={identity.authority_key}",
        f"--service-cluster-ip-range={network.range}",
        "--leader-elect=false",
        "--profiling=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]
    url = f"https://{network.control}:{_CONTROLLER_PORT}/healthz"
    return Server(name="controller-manager", argv=argv, ready=lambda: answers(url))


def scheduler(programs: Path, network: Network, identity: Identity, config: Path) -> Server:
    kubeconfig = identity.kubeconfig("scheduler")
    config.write_text(
        "apiVersion: kubescheduler.config.k8s.io/v1\n"
        "kind: KubeSchedulerConfiguration\n"
        "leaderElection: {leaderElect: false}\n"
        f"clientConnection: {{kubeconfig: {kubeconfig}, qps: 200, burst: 400}}\n"
    )
    argv = [
        programs / "kube-scheduler",
        f"--config={config}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--authentication-tolerate-lookup-failure=true",
        f"--bind-address={network.control}",
        f"--secure-port={_SCHEDULER_PORT}",
    ]
    url = f"https://{network.control}:{_SCHEDULER_PORT}/healthz"
    return Server(name="scheduler", argv=argv, ready=lambda: answers(url))


def answers(url: str, *, authority: Path | None = None, token: str = "") -> bool:
    """Whether the server says that all is well. Without `authority` its certificate is not looked at."""
    context = ssl.create_default_context(cafile=authority)
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    direct = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with direct.open(request, timeout=_READY_S) as answer:
        return answer.status == 200

"""The webhook's Secret and configuration through the client that it uses, against a server of a few lines."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from admission.cluster import KubernetesCluster
from admission.keeper import ClusterError
from admission.settings import WebhookSettings

pytestmark = pytest.mark.anyio

SECRETS = "/api/v1/namespaces/vcuda-system/secrets"
SECRET = f"{SECRETS}/vcuda-admission-certificate"
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/vcuda-admission"
DATA = {"tls.crt": "eA=="}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Server:
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        self.content_type = "application/json"

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.asked.append((request.method, request.path, body))
        status, content = self.answers.get((request.method, request.path), (404, {}))
        if status >= 400:
            content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, **content}
        # The API server says the type without a charset, and by that lightkube knows its errors.
        return web.Response(
            body=json.dumps(content), status=status, headers={"Content-Type": self.content_type}
        )


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def cluster(server: Server, tmp_path: Path) -> AsyncGenerator[KubernetesCluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [
                    {"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}
                ],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    cluster = KubernetesCluster(WebhookSettings(kubeconfig=kubeconfig))
    yield cluster
    await cluster.close()
    await runner.cleanup()


def secret(version: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "vcuda-admission-certificate", "resourceVersion": version},
        "data": DATA,
    }


async def test_secret_is_read_with_its_version(server: Server, cluster: KubernetesCluster) -> None:
    server.answers["GET", SECRET] = (200, secret("7"))
    assert await cluster.read() == (DATA, "7")


async def test_secret_that_is_not_there_is_none(cluster: KubernetesCluster) -> None:
    assert await cluster.read() is None


async def test_secret_is_made_where_there_is_none(server: Server, cluster: KubernetesCluster) -> None:
    server.answers["POST", SECRETS] = (201, secret("1"))
    assert await cluster.write(DATA, version=None)
    ((method, path, body),) = server.asked
    assert (method, path, body["data"], body["type"]) == ("POST", SECRETS, DATA, "Opaque")
    assert "resourceVersion" not in body["metadata"]


async def test_secret_is_replaced_on_condition_of_its_version(
    server: Server, cluster: KubernetesCluster
) -> None:
    server.answers["PUT", SECRET] = (200, secret("8"))
    assert await cluster.write(DATA, version="7")
    ((_, _, body),) = server.asked
    assert (body["metadata"]["resourceVersion"], body["data"]) == ("7", DATA)


@pytest.mark.parametrize(
    ("method", "path", "version", "status"),
    [("POST", SECRETS, None, 409), ("PUT", SECRET, "7", 409), ("PUT", SECRET, "7", 404)],
    ids=["made by another", "replaced by another", "deleted meanwhile"],
)
async def test_who_is_not_first_is_told(
    server: Server, cluster: KubernetesCluster, method: str, path: str, version: str | None, status: int
) -> None:
    server.answers[method, path] = (status, {"message": "no"})
    assert not await cluster.write(DATA, version=version)


def configuration(*bundles: bytes | None) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "vcuda-admission"},
        "webhooks": [
            {
                "name": f"w{index}.vcuda.dev",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "clientConfig": {
                    "url": "https://x",
                    **({"caBundle": base64.b64encode(bundle).decode()} if bundle else {}),
                },
            }
            for index, bundle in enumerate(bundles)
        ],
    }


async def test_bundle_is_published_where_it_is_not_yet(server: Server, cluster: KubernetesCluster) -> None:
    server.answers["GET", CONFIGURATION] = (200, configuration(b"new", None, b"old"))
    server.answers["PATCH", CONFIGURATION] = (200, configuration(b"new", b"new", b"new"))
    await cluster.publish(b"new")
    bundle = base64.b64encode(b"new").decode()
    assert server.asked[-1] == (
        "PATCH",
        CONFIGURATION,
        [
            {"op": "test", "path": "/webhooks/1/name", "value": "w1.vcuda.dev"},
            {"op": "add", "path": "/webhooks/1/clientConfig/caBundle", "value": bundle},
            {"op": "test", "path": "/webhooks/2/name", "value": "w2.vcuda.dev"},
            {"op": "add", "path": "/webhooks/2/clientConfig/caBundle", "value": bundle},
        ],
    )


async def test_bundle_that_is_there_is_not_written_again(server: Server, cluster: KubernetesCluster) -> None:
    server.answers["GET", CONFIGURATION] = (200, configuration(b"new"))
    await cluster.publish(b"new")
    assert [method for method, _, _ in server.asked] == ["GET"]


@pytest.mark.parametrize("status", [401, 403, 500, 503])
async def test_refusal_is_one_error_that_names_the_object(
    server: Server, cluster: KubernetesCluster, status: int
) -> None:
    for method, path in (("GET", SECRET), ("POST", SECRETS), ("PUT", SECRET), ("GET", CONFIGURATION)):
        server.answers[method, path] = (status, {"message": "not you"})
    with pytest.raises(ClusterError, match="cannot read Secret vcuda-admission-certificate: not you"):
        await cluster.read()
    for version in (None, "7"):
        with pytest.raises(ClusterError, match="cannot write Secret vcuda-admission-certificate: not you"):
            await cluster.write(DATA, version=version)
    with pytest.raises(ClusterError, match="of MutatingWebhookConfiguration vcuda-admission: not you"):
        await cluster.publish(b"new")


async def test_answer_of_what_stands_in_front_is_an_error_in_one_line(
    server: Server, cluster: KubernetesCluster
) -> None:
    server.content_type = "text/html"
    server.answers["GET", SECRET] = (503, {})
    with pytest.raises(ClusterError, match=r"^Kubernetes: cannot read Secret .*503 Service Unavailable.*'$"):
        await cluster.read()


async def test_server_that_is_away_is_an_error_alike(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
        "users: [{name: u, user: {token: t}}]\n"
    )
    cluster = KubernetesCluster(WebhookSettings(kubeconfig=kubeconfig))
    for act in (cluster.read(), cluster.write(DATA, version=None), cluster.publish(b"x")):
        with pytest.raises(ClusterError, match="Kubernetes: cannot "):
            await act
    await cluster.close()

"""The webhook on a socket: what it answers to whom, and that nobody holds it up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import ssl
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from admission import certificate as certificates
from admission.certificate import Chain, Plan
from admission.settings import SettingsError, WebhookSettings, read_settings
from admission.webhook import Webhook, serving
from tests import admission_support as pods
from tests.unit.test_admission_certificate import NOW, PLAN

pytestmark = pytest.mark.anyio

MEMORY = "vcuda.dev/vcuda-memory"
LIMIT = 64 * 1024
HEADERS = {"Content-Type": "application/json"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def new_chain() -> Chain:
    plan = Plan(
        names=("localhost", "127.0.0.1"), serving=PLAN.serving, authority=PLAN.authority, overlap=PLAN.overlap
    )
    return certificates.renewed(None, plan, NOW.now(NOW.tzinfo))


class Running:
    """A webhook, and clients of it."""

    def __init__(self, webhook: Webhook, directory: Path) -> None:
        self.webhook = webhook
        self.directory = directory
        self.chains: list[Chain] = []

    def install(self, chain: Chain) -> None:
        """Write a certificate into the files."""
        self.chains.append(chain)
        (self.directory / "tls.crt").write_bytes(chain.serving.certificate_pem)
        (self.directory / "tls.key").write_bytes(chain.serving.key_pem)

    def trusting(self, *chains: Chain) -> ssl.SSLContext:
        return ssl.create_default_context(cadata="".join(chain.bundle.decode() for chain in chains))

    def session(self, *chains: Chain) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self.trusting(*(chains or self.chains)))
        return aiohttp.ClientSession(f"https://127.0.0.1:{self.webhook.port}", connector=connector)

    async def post(self, body: bytes, path: str = "/mutate", **kwargs: Any) -> tuple[int, str]:
        async with (
            self.session() as session,
            session.post(path, data=io.BytesIO(body), **{"headers": HEADERS, **kwargs}) as got,
        ):
            return got.status, await got.text()

    async def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.webhook.health_port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as got:
            return got.status, await got.text()

    async def metric(self, name: str, **labels: str) -> float:
        families = text_string_to_metric_families((await self.get("/metrics"))[1])
        found = [
            each.value
            for family in families
            for each in family.samples
            if (each.name, each.labels) == (name, labels)
        ]
        assert len(found) == 1, f"{name}{labels} is there {len(found)} times"
        return found[0]

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection that a test writes to by itself."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.webhook.port, ssl=self.trusting(*self.chains), server_hostname="localhost"
        )
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@contextlib.asynccontextmanager
async def webhook_of(directory: Path, **settings: Any) -> AsyncGenerator[Running]:
    chain = new_chain()
    (directory / "tls.crt").write_bytes(chain.serving.certificate_pem)
    (directory / "tls.key").write_bytes(chain.serving.key_pem)
    fields = {
        "host": "127.0.0.1",
        "port": 0,
        "health_port": 0,
        "certificate_file": directory / "tls.crt",
        "key_file": directory / "tls.key",
        "body_limit": LIMIT,
        "drain_s": 0,
    }
    async with serving(WebhookSettings(**{**fields, **settings})) as webhook:
        running = Running(webhook, directory)
        running.chains.append(chain)
        yield running


@pytest.fixture
async def running(tmp_path: Path) -> AsyncGenerator[Running]:
    async with webhook_of(tmp_path) as webhook:
        yield webhook


async def test_reviews_are_answered_and_counted(running: Running) -> None:
    status, text = await running.post(pods.review(pods.pod({"aliyun.com/gpu-mem": "8065"})))
    response = json.loads(text)["response"]
    assert (status, response["allowed"], response["patchType"]) == (200, True, "JSONPatch")
    status, text = await running.post(pods.review(pods.pod({"cpu": "1"})))
    assert (status, json.loads(text)["response"]) == (200, {"uid": "uid-1", "allowed": True})
    status, text = await running.post(pods.review(pods.pod({MEMORY: "-1"})))
    assert (status, json.loads(text)["response"]["allowed"]) == (200, False)
    assert (await running.post(b"{"))[0] == 400
    for verdict in ("patched", "untouched", "refused", "invalid"):
        assert await running.metric("vcuda_admission_reviews_total", verdict=verdict) == 1
    assert await running.metric("vcuda_admission_aliases_total", resource="aliyun.com/gpu-mem") == 1
    assert await running.metric("vcuda_admission_review_seconds_count") == 3
    assert await running.metric("vcuda_admission_certificate_loads_total") == 1


@pytest.mark.parametrize(
    ("body", "path", "headers", "status", "text"),
    [
        (b"{}", "/mutate", HEADERS, 400, "vcuda-admission: apiVersion: Field required"),
        (b"\xff", "/mutate", HEADERS, 400, "vcuda-admission: body: Invalid JSON"),
        (b"x" * (LIMIT + 1), "/mutate", HEADERS, 413, f"vcuda-admission: body: larger than {LIMIT} bytes"),
        (
            b"{}",
            "/mutate",
            {"Content-Type": "text/plain"},
            415,
            "vcuda-admission: Content-Type: text/plain: must be",
        ),
        (b"{}", "/elsewhere", HEADERS, 404, "404"),
    ],
    ids=["no review", "no text", "too large", "another type", "another path"],
)
async def test_what_is_no_review_gets_a_4xx_with_a_line(
    running: Running, body: bytes, path: str, headers: dict[str, str], status: int, text: str
) -> None:
    found, message = await running.post(body, path, headers=headers)
    assert found == status
    assert message.startswith(text)
    assert message.rstrip("\n").count("\n") == 0


async def test_largest_pod_is_answered_whole_and_small_ones_beside_it(tmp_path: Path) -> None:
    """What the API server can send at most: 20,000 containers, each with something to be replaced."""
    large = pods.review(pods.pod(*[{"aliyun.com/gpu-mem": "8065"}] * 20_000))
    small = pods.review(pods.pod({MEMORY: "8"}))
    async with webhook_of(tmp_path, body_limit=3 * 2**20) as running:
        answers = await asyncio.gather(running.post(large), *(running.post(small) for _ in range(8)))
    assert [status for status, _ in answers] == [200] * 9
    response = json.loads(answers[0][1])["response"]
    patch = json.loads(base64.b64decode(response["patch"]))
    assert len(patch) == 3 + 3 * 20_000
    assert response["allowed"]


async def test_only_post_is_answered(running: Running) -> None:
    async with running.session() as session, session.get("/mutate") as got:
        assert got.status == 405


async def test_body_that_grows_too_large_in_chunks_is_refused(running: Running) -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        for _ in range(LIMIT // 1024 + 2):
            yield b" " * 1024

    async with running.session() as session:
        try:
            async with session.post("/mutate", data=chunks(), headers=HEADERS) as got:
                assert got.status == 413
        except aiohttp.ClientOSError:
            pass  # it was refused, and the connection closed, before all was sent
    assert await running.metric("vcuda_admission_reviews_total", verdict="invalid") == 1


@pytest.mark.parametrize(
    "beginning",
    [b"", b"POST /mut", b"POST /mutate HTTP/1.1\r\nHost: x\r\n"],
    ids=["nothing", "half a line", "half of the headers"],
)
async def test_connection_that_never_asks_is_closed(tmp_path: Path, beginning: bytes) -> None:
    async with webhook_of(tmp_path, read_timeout_s=0.3) as running, running.connection() as (reader, writer):
        writer.write(beginning)
        assert await asyncio.wait_for(reader.read(), 60) == b""


async def test_body_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    async with webhook_of(tmp_path, read_timeout_s=0.3) as running, running.connection() as (reader, writer):
        headers = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
        writer.write(b"POST /mutate HTTP/1.1\r\n" + headers + b"\r\n{")
        answer = await asyncio.wait_for(reader.read(), 60)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert answer.endswith(b"vcuda-admission: body: did not come within 0.3 s\n")


async def test_connection_without_tls_is_closed(tmp_path: Path) -> None:
    async with webhook_of(tmp_path, read_timeout_s=0.3) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.webhook.port)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_others_are_answered_while_many_say_nothing(running: Running) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(50):
            await stack.enter_async_context(running.connection())
        assert (await running.post(pods.review(pods.pod({MEMORY: "8"}))))[0] == 200


async def test_certificate_is_replaced_while_connections_go_on(running: Running) -> None:
    old, new = running.chains[0], new_chain()
    body = pods.review(pods.pod({MEMORY: "8"}))

    async def asked(session: aiohttp.ClientSession) -> int:
        async with session.post("/mutate", data=body, headers=HEADERS) as got:
            await got.read()
            return got.status

    async with running.session(old) as before:
        assert await asked(before) == 200
        running.install(new)
        while running.webhook.serving.loads < 2:
            await asyncio.sleep(0.05)
        assert await asked(before) == 200, "the connection from before goes on"
        async with running.session(new) as after:
            assert await asked(after) == 200
        async with running.session(old) as late:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await asked(late)
        assert await asked(before) == 200
    assert await running.metric("vcuda_admission_reviews_total", verdict="patched") == 4
    assert await running.metric("vcuda_admission_certificate_loads_total") == 2


async def test_readiness_ends_with_the_drain_and_answers_go_on(running: Running) -> None:
    assert await running.get("/healthz") == (200, "ok\n")
    assert await running.get("/readyz") == (200, "ok\n")
    await running.webhook.drain()
    assert await running.get("/readyz") == (503, "shutting down\n")
    async with (
        running.session() as session,
        session.post("/mutate", data=pods.review(pods.pod({MEMORY: "8"})), headers=HEADERS) as got,
    ):
        assert (got.status, got.headers["Connection"]) == (200, "close")


async def test_expired_certificate_is_not_ready(running: Running) -> None:
    running.webhook.serving.expires_s = 1.0
    assert await running.get("/readyz") == (503, "the certificate has expired\n")
    assert await running.metric("vcuda_admission_certificate_expiry_timestamp_seconds") == 1.0


def test_settings_come_from_flags_before_environment_before_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nhealth_port: 1\nmemory_unit: 1GiB\naliyun_unit: GiB\ncertificate_life: P1D\n")
    monkeypatch.setenv("VCUDA_ADMISSION_PORT", "2")
    monkeypatch.setenv("VCUDA_ADMISSION_HEALTH_PORT", "2")
    monkeypatch.setenv("VCUDA_ADMISSION_NAMES", '["10.0.0.1"]')
    settings = read_settings(file, port=3, host=None)
    assert (settings.port, settings.health_port, settings.host) == (3, 2, "")
    assert (settings.rules.memory_unit_bytes, settings.rules.aliyun_unit_bytes) == (2**30, 2**30)
    assert settings.plan.names == ("vcuda-admission.vcuda-system.svc", "10.0.0.1")
    assert settings.plan.serving.total_seconds() == 86400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 70000", "settings: port: Input should be less than or equal to 65535"),
        ("ports: 1", "settings: ports: Extra inputs are not permitted"),
        ("memory_unit: 1.5", "settings: memory_unit: Input should be a valid integer"),
        ("memory_unit: 4XB", "settings: memory_unit: '4XB' is not a size; write it as 4GiB, 512MiB or 1.5g"),
        ("domain: UPPER", "settings: domain: String should match pattern"),
        ("key_file: x", "settings: together: certificate_file and key_file: one without the other"),
        ("overlap: P20D", "settings: together: certificate: an overlap of 20 days"),
        ("- a list", "settings: "),
        ("{", "settings: "),
    ],
    ids=str,
)
def test_setting_that_cannot_be_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_settings(file)
    assert str(error.value).startswith(message)


def test_file_of_settings_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        read_settings(tmp_path / "none.yaml")

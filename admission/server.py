"""The webhook's two HTTP servers: /mutate over TLS; /healthz, /readyz and /metrics beside it, without.

/mutate answers 200 with an AdmissionReview, or 4xx with a line of text to what is none. Nobody can hold it
up: a handshake, a request's headers and its body each have a time, and a body a size.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from admission.aliases import Rules
from admission.metrics import WebhookMetrics
from admission.review import ReviewError, Verdict, answer
from admission.tls import ServingContext

_LOG = logging.getLogger(__name__)
_IDLE_S = 300.0
"""For a connection between requests: longer than API servers keep one, so that these close it, never we."""
_LINGER_S = 2.0
_BACKLOG = 1024
_LARGE_BYTES = 128 * 1024
"""A pod has some 10 KiB; this is answered within some 10 ms."""


class _Connections:
    """Makes handlers of connections, and ends those whose first request does not come in time."""

    def __init__(self, server: web.Server, *, timeout_s: float) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self._silent: dict[int, web.RequestHandler] = {}

    def __call__(self) -> web.RequestHandler:
        """A handler for a new connection."""
        handler = self._server()
        self._silent[id(handler)] = handler
        asyncio.get_running_loop().call_later(self._timeout_s, self._end, id(handler))
        return handler

    def spoke(self, handler: object) -> None:
        """A whole request's headers came from a connection."""
        self._silent.pop(id(handler), None)

    def _end(self, key: int) -> None:
        handler = self._silent.pop(key, None)
        if handler is not None:
            handler.force_close()


class MutateServer:
    """/mutate over TLS."""

    def __init__(
        self,
        *,
        rules: Rules,
        serving: ServingContext | None,
        metrics: WebhookMetrics,
        body_limit: int,
        read_timeout_s: float,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """serving: None for a server without TLS, behind one that has it."""
        self._rules = rules
        self._serving = serving
        self._metrics = metrics
        self._body_limit = body_limit
        self._read_timeout_s = read_timeout_s
        self._clock_ns = clock_ns
        self._draining = False
        self._server: asyncio.Server | None = None
        self._connections: _Connections | None = None
        app = web.Application(client_max_size=body_limit)
        app.router.add_post("/mutate", self._mutate)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=_IDLE_S,
            lingering_time=_LINGER_S,
            auto_decompress=False,  # a small body stays small
            shutdown_timeout=read_timeout_s,
        )

    async def start(self, host: str, port: int) -> int:
        """Serve; the port."""
        await self._runner.setup()
        server = self._runner.server
        assert server is not None
        self._connections = _Connections(server, timeout_s=self._read_timeout_s)
        tls: dict[str, Any] = {}
        if self._serving is not None:
            tls = {
                "ssl": self._serving.context,
                "ssl_handshake_timeout": self._read_timeout_s,
                "ssl_shutdown_timeout": self._read_timeout_s,
            }
        self._server = await asyncio.get_running_loop().create_server(
            self._connections,
            host or None,
            port,
            backlog=_BACKLOG,
            **tls,
        )
        return int(self._server.sockets[0].getsockname()[1])

    def drain(self) -> None:
        """Ask those who still send requests to go elsewhere."""
        self._draining = True

    async def stop(self) -> None:
        """Take no more connections, end what is being answered, close."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()

    async def _mutate(self, request: web.Request) -> web.Response:
        if self._connections is not None:
            self._connections.spoke(request.protocol)
        response = await self._answered(request)
        if self._draining:
            response.force_close()
        return response

    async def _answered(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return self._invalid(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type: {request.content_type[:64]}: must be application/json",
            )
        too_large = f"body: larger than {self._body_limit} bytes"
        if request.content_length is not None and request.content_length > self._body_limit:
            return self._invalid(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
        try:
            async with asyncio.timeout(self._read_timeout_s):
                body = await request.read()
        except TimeoutError:
            return self._invalid(
                HTTPStatus.REQUEST_TIMEOUT, f"body: did not come within {self._read_timeout_s} s"
            )
        except web.HTTPRequestEntityTooLarge:
            return self._invalid(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large)
        except web.RequestPayloadError as error:
            return self._invalid(HTTPStatus.BAD_REQUEST, f"body: {error}")
        began = time.perf_counter()
        try:
            # One that takes longer than a moment must not keep others waiting.
            answering = partial(answer, body, rules=self._rules, now_ns=self._clock_ns())
            done = answering() if len(body) <= _LARGE_BYTES else await asyncio.to_thread(answering)
        except ReviewError as error:
            return self._invalid(HTTPStatus.BAD_REQUEST, str(error))
        self._metrics.answered(done, time.perf_counter() - began)
        if done.verdict is Verdict.REFUSED:
            _LOG.info("refused pod %s: %s", done.pod, done.message)
        return web.Response(body=done.body, content_type="application/json")

    def _invalid(self, status: HTTPStatus, message: str) -> web.Response:
        self._metrics.invalid()
        _LOG.info("refused a request: %d: %s", status, message)
        response = web.Response(status=status, text=f"vcuda-admission: {message}\n")
        if status is not HTTPStatus.BAD_REQUEST:
            response.force_close()  # the rest of the body is not waited for
        return response


class HealthServer:
    """/healthz, /readyz and /metrics, without TLS: for the kubelet and Prometheus."""

    def __init__(self, *, metrics: WebhookMetrics, ready: Callable[[], str | None]) -> None:
        """ready: why the webhook is not ready; None: it is."""
        self._metrics = metrics
        self._ready = ready
        app = web.Application()
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/readyz", self._readiness)
        app.router.add_get("/metrics", self._exposition)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> int:
        """Serve; the port."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, host or None, port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Close."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.Request) -> web.Response:
        why = self._ready()
        if why is None:
            return web.Response(text="ok\n")
        return web.Response(status=HTTPStatus.SERVICE_UNAVAILABLE, text=f"{why}\n")

    async def _exposition(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

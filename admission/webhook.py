"""`vcuda-admission webhook`: certificate, servers, and their end, put together."""

import asyncio
import contextlib
import datetime as dt
import logging
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from admission.cluster import KubernetesCluster
from admission.keeper import FileKeeper, Keeper
from admission.metrics import WebhookMetrics
from admission.server import HealthServer, MutateServer
from admission.settings import WebhookSettings
from admission.tls import ServingContext

_LOG = logging.getLogger(__name__)
_FILES_S = 2.0
"""Between two looks at certificate files."""


@dataclass
class Webhook:
    """A webhook that serves."""

    port: int
    health_port: int
    serving: ServingContext
    drain: Callable[[], Awaitable[None]]
    """Not ready any more; answers for as long as others may not know."""


@contextlib.asynccontextmanager
async def serving(settings: WebhookSettings) -> AsyncGenerator[Webhook]:
    """Serve within the context, which is entered when /mutate can be asked: when there is a certificate.

    Raises:
        ClusterError: nothing says where the API server is.
        OSError: a port cannot be had.

    """
    context = ServingContext()
    metrics = WebhookMetrics(context)
    draining = False

    def not_ready() -> str | None:
        if draining:
            return "shutting down"
        if context.expires_s is None:
            return "no certificate yet"
        return "the certificate has expired" if context.expires_s <= time.time() else None

    async def drain() -> None:
        nonlocal draining
        draining = True
        mutate.drain()
        await asyncio.sleep(settings.drain_s)

    mutate = MutateServer(
        rules=settings.rules,
        serving=context,
        metrics=metrics,
        body_limit=settings.body_limit,
        read_timeout_s=settings.read_timeout_s,
    )
    async with contextlib.AsyncExitStack() as stack:
        health = HealthServer(metrics=metrics, ready=not_ready)
        stack.push_async_callback(health.stop)
        health_port = await health.start(settings.host, settings.health_port)
        keeping = asyncio.create_task(_keeper(settings, context, stack).keep())
        stack.push_async_callback(_cancelled, keeping)
        while context.expires_s is None:
            await asyncio.wait([keeping], timeout=0.05)
            if keeping.done():
                keeping.result()
        stack.push_async_callback(mutate.stop)
        port = await mutate.start(settings.host, settings.port)
        _LOG.info("serving /mutate on port %d, /readyz and /metrics on port %d", port, health_port)
        yield Webhook(port=port, health_port=health_port, serving=context, drain=drain)


async def run(settings: WebhookSettings) -> None:
    """Serve until SIGTERM or SIGINT; then drain, and end.

    Raises:
        ClusterError: nothing says where the API server is.
        OSError: a port cannot be had.

    """
    ended = asyncio.Event()
    starting = asyncio.current_task()

    def end() -> None:
        ended.set()
        if starting is not None:
            starting.cancel()  # it waits for its first certificate

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        async with serving(settings) as webhook:
            starting = None
            await ended.wait()
            _LOG.info("draining for %g s", settings.drain_s)
            await webhook.drain()
    except asyncio.CancelledError:
        if starting is None or not ended.is_set():
            raise


def _keeper(
    settings: WebhookSettings, context: ServingContext, stack: contextlib.AsyncExitStack
) -> Keeper | FileKeeper:
    if settings.certificate_file is not None and settings.key_file is not None:
        return FileKeeper(
            certificate=settings.certificate_file,
            key=settings.key_file,
            serving=context,
            interval_s=_FILES_S,
        )
    cluster = KubernetesCluster(settings)
    stack.push_async_callback(cluster.close)
    return Keeper(cluster, plan=settings.plan, serving=context, clock=lambda: dt.datetime.now(dt.UTC))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

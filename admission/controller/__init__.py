"""The controller of queue and placement: `run`, with `ControllerSettings`.

Of any number of replicas one leads (lease.py). It lists and watches pods and nodes (watch.py, state.py),
decides who goes where (admission.placing), writes that (placer.py), and tells those who wait (tell.py). It
keeps nothing that is not in the API: another one that takes over reads pods and nodes, and goes on.
"""

import asyncio
import contextlib
import logging

from prometheus_client import start_http_server

from admission.controller.backoff import BackOff
from admission.controller.keys import KeyUnusableError, signing_key
from admission.controller.lease import Lease, LeaseLostError
from admission.controller.metrics import ControllerMetrics
from admission.controller.placer import Placer
from admission.controller.settings import ControllerSettings
from admission.controller.state import NodeSink, PodSink, State
from admission.controller.tell import Teller
from admission.controller.unbound import Unbound
from admission.controller.watch import Sink, follow
from vcuda.apiserver import Api, ApiError, path_of

__all__ = ["ControllerMetrics", "ControllerSettings", "run"]

_LOG = logging.getLogger(__name__)
_LISTED_S = 0.02


async def run(settings: ControllerSettings, *, metrics: ControllerMetrics | None = None) -> None:
    """Lead when it is this replica's turn, and place; until cancelled, then the lease is given back.

    Raises:
        VcudaError: it is not said where the API server is.

    """
    metrics = metrics or ControllerMetrics()
    api = Api(kubeconfig=settings.kubeconfig, timeout_s=settings.request_s)
    serving = None
    if settings.metrics_port:
        address = settings.metrics_host or "0.0.0.0"  # noqa: S104 (to be scraped)
        serving, _ = start_http_server(settings.metrics_port, address, registry=metrics.registry)
    lease = Lease(api, settings)
    try:
        while True:
            await lease.acquire()
            metrics.leads(now=True)
            try:
                await _lead(api, lease, settings=settings, metrics=metrics)
            except* LeaseLostError:
                _LOG.warning("lease %s: not renewed in time; others may lead", settings.lease)
            finally:
                metrics.leads(now=False)
    finally:
        # Cancelled once; one request more, so that the next leader need not wait for the lease's end.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lease.release(), settings.retry_s)
        if serving is not None:
            serving.shutdown()
            serving.server_close()
        await api.close()


async def _lead(api: Api, lease: Lease, *, settings: ControllerSettings, metrics: ControllerMetrics) -> None:
    """Place, from a fresh view of everything.

    Raises:
        ExceptionGroup: of LeaseLostError: the lease was not renewed in time.

    """
    async with asyncio.TaskGroup() as group:
        group.create_task(lease.keep())
        back_off = BackOff(settings.back_off_s)
        while True:
            lease.check()
            try:
                key = await signing_key(api, namespace=settings.namespace, name=settings.key)
                break
            except (ApiError, KeyUnusableError) as error:
                _LOG.error("nothing is placed: %s", error)
                await back_off.pause()
        state = State(names=settings.names, key=key.public_key(), policy=settings.policy)
        pods, nodes = PodSink(state), NodeSink(state)

        def watch(path: str, sink: Sink, **params: str) -> None:
            watching = follow(
                api, path, sink, watch_s=settings.watch_s, back_off_s=settings.back_off_s, **params
            )
            group.create_task(watching)

        watch(path_of("nodes"), nodes)
        watch(path_of("pods"), pods, labelSelector=f"{settings.names.managed}=true")
        while not (pods.listed and nodes.listed):
            await asyncio.sleep(_LISTED_S)
        teller = Teller(api, state, lease, settings=settings, metrics=metrics)
        placer = Placer(api, state, lease, key=key, settings=settings, metrics=metrics, looked=teller.looked)
        group.create_task(placer.run())
        group.create_task(teller.run())
        group.create_task(Unbound(api, state, lease, settings=settings).run())

"""What Prometheus is told: of each container's shares, of each card, and of the agent itself.

docs/reference/metrics.md lists all of it; a test compares the two. Values are read when they are asked for,
from ledgers and NVML; so counters of a container go on when it, or the agent, is started again.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from deviceplugin.inventory import Use
from deviceplugin.server import Counts
from deviceplugin.shares import Reading
from vcuda.errors import VcudaError
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placing import CardRoom

_LOG = logging.getLogger(__name__)
CONTAINER = ("namespace", "pod", "container", "card", "node")
CARD = ("card", "index", "model", "node")
_NS = 1e9


@dataclass(frozen=True, kw_only=True)
class CardState:
    """A card, what is granted of it, and how it is used."""

    room: CardRoom
    use: Use | None
    outside: Sequence[tuple[int, int]] = ()

    @property
    def card(self) -> NodeCard:
        """The card."""
        return self.room.card


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where values come from."""

    node: str
    shares: Callable[[], Iterable[Reading]]
    cards: Callable[[], Sequence[CardState]]
    counts: Callable[[], Sequence[Counts]]
    state: Callable[[], Mapping[str, bool]]
    """registered, synced, contested."""


class NodeCollector(Collector):
    """All metrics of a node."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources

    def describe(self) -> list[Metric]:
        """Nothing is asked for when this is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read all of it now."""
        yield from _of_containers(list(self._from.shares()), self._from.node)
        yield from _of_cards(self._from.cards(), self._from.node)
        yield from _of_agent(self._from)


def _of_containers(readings: Sequence[Reading], node: str) -> Iterator[Metric]:
    gauges: list[tuple[str, str, Callable[[Reading], float]]] = [
        (
            "vcuda_container_memory_used_bytes",
            "Memory of a card that a container's processes hold",
            lambda each: each.memory_used_bytes,
        ),
        (
            "vcuda_container_memory_limit_bytes",
            "Memory of a card that a container may hold",
            lambda each: each.memory_limit_bytes,
        ),
        (
            "vcuda_container_core_share_ratio",
            "Part of a card's time that is guaranteed to a container",
            lambda each: each.core_share,
        ),
    ]
    counters: list[tuple[str, str, Callable[[Reading], float]]] = [
        (
            "vcuda_container_core_seconds",
            "Time for which a container's kernels had a card",
            lambda each: each.core_ns / _NS,
        ),
        (
            "vcuda_container_core_wait_seconds",
            "Time for which a container's launches waited for their share",
            lambda each: each.wait_ns / _NS,
        ),
        (
            "vcuda_container_allocations_refused",
            "Allocations that a container's limit refused",
            lambda each: each.refused,
        ),
    ]
    for name, text, value in gauges:
        yield _filled(GaugeMetricFamily(name, text, labels=CONTAINER), readings, node, value)
    for name, text, value in counters:
        yield _filled(CounterMetricFamily(name, text, labels=CONTAINER), readings, node, value)


def _filled(
    family: GaugeMetricFamily | CounterMetricFamily,
    readings: Sequence[Reading],
    node: str,
    value: Callable[[Reading], float],
) -> Metric:
    for each in readings:
        owner = each.owner
        family.add_metric([owner.namespace, owner.pod, owner.container, each.uuid, node], value(each))
    return family


def _of_cards(cards: Sequence[CardState], node: str) -> Iterator[Metric]:
    values: list[tuple[str, str, Callable[[CardState], float | None]]] = [
        (
            "vcuda_card_capacity_bytes",
            "Memory of a card that can be granted",
            lambda each: each.card.memory_bytes,
        ),
        (
            "vcuda_card_granted_bytes",
            "Memory of a card that is granted, or booked for a pod that was placed",
            lambda each: each.card.memory_bytes if each.room.whole else each.room.taken_bytes,
        ),
        (
            "vcuda_card_free_bytes",
            "Memory of a card that can still be granted",
            lambda each: max(0, each.room.free_bytes),
        ),
        (
            "vcuda_card_used_bytes",
            "Memory of a card that is in use by the driver's own count, by anybody",
            lambda each: None if each.use is None else each.use.used_bytes,
        ),
        (
            "vcuda_card_granted_core_ratio",
            "Part of a card's time that is granted, or booked for a pod that was placed",
            lambda each: 1.0 if each.room.whole else each.room.taken_cores / 100,
        ),
        (
            "vcuda_card_utilization_ratio",
            "Part of the time in which a kernel ran on a card, by the driver's own count",
            lambda each: None if each.use is None else each.use.utilisation,
        ),
        (
            "vcuda_card_shares",
            "Shares of a card that are granted or booked",
            lambda each: each.room.shares,
        ),
        ("vcuda_card_healthy", "1 where a card is well", lambda each: float(each.card.healthy)),
        (
            "vcuda_card_outside_processes",
            "Processes that use a card outside any share",
            lambda each: len(each.outside),
        ),
        (
            "vcuda_card_outside_bytes",
            "Memory that processes outside any share hold of a card",
            lambda each: sum(size for _, size in each.outside),
        ),
    ]
    for name, text, value in values:
        family = GaugeMetricFamily(name, text, labels=CARD)
        for each in cards:
            found = value(each)
            if found is not None:
                family.add_metric([each.card.uuid, str(each.card.index), each.card.model, node], found)
        yield family


def _of_agent(sources: Sources) -> Iterator[Metric]:
    calls = CounterMetricFamily(
        "vcuda_node_calls", "Calls of the kubelet", labels=("resource", "call", "outcome", "node")
    )
    spent = CounterMetricFamily(
        "vcuda_node_call_seconds", "Time spent on calls of the kubelet", labels=("resource", "call", "node")
    )
    for counts in sources.counts():
        for (resource, call, outcome), count in dict(counts.answered).items():
            calls.add_metric([str(resource), call, outcome, sources.node], count)
        for (resource, call), seconds in dict(counts.seconds).items():
            spent.add_metric([str(resource), call, sources.node], seconds)
    yield calls
    yield spent
    texts = {
        "registered": ("vcuda_node_registered", "1 where the kubelet has both resources from this agent"),
        "synced": ("vcuda_node_synced", "1 where the pods of the node have been read"),
        "contested": ("vcuda_node_contested", "1 where another plugin offers one of our resources"),
    }
    state = sources.state()
    for key, (name, text) in texts.items():
        family = GaugeMetricFamily(name, text, labels=("node",))
        family.add_metric([sources.node], float(state[key]))
        yield family


class MetricsError(VcudaError):
    """The metrics cannot be served."""


@dataclass
class MetricsServer:
    """/metrics, /healthz and /readyz over HTTP, in threads."""

    address: tuple[str, int]
    _sources: Sources | None = None
    _alive: Callable[[], bool] = lambda: True
    _server: ThreadingHTTPServer | None = None
    _registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def start(self) -> int:
        """Listen; the port.

        Raises:
            MetricsError: the address cannot be had.

        """
        registry, state = self._registry, self._state

        class Handler(BaseHTTPRequestHandler):
            server_version = "vcuda-node"

            def do_GET(self) -> None:
                if self.path.partition("?")[0] == "/metrics":
                    self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                elif self.path in ("/healthz", "/readyz"):
                    well, now = state(self.path)
                    self._send(200 if well else 503, "application/json", json.dumps(now).encode())
                else:
                    self._send(404, "text/plain", b"there is /metrics, /healthz and /readyz\n")

            def _send(self, status: int, kind: str, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                _LOG.debug(format, *args)

        try:
            self._server = ThreadingHTTPServer(self.address, Handler)
        except OSError as error:
            host, port = self.address
            raise MetricsError(f"metrics_address {host}:{port}: {error.strerror or error}") from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return int(self._server.server_address[1])

    def tell_of(self, sources: Sources, alive: Callable[[], bool]) -> None:
        """Have something to tell from now on. Until then the node has no cards to serve, and all is well."""
        self._registry.register(NodeCollector(sources))
        self._sources, self._alive = sources, alive

    def _state(self, path: str) -> tuple[bool, Mapping[str, bool]]:
        if self._sources is None:
            return True, {"cards": False}
        now = self._sources.state()
        return (self._alive() if path == "/healthz" else now["registered"] and now["synced"]), dict(now)

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

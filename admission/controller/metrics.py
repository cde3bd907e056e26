"""The controller's metrics. Only the leader's tell anything but `leader`."""

import time
from collections import Counter as Counts
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from admission.placing.queue import Wait

_SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)


class ControllerMetrics:
    """The metrics of one controller, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._leader = Gauge("vcuda_queue_leader", "1 for the replica that places.", registry=self.registry)
        self._pods = Gauge(
            "vcuda_queue_pods", "Pods that wait for a placement.", ["queue"], registry=self.registry
        )
        self._waiting = Gauge(
            "vcuda_queue_waiting_pods",
            "Pods that wait for a placement, by why.",
            ["reason"],
            registry=self.registry,
        )
        for wait in Wait:
            self._waiting.labels(reason=str(wait))
        self._wait = Histogram(
            "vcuda_queue_wait_seconds",
            "From a pod's arrival to its placement.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._placements = Counter(
            "vcuda_queue_placements", "Placements that were written.", registry=self.registry
        )
        self._conflicts = Counter(
            "vcuda_queue_conflicts",
            "Placements that met another version of the pod than was known.",
            registry=self.registry,
        )
        self._refused = Counter(
            "vcuda_queue_refused", "Placements that the API did not take.", registry=self.registry
        )
        self._turn = Histogram(
            "vcuda_queue_turn_seconds",
            "One look into all queues, without writing.",
            buckets=(0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self.registry,
        )
        self._queues: set[str] = set()

    def leads(self, *, now: bool) -> None:
        """Whether this replica leads."""
        self._leader.set(int(now))
        if not now:
            self.waiting({}, Counts())

    def waiting(self, queues: Mapping[str, int], reasons: Counts[Wait]) -> None:
        """How many pods wait: by queue, and by why. A queue that is empty is not told of any more."""
        for gone in self._queues - set(queues):
            self._pods.remove(gone)
        self._queues = set(queues)
        for queue, count in queues.items():
            self._pods.labels(queue=queue).set(count)
        for wait in Wait:
            self._waiting.labels(reason=str(wait)).set(reasons[wait])

    def placed(self, arrival_ns: int, created_s: int) -> None:
        """A placement was written, of a pod that came then."""
        came_s = arrival_ns / 1e9 if arrival_ns else float(created_s)
        self._placements.inc()
        self._wait.observe(max(0.0, time.time() - came_s))

    def conflict(self) -> None:
        """A placement met another version of the pod."""
        self._conflicts.inc()

    def refused(self) -> None:
        """A placement was not taken."""
        self._refused.inc()

    def turned(self, seconds: float) -> None:
        """One look into all queues took so long."""
        self._turn.observe(seconds)

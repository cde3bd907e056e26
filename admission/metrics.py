"""The webhook's metrics."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from admission.review import Answer, Verdict
from admission.tls import ServingContext

INVALID = "invalid"
"""The verdict on a request that is none."""


class WebhookMetrics:
    """The metrics of one webhook, in a registry of their own."""

    def __init__(self, serving: ServingContext) -> None:
        self._registry = CollectorRegistry()
        self._reviews = Counter(
            "vcuda_admission_reviews",
            "Requests to the webhook: patched, untouched (asks for no share), refused, invalid (no review).",
            ["verdict"],
            registry=self._registry,
        )
        for verdict in (*Verdict, INVALID):
            self._reviews.labels(verdict=str(verdict))
        self._aliases = Counter(
            "vcuda_admission_aliases",
            "Resources of other systems, by container, that were replaced by vcuda's own.",
            ["resource"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "vcuda_admission_review_seconds",
            "From a request's last byte to its answer.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
            registry=self._registry,
        )
        Gauge(
            "vcuda_admission_certificate_expiry_timestamp_seconds",
            "When the serving certificate ends; 0 as long as there is none.",
            registry=self._registry,
        ).set_function(lambda: serving.expires_s or 0)
        self._registry.register(_Loads(serving))

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count an answer that took so long."""
        self._reviews.labels(verdict=str(answer.verdict)).inc()
        self._seconds.observe(seconds)
        if answer.verdict is Verdict.PATCHED:
            for resource in answer.aliases:
                self._aliases.labels(resource=resource).inc()

    def invalid(self) -> None:
        """Count a request that is none."""
        self._reviews.labels(verdict=INVALID).inc()

    def text(self) -> bytes:
        """All metrics, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Loads(Collector):
    """What the serving context counts itself."""

    def __init__(self, serving: ServingContext) -> None:
        self._serving = serving

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "vcuda_admission_certificate_loads",
            "Serving certificates that were loaded, each another one than before.",
            value=self._serving.loads,
        )

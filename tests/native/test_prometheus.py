"""A real Prometheus scrapes node agent, webhook and controller, and finds there what the ledgers say."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests import admission_support, kube_objects
from tests.api_server import ApiServer
from tests.native.limiter_support import Load
from tests.native.node_support import (
    NAMES,
    NODE,
    UNIT_BYTES,
    Agent,
    FakeApiServer,
    FakeKubelet,
    program,
    shown,
)
from tests.support import GIB, PAGE_BYTES, ROOT, card_user, driver_used, eventually, need
from tests.unit.test_admission_server import new_chain
from vcuda import grant as grants
from vcuda.kube.nodes import decode_cards
from vcuda.ledger import Ledger

TWO = "V100-SXM2-16GB,V100-SXM2-16GB"
UNITS = 16
PAGE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
ADMISSION = (ROOT / "docs" / "reference" / "admission.md").read_text()
ADDED = {"job", "instance"}
"""Labels that Prometheus adds to whatever it scrapes."""
RECENT = "10s"
"""So old may be what a value is read from: on a busy machine a scrape may fail, and then nothing is there."""


@dataclass(frozen=True)
class Sample:
    """One series at one instant."""

    name: str
    labels: Mapping[str, str]
    value: float


class Prometheus:
    """A server that scrapes /metrics of ports on loopback every second, with its storage in a directory."""

    def __init__(self, directory: Path, **jobs: int) -> None:
        self.log = directory / "prometheus.log"
        self._port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for name, port in jobs.items()
            ],
        }
        file = directory / "prometheus.yml"
        file.write_text(json.dumps(config))  # YAML holds JSON
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={file}",
                    f"--storage.tsdb.path={directory / 'prometheus'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def up(self, job: str) -> bool:
        """Whether its last scrape of a job went well."""
        try:
            return self.value(f'up{{job="{job}"}}') == 1
        except OSError:  # it does not listen yet
            assert self._process.poll() is None, self.log.read_text()
            return False

    def query(self, expression: str) -> list[Sample]:
        """What an instant query answers. Raises urllib.error.HTTPError where the expression is none."""
        found = self._get("query", query=expression)
        return [
            Sample(
                each["metric"].get("__name__", ""),
                {name: text for name, text in each["metric"].items() if name != "__name__"},
                float(each["value"][1]),
            )
            for each in found["result"]
        ]

    def value(self, selector: str) -> float | None:
        """The only series that is selected, as it was last scraped; None: there was none for some seconds."""
        found = self.query(f"last_over_time({selector}[{RECENT}])")
        assert len(found) <= 1, found
        return found[0].value if found else None

    def values(self, selector: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The same of several series, by the values of these labels."""
        return {
            tuple(each.labels[name] for name in labels): each.value
            for each in self.query(f"last_over_time({selector}[{RECENT}])")
        }

    def kinds(self) -> dict[str, str]:
        """counter, gauge or histogram, by family, as the targets say."""
        return {name: found[0]["type"] for name, found in self._get("metadata").items()}

    def _get(self, what: str, **arguments: str) -> Any:
        url = f"http://127.0.0.1:{self._port}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        return body["data"]


@dataclass(frozen=True)
class Family:
    """A row of the reference."""

    name: str
    kind: str
    labels: frozenset[str]


def documented() -> list[Family]:
    """The rows of docs/reference/metrics.md; labels are in the row, or said once for the section."""
    found: list[Family] = []
    for section in PAGE.split("\n## ")[1:]:
        said = re.search(r"^Labels: (.*)$", section, re.MULTILINE)
        for name, kind, rest in re.findall(
            r"^\| `(vcuda_[a-z_]+)` \| ([a-z]+) \|(.*)$", section, re.MULTILINE
        ):
            labels = re.findall(r"`([a-z]+)`", said[1] if said else rest.split("|")[0])
            found.append(Family(name, kind, frozenset(labels)))
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def exposition(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def linted(text: str) -> str:
    """What promtool has against metrics; nothing where there is no promtool."""
    if shutil.which("promtool") is None:
        return ""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


class Scene:
    """A node with two cards; a pod's share of the second one; Prometheus beside it."""

    def __init__(self, directory: Path) -> None:
        self.api = FakeApiServer(directory)
        self.kubelet = FakeKubelet(directory / "kubelet")
        self.agent = Agent(directory, self.api, cards=TWO)
        self.prometheus = Prometheus(directory, node=self.agent.port)
        self.programs: list[subprocess.Popen[str]] = []
        self.loads: list[Load] = []

    def up(self) -> None:
        """Start the agent, and give the pod its share."""
        self.serve()
        first, self.card = (card.uuid for card in decode_cards(self.api.annotations[NAMES.cards]).cards)
        self.other = first
        self.pod = self.api.pod("one", cores=30, units=UNITS, cards=(self.card,))
        self.kubelet.admit(self.pod)
        self.env = self.kubelet.start(self.pod)

    def serve(self) -> None:
        self.agent.start()
        assert eventually(self.kubelet.ready), self.agent.log.read_text()[-2000:]
        assert eventually(lambda: NAMES.cards in self.api.annotations)
        assert eventually(lambda: self.prometheus.up("node")), self.prometheus.log.read_text()
        assert eventually(lambda: self.prometheus.value("vcuda_node_synced") == 1)

    def load(self) -> Load:
        """A program of the share that launches what it is told."""
        self.loads.append(Load(self.env, "steps"))
        return self.loads[-1]

    def fill(self) -> subprocess.Popen[str]:
        """A program of the share that takes all memory that is left, and is refused more."""
        process = program(self.env, "stay")
        self.programs.append(process)
        _, _, fits, beyond = shown(process)
        assert (fits, beyond) == (0, 2)
        return process

    def outside(self, size_bytes: int) -> dict[str, str]:
        """A program beside all shares, on the first card; the environment that it has."""
        env = {name: text for name, text in self.env.items() if name not in ("LD_PRELOAD", "VCUDA_GRANT_DIR")}
        env["CUDA_VISIBLE_DEVICES"] = self.other
        process = subprocess.Popen(
            card_user(size_bytes), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.programs.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().split()[1] == "0"
        return env

    def close(self) -> None:
        for load in self.loads:
            load.kill()
        for process in self.programs:
            process.kill()
            process.communicate()
        self.agent.kill()
        self.prometheus.end()
        self.kubelet.end()
        self.api.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: the path of a socket has 107 characters.
    with tempfile.TemporaryDirectory(prefix="vcuda-prom-") as made:
        yield Path(made)


@pytest.fixture
def scene(directory: Path) -> Iterator[Scene]:
    need("prometheus")
    made = Scene(directory)
    try:
        made.up()
        yield made
    finally:
        made.close()


def test_every_documented_family_is_there_with_its_type_and_labels(scene: Scene) -> None:
    rows = documented()
    assert len(rows) >= 20

    def found() -> dict[str, set[frozenset[str]]]:
        labels: dict[str, set[frozenset[str]]] = {}
        for each in scene.prometheus.query('{job="node", __name__=~"vcuda_.*"}'):
            labels.setdefault(each.name, set()).add(frozenset(each.labels) - ADDED)
        return labels

    # A container's series are there from its grant on: this one has run nothing yet.
    assert eventually(lambda: found() == {row.name: {row.labels} for row in rows}), found()
    kinds = scene.prometheus.kinds()
    assert {row.name: kinds[row.name] for row in rows} == {row.name: row.kind for row in rows}
    assert linted(exposition(scene.agent.port)) == ""


def test_values_are_those_of_grant_ledger_and_driver(scene: Scene) -> None:
    load = scene.load()
    scene.fill()
    beside = scene.outside(3 * GIB)

    def busy() -> bool:
        load.launch(5000, 40)
        return all(
            scene.prometheus.query(f"{name} > 0")
            for name in (
                "vcuda_container_core_seconds_total",
                "vcuda_container_core_wait_seconds_total",
                "vcuda_card_utilization_ratio",
            )
        )

    assert eventually(busy)
    check_share(scene, load)
    check_cards(scene, beside)
    check_agent(scene)
    examples = re.findall(r"^(?!#)(.+)$", PAGE.partition("## Examples")[2].split("```")[1], re.MULTILINE)
    assert examples
    for example in examples:
        found = scene.prometheus.query(example)  # raises where this is no expression
        if "vcuda_container_" in example:  # this container is at its limit, and has used its card
            assert eventually(lambda example=example: pods_of(scene, example) == [("one", scene.card)]), found


def pods_of(scene: Scene, expression: str) -> list[tuple[str, str]]:
    """Pods and cards of what an expression selects."""
    return [(each.labels["pod"], each.labels["card"]) for each in scene.prometheus.query(expression)]


def check_share(scene: Scene, load: Load) -> None:
    """What the container's series say, once it rests, is what grant and ledger say; counters have grown."""
    share = {"namespace": "default", "pod": "one", "container": "main", "card": scene.card, "node": NODE}
    labels = ", ".join(f'{name}="{text}"' for name, text in share.items())
    directory = Path(scene.env["VCUDA_GRANT_DIR"])

    def of(name: str) -> float:
        found = scene.prometheus.value(f"vcuda_container_{name}{{{labels}}}")
        assert found is not None, name
        return found

    counters = ("core_seconds_total", "core_wait_seconds_total")
    before = [of(name) for name in counters]
    load.launch(5000, 40)
    load.sync()
    grant = grants.read(directory / "grant").cards[0]
    assert of("memory_limit_bytes") == grant.memory_bytes == UNITS * UNIT_BYTES
    assert of("core_share_ratio") == grant.core_ppm / 1e6 == 0.3

    def at_rest() -> bool:
        """Whether the last scrape and the ledger say the same."""
        with Ledger(directory / "ledger") as ledger:
            read = ledger.read()
        living = [process.cards[0] for process in read.processes]
        all_time = [*living, read.ended[0]]
        return (
            of("memory_used_bytes") == sum(use.used_bytes for use in living)
            and of("allocations_refused_total") == sum(use.refused for use in all_time)
            and math.isclose(of(counters[0]), sum(use.gpu_ns for use in all_time) / 1e9)
            and math.isclose(of(counters[1]), sum(use.wait_ns for use in all_time) / 1e9)
        )

    assert eventually(at_rest), scene.prometheus.query('{pod="one"}')
    assert of("allocations_refused_total") == 1
    assert of("memory_used_bytes") > grant.memory_bytes - 2 * PAGE_BYTES
    for name, then in zip(counters, before, strict=True):
        assert of(name) > then, name


def check_cards(scene: Scene, beside: Mapping[str, str]) -> None:
    """What the cards' series say is what was published, what was granted, and what the driver counts."""

    def cards(name: str) -> dict[str, float]:
        return {
            uuid: value for (uuid,), value in scene.prometheus.values(f"vcuda_card_{name}", "card").items()
        }

    published = {card.uuid: card for card in decode_cards(scene.api.annotations[NAMES.cards]).cards}
    capacity = {uuid: card.memory_bytes for uuid, card in published.items()}
    granted = UNITS * UNIT_BYTES
    assert cards("capacity_bytes") == capacity
    assert cards("granted_bytes") == {scene.other: 0, scene.card: granted}
    assert cards("free_bytes") == {**capacity, scene.card: capacity[scene.card] - granted}
    assert cards("granted_core_ratio") == {scene.other: 0, scene.card: 0.3}
    assert cards("shares") == {scene.other: 0, scene.card: 1}
    assert cards("healthy") == {scene.other: 1, scene.card: 1}
    assert set(scene.prometheus.values("vcuda_card_healthy", "card", "index", "model", "node")) == {
        (uuid, str(card.index), card.model, NODE) for uuid, card in published.items()
    }
    assert all(0 <= value <= 1 for value in cards("utilization_ratio").values())
    held = {uuid: driver_used(beside, card.index) for uuid, card in published.items()}
    assert (len(held[scene.other]), len(held[scene.card])) == (1, 2)
    outside = {scene.other: sum(held[scene.other].values()), scene.card: 0}
    assert eventually(lambda: cards("outside_bytes") == outside), cards("outside_bytes")
    assert cards("outside_processes") == {scene.other: 1, scene.card: 0}
    assert cards("used_bytes") == {uuid: sum(used.values()) for uuid, used in held.items()}


def check_agent(scene: Scene) -> None:
    """Each of the pod's resources was asked for once, and its container was started once."""
    calls = scene.prometheus.values("vcuda_node_calls_total", "resource", "call", "outcome")
    for call in ("Allocate", "PreStartContainer"):
        assert {which: count for which, count in calls.items() if which[1] == call} == {
            (resource, call, "ok"): 1 for resource in ("core", "memory")
        }
    spent = scene.prometheus.values("vcuda_node_call_seconds_total", "resource", "call")
    assert set(spent) == {which[:2] for which in calls}
    assert all(seconds > 0 for seconds in spent.values())
    assert scene.prometheus.value("vcuda_node_registered") == 1
    assert scene.prometheus.value("vcuda_node_contested") == 0


def test_counters_go_on_over_restarts_and_series_end_with_the_pod(scene: Scene) -> None:
    prometheus = scene.prometheus
    refused = 'vcuda_container_allocations_refused_total{pod="one"}'
    used = 'vcuda_container_core_seconds_total{pod="one"}'
    load = scene.load()
    load.launch(5000, 40)
    load.sync()
    full = scene.fill()
    assert eventually(lambda: prometheus.query(f"{refused} == 1") and prometheus.query(f"{used} > 0"))

    # An agent that is killed: what it told is not told on, as if it still held.
    scene.agent.kill()
    assert eventually(lambda: prometheus.query('up{job="node"} == 0'))
    assert prometheus.query('{__name__=~"vcuda_.*"}') == []
    scene.serve()

    # The share's programs end; what they used and were refused is still counted.
    load.end()
    full.communicate("\n")
    idle = 'vcuda_container_memory_used_bytes{pod="one"} == 0'
    assert eventually(lambda: prometheus.query(f"({refused} == 1) and on() ({idle}) and on() ({used} > 0)"))
    for counter in (refused, used):
        assert [each.value for each in prometheus.query(f"resets({counter}[10m])")] == [0]
    assert [each.value for each in prometheus.query(f"increase({refused}[10m])")] == [0]

    # The pod's end: at one and the same instant the agent answers, and nothing of the pod is there.
    gone = '(up{job="node"} == 1) unless on() {pod="one"}'
    assert prometheus.query(gone) == []
    scene.kubelet.forget(scene.pod)
    scene.api.delete(scene.pod)
    assert eventually(lambda: prometheus.query(gone)), prometheus.query('{pod="one"}')
    assert 'pod="one"' not in exposition(scene.agent.port)
    granted = {(scene.other,): 0, (scene.card,): 0}
    assert eventually(lambda: prometheus.values("vcuda_card_granted_bytes", "card") == granted)
    before = prometheus.query(f"last_over_time({refused}[10m])")  # what it was can still be asked
    assert [each.value for each in before] == [1]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Served:
    """`vcuda-admission` as a process, with its metrics on a port."""

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        self.log = directory / f"{arguments[0]}.log"
        clean = {name: text for name, text in os.environ.items() if not name.startswith("VCUDA_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "admission", *arguments],
                env={**clean, "PYTHONPATH": str(ROOT), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def test_webhook_is_read_verdict_by_verdict(directory: Path) -> None:
    need("prometheus")
    chain = new_chain()
    (directory / "tls.crt").write_bytes(chain.serving.certificate_pem)
    (directory / "tls.key").write_bytes(chain.serving.key_pem)
    port, health_port = free_port(), free_port()
    webhook = Served(
        directory,
        "webhook",
        "--host=127.0.0.1",
        f"--port={port}",
        f"--health-port={health_port}",
        f"--certificate-file={directory / 'tls.crt'}",
        f"--key-file={directory / 'tls.key'}",
    )
    prometheus = Prometheus(directory, webhook=health_port)
    try:
        assert eventually(lambda: prometheus.up("webhook")), webhook.log.read_text()
        trust = ssl.create_default_context(cadata=chain.bundle.decode())
        bodies = [
            admission_support.review(admission_support.pod({"aliyun.com/gpu-mem": "4096"})),
            admission_support.review(admission_support.pod({"tencent.com/vcuda-core": "100"})),
            admission_support.review(admission_support.pod({"cpu": "1"})),
            admission_support.review(admission_support.pod({NAMES.core: "30"})),
            b"{",
        ]
        for body in bodies:
            asked = urllib.request.Request(
                f"https://127.0.0.1:{port}/mutate", data=body, headers={"Content-Type": "application/json"}
            )
            try:
                urllib.request.urlopen(asked, timeout=20, context=trust).close()
            except urllib.request.HTTPError as error:
                assert (error.code, body) == (400, b"{")
                error.close()
        verdicts = {("patched",): 2, ("untouched",): 1, ("refused",): 1, ("invalid",): 1}
        assert eventually(
            lambda: prometheus.values("vcuda_admission_reviews_total", "verdict") == verdicts
        ), prometheus.query('{job="webhook"}')
        assert prometheus.values("vcuda_admission_aliases_total", "resource") == {
            ("aliyun.com/gpu-mem",): 1,
            ("tencent.com/vcuda-core",): 1,
        }
        assert prometheus.value("vcuda_admission_review_seconds_count") == 4
        assert prometheus.value('vcuda_admission_review_seconds_bucket{le="+Inf"}') == 4
        assert eventually(
            lambda: prometheus.query("histogram_quantile(0.99, vcuda_admission_review_seconds_bucket) > 0")
        )
        end = x509.load_pem_x509_certificate(chain.serving.certificate_pem).not_valid_after_utc
        assert prometheus.value("vcuda_admission_certificate_expiry_timestamp_seconds") == end.timestamp()
        assert prometheus.value("vcuda_admission_certificate_loads_total") == 1
        rows = set(re.findall(r"^\| `(vcuda_admission_[a-z_]+)", ADMISSION, re.MULTILINE))
        kinds = {name for name in prometheus.kinds() if name.startswith("vcuda_")}
        assert {name for name in kinds if not name.endswith("_created")} == rows
        assert linted(exposition(health_port)) == ""
    finally:
        prometheus.end()
        webhook.end()


@pytest.fixture
async def server(directory: Path) -> AsyncIterator[ApiServer]:
    async with ApiServer(directory) as made:
        yield made


@pytest.mark.anyio
async def test_controller_is_read_queue_by_queue(directory: Path, server: ApiServer) -> None:
    need("prometheus")
    server.put(kube_objects.node("node-1", (16,)))
    for name, queue, units in (
        ("fits", None, 48),
        ("waits", None, 32),
        ("behind", None, 4),
        ("never", "huge", 4096),
    ):
        server.put(kube_objects.pod(name, 10, units, queue=queue))
    port = free_port()
    controller = Served(
        directory,
        "controller",
        f"--kubeconfig={server.kubeconfig('one')}",
        f"--metrics-port={port}",
        VCUDA_CONTROLLER_METRICS_HOST="127.0.0.1",
        VCUDA_CONTROLLER_TELL_S="0",
        VCUDA_CONTROLLER_PATIENCE_S="0",
    )
    prometheus = Prometheus(directory, controller=port)

    def waiting() -> dict[tuple[str, ...], float]:
        found = prometheus.values("vcuda_queue_waiting_pods", "reason")
        return {reason: count for reason, count in found.items() if count}

    def check() -> None:
        assert eventually(lambda: prometheus.up("controller")), controller.log.read_text()
        reasons = {("NoRoom",): 1, ("BehindOthers",): 1, ("Unmeetable",): 1}
        assert eventually(lambda: waiting() == reasons), (waiting(), controller.log.read_text()[-2000:])
        assert sorted(prometheus.values("vcuda_queue_pods", "queue").values()) == [1, 2]
        assert prometheus.value("vcuda_queue_leader") == 1
        assert prometheus.value("vcuda_queue_placements_total") == 1
        assert prometheus.value("vcuda_queue_wait_seconds_count") == 1
        assert prometheus.value("vcuda_queue_conflicts_total") == 0
        assert prometheus.value("vcuda_queue_refused_total") == 0
        assert (prometheus.value("vcuda_queue_turn_seconds_count") or 0) > 0
        assert linted(exposition(port)) == ""

    def check_end() -> None:
        assert eventually(lambda: waiting() == {} and prometheus.value("vcuda_queue_placements_total") == 2)
        assert eventually(
            lambda: prometheus.query('(up{job="controller"} == 1) unless on() vcuda_queue_pods')
        ), prometheus.query("vcuda_queue_pods")

    try:
        await asyncio.to_thread(check)
        server.delete("pods", "team", "waits")
        server.delete("pods", "team", "never")
        await asyncio.to_thread(check_end)
    finally:
        await asyncio.to_thread(prometheus.end)
        controller.end()

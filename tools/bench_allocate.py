"""What `vcuda-node` costs: time of Allocate and PreStartContainer, memory, CPU.

A real agent with eight simulated cards; on the other side the tests' kubelet and API server. Prints JSON.
Pods come and go, so that there are always some on each card.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.native.node_support import NAMES, Agent, FakeApiServer, FakeKubelet
from tests.support import eventually
from vcuda.kube.nodes import decode_cards

CARDS = 8
PER_CARD = 4


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=200)
    count: int = parser.parse_args().pods
    with tempfile.TemporaryDirectory(prefix="vcuda-bench-") as directory:
        home = Path(directory)
        api, kubelet = FakeApiServer(home), FakeKubelet(home / "kubelet")
        usual = {"kubelet_seconds": "0.5", "health_seconds": "5", "outside_seconds": "15"}
        agent = Agent(home, api, cards=",".join(["V100-SXM2-16GB"] * CARDS), reconcile_seconds="1", **usual)
        try:
            agent.start()
            if not (eventually(kubelet.ready) and eventually(lambda: NAMES.cards in api.annotations)):
                raise SystemExit(agent.log.read_text())
            print(json.dumps(measure(api, kubelet, agent, count), indent=2))
        finally:
            agent.kill()
            kubelet.end()
            api.close()


def measure(api: FakeApiServer, kubelet: FakeKubelet, agent: Agent, count: int) -> dict[str, Any]:
    """The figures of so many pods, one after the other."""
    cards = [card.uuid for card in decode_cards(api.annotations[NAMES.cards]).cards]
    admitted: list[float] = []
    started: list[float] = []
    living: list[dict[str, Any]] = []
    before = cpu_seconds(agent)
    began = time.monotonic()
    for number in range(count):
        pod = api.pod(f"pod-{number}", cores=20, units=8, cards=(cards[number % CARDS],))
        time.sleep(0.02)  # so that the agent has heard of it, as it has in a cluster
        at = time.perf_counter()
        kubelet.admit(pod)
        admitted.append((time.perf_counter() - at) / 2)
        at = time.perf_counter()
        kubelet.start(pod)
        started.append((time.perf_counter() - at) / 2)
        living.append(pod)
        if len(living) > CARDS * PER_CARD:
            old = living.pop(0)
            kubelet.forget(old)
            api.delete(old)
            if not eventually(lambda: len(agent.tickets()) <= CARDS * PER_CARD):
                raise SystemExit("tickets stay")
    took = time.monotonic() - began
    busy = cpu_seconds(agent) - before
    idle_from, at = cpu_seconds(agent), time.monotonic()
    time.sleep(10)
    idle = (cpu_seconds(agent) - idle_from) / (time.monotonic() - at)
    return {
        "pods": count,
        "living": len(living),
        "allocate_ms": summary(admitted),
        "prestart_ms": summary(started),
        "rss_mib": round(agent.rss_bytes() / 2**20, 1),
        "cpu_busy": round(busy / took, 3),
        "cpu_idle": round(idle, 4),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Percentiles in ms."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49] * 1e3, 2), "p99": round(cuts[98] * 1e3, 2)}


def cpu_seconds(agent: Agent) -> float:
    """What its process has used."""
    assert agent.process is not None
    text = Path(f"/proc/{agent.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(text[11]) + int(text[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()

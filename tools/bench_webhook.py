"""How long /mutate takes at a steady rate, over TLS as the API server asks it: a process of its own is asked.

Requests are sent when they are due, whether or not those before were answered, and timed from when they were
due: a server that stalls is not asked more rarely for it. `python -m tools.bench_webhook --json FILE`.
"""

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import click

from admission.certificate import Chain, Plan, renewed

ROOT = Path(__file__).resolve().parents[1]
CONTAINER = {
    "image": "registry.example.com/team/train:1",
    "env": [{"name": f"V{n}", "value": "x" * 64} for n in range(40)],
}
KINDS = {
    "shares": {"vcuda.dev/vcuda-core": "30", "vcuda.dev/vcuda-memory": "24"},
    "gpu-manager's": {"tencent.com/vcuda-core": "30", "tencent.com/vcuda-memory": "24"},
    "gpushare's": {"aliyun.com/gpu-mem": "8065"},
    "refused": {"vcuda.dev/vcuda-core": "30"},
}
"""What pods ask; each is asked for in turn."""


def review(limits: dict[str, str]) -> bytes:
    """A review of a pod of two containers with forty variables each, such as are usual: some 10 KiB."""
    pod = {
        "metadata": {"generateName": "train-", "namespace": "team", "labels": {"app": "train"}},
        "spec": {
            "containers": [
                {"name": "main", **CONTAINER, "resources": {"limits": {"cpu": "4", **limits}}},
                {"name": "side", **CONTAINER},
            ]
        },
    }
    request = {
        "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "team",
        "object": pod,
    }
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    return json.dumps(body).encode()


@contextlib.contextmanager
def webhook(directory: Path, chain: Chain) -> Iterator[int]:
    """A webhook in a process of its own, on loopback; its port."""
    (directory / "tls.crt").write_bytes(chain.serving.certificate_pem)
    (directory / "tls.key").write_bytes(chain.serving.key_pem)
    command = [sys.executable, "-m", "admission", "webhook", "--host", "127.0.0.1", "--port", "0"]
    command += ["--health-port", "0", "--certificate-file", str(directory / "tls.crt")]
    command += ["--key-file", str(directory / "tls.key")]
    log = directory / "log"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VCUDA_ADMISSION_DRAIN_S": "0"}
    with (
        log.open("w") as out,
        subprocess.Popen(command, stderr=out, cwd=directory, env=env) as process,
    ):
        try:
            while not (found := re.search(r"serving /mutate on port (\d+)", log.read_text())):
                if process.poll() is not None:
                    raise click.ClickException(f"the webhook ended: {log.read_text()}")
                time.sleep(0.05)
            yield int(found[1])
        finally:
            process.terminate()


async def measure(port: int, chain: Chain, *, rate: int, seconds: int, connections: int) -> list[float]:
    """Latencies in ms, as answers came; those of the first second, which opens connections, are left out."""
    trust = ssl.create_default_context(cadata=chain.bundle.decode())
    bodies = [review(limits) for limits in KINDS.values()]
    connector = aiohttp.TCPConnector(ssl=trust, limit=connections)
    latencies: list[float] = []

    async def ask(index: int, due: float) -> None:
        kind = index % len(bodies)
        headers = {"Content-Type": "application/json"}
        async with session.post("/mutate", data=bodies[kind], headers=headers) as got:
            answer = json.loads(await got.read())
        if got.status != 200 or answer["response"]["allowed"] != (kind != len(bodies) - 1):
            raise click.ClickException(f"answered {got.status} {answer}")
        latencies.append((time.perf_counter() - due) * 1000)

    base = f"https://127.0.0.1:{port}"
    async with aiohttp.ClientSession(base, connector=connector) as session, asyncio.TaskGroup() as group:
        began = time.perf_counter()
        for index in range(rate * (seconds + 1)):
            due = began + index / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(ask(index, due))
    return latencies[rate:]


@click.command()
@click.option("--rate", default=200, show_default=True, help="Requests per second.")
@click.option("--seconds", default=20, show_default=True, help="How long, after a first second.")
@click.option("--connections", default=16, show_default=True, help="At most, all kept open.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures here as well.")
def main(rate: int, seconds: int, connections: int, json_file: Path | None) -> None:
    """Ask the webhook at a steady rate, and print p50, p99 and the longest in ms."""
    plan = Plan(
        names=("127.0.0.1",),
        serving=dt.timedelta(days=1),
        authority=dt.timedelta(days=3),
        overlap=dt.timedelta(hours=1),
    )
    chain = renewed(None, plan, dt.datetime.now(dt.UTC))
    with (
        tempfile.TemporaryDirectory(prefix="vcuda-bench-webhook-") as directory,
        webhook(Path(directory), chain) as port,
    ):
        latencies = asyncio.run(measure(port, chain, rate=rate, seconds=seconds, connections=connections))
    cuts = statistics.quantiles(latencies, n=1000)
    figures = {
        "rate_per_s": rate,
        "seconds": seconds,
        "requests": len(latencies),
        "p50_ms": round(cuts[499], 3),
        "p99_ms": round(cuts[989], 3),
        "p999_ms": round(cuts[998], 3),
        "max_ms": round(max(latencies), 3),
    }
    click.echo("webhook: " + ", ".join(f"{name} {value}" for name, value in figures.items()))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()

"""vcuda queue"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from vcuda.commands import cluster
from vcuda.commands.cluster import Json, NotAllowedError, Reader
from vcuda.commands.options import json_option
from vcuda.units import format_duration

if TYPE_CHECKING:
    from vcuda.kube.pods import PodFacts


@click.command("queue", short_help="Kubernetes: list the pods that wait for a share, in their order.")
@click.option("-n", "--namespace", help="Only pods of this namespace.  [default: all]")
@cluster.cluster_options
@json_option
def command(namespace: str | None, kubeconfig: str | None, domain: str | None, *, as_json: bool) -> None:
    """List the pods of a Kubernetes cluster that wait for a share: queue, position, and why.

    A queue is the label vcuda.dev/queue, or the namespace. Within one, nobody passes. A pod without a
    position stands aside: no node could hold it, or it has other scheduling gates.

    \b
    Examples:
      vcuda queue
      vcuda queue --namespace team-a
      vcuda queue --json | jq '.pods[] | select(.position == 1)'
    """
    names = cluster.names_of(domain)
    reader = Reader(kubeconfig)
    try:
        try:
            pods = cluster.managed_pods(reader, names)
        except NotAllowedError as error:
            where = namespace or reader.namespace
            click.echo(f"vcuda queue: {error}; only namespace {where} is shown", err=True)
            pods = cluster.managed_pods(reader, names, namespace=where)
    finally:
        reader.close()
    from vcuda.kube.pods import condition_of  # not above: nobody needs it for --help

    places = cluster.positions(pods, names)
    rows = [
        _row(facts, condition_of(pod, names), places.get(facts.uid))
        for pod, facts in pods
        if facts.waits and namespace in (None, facts.namespace)
    ]
    rows.sort(key=lambda row: (row["queue"], row["position"] or float("inf")))
    if as_json:
        click.echo(json.dumps({"pods": rows}, indent=2))
        return
    if not rows:
        click.echo("vcuda queue: nobody waits", err=True)
        return
    from vcuda.commands import tables  # not above: rich takes a while to load

    headings = ("QUEUE", "POSITION", "POD", "WAITS", "REASON", "MESSAGE")
    lines = (
        (
            row["queue"],
            str(row["position"] or "-"),
            f"{row['namespace']}/{row['name']}",
            format_duration(int(row["waits_s"]) * 10**9),
            row["reason"] or "-",
            row["message"] or "-",
        )
        for row in rows
    )
    tables.show(tables.console(), tables.columns(headings, lines, right=("POSITION", "WAITS")))


def _row(facts: PodFacts, condition: Json, position: int | None) -> dict[str, Any]:
    created_s, stamp_ns, _ = facts.arrival
    came_s = stamp_ns / 1e9 if stamp_ns else created_s
    return {
        "queue": facts.queue,
        "position": position,
        "namespace": facts.namespace,
        "name": facts.name,
        "uid": facts.uid,
        "waits_s": round(max(0.0, time.time() - came_s), 1),
        "reason": condition.get("reason"),
        "message": condition.get("message"),
    }

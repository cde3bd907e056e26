"""vcuda explain"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from vcuda.commands import cluster
from vcuda.commands.cluster import Json, Reader
from vcuda.commands.options import json_option
from vcuda.errors import VcudaError
from vcuda.units import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vcuda.kube.eligibility import Amounts, NodeFacts
    from vcuda.kube.names import Names
    from vcuda.kube.placements import PodPlacement
    from vcuda.kube.pods import PodFacts

    Holder = tuple[PodPlacement | None, Amounts]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is to be said of one card, or of a node without a usable one."""

    node: str
    card: int | None
    memory_bytes: int | None = None
    free_bytes: int | None = None
    free_cores: int | None = None
    reason: str = ""
    """Empty: it has room."""
    text: str = ""


@click.command("explain", short_help="Kubernetes: say card by card why a pod does not run.")
@click.argument("pod")
@click.option("-n", "--namespace", help="The pod's namespace.  [default: the kubeconfig's]")
@cluster.cluster_options
@json_option
def command(
    pod: str, namespace: str | None, kubeconfig: str | None, domain: str | None, *, as_json: bool
) -> None:
    """Say of each card of a Kubernetes cluster why it cannot take what a pod asks, or where the pod is.

    What is said of cards is counted now, from pods and nodes, by the same rules as the controller's. That a
    card is kept for a pod that came earlier, only the controller says: in "condition". It takes the right to
    list pods and nodes of the whole cluster.

    \b
    Examples:
      vcuda explain train-7
      vcuda explain -n team-a train-7
      vcuda explain train-7 --json | jq '.cards[] | select(.reason == null)'
    """
    names = cluster.names_of(domain)
    reader = Reader(kubeconfig)
    try:
        namespace = namespace or reader.namespace
        found = reader.one(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        if found is None:
            raise VcudaError(f"no pod {pod} in namespace {namespace}; see 'vcuda queue'")
        pods = cluster.managed_pods(reader, names)
        nodes = reader.every("/api/v1/nodes")
    finally:
        reader.close()
    told = _told(found, pods, nodes, names)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for label in ("pod", "queue", "position", "asks", "condition", "placed"):
        if told[label] is not None:
            click.echo(f"{label + ':':11}{told[label]}")
    if not told["cards"]:
        return
    from vcuda.commands import tables  # not above: rich takes a while to load

    headings = ("NODE", "CARD", "MEMORY", "FREE", "CORES", "REASON", "WHY")
    rows = (
        (
            line["node"],
            "-" if line["card"] is None else str(line["card"]),
            "-" if line["memory_bytes"] is None else format_size(line["memory_bytes"]),
            "-" if line["free_bytes"] is None else format_size(max(0, line["free_bytes"])),
            "-" if line["free_cores"] is None else f"{max(0, line['free_cores'])}%",
            line["reason"] or "-",
            line["text"],
        )
        for line in told["cards"]
    )
    click.echo()
    tables.show(tables.console(), tables.columns(headings, rows, right=("CARD", "MEMORY", "FREE", "CORES")))
    click.echo(f"\n{told['summary']}")


def _told(
    pod: Json, pods: Sequence[tuple[Json, PodFacts]], nodes: Sequence[Json], names: Names
) -> dict[str, Any]:
    """All that is said, as JSON."""
    from vcuda.kube.eligibility import node_facts
    from vcuda.kube.pods import condition_of, pod_facts

    facts = pod_facts(pod, names)
    condition = condition_of(pod, names)
    lines: list[Line] = []
    if facts.waits and not facts.fault:
        read = sorted((node_facts(node, names) for node in nodes), key=lambda each: each.name)
        there = _holders(pods)
        for node in read:
            lines.extend(_lines(facts, node, there.get(node.name, [])))
    reasons = Counter(line.reason or "has room" for line in lines)
    return {
        "pod": facts.who,
        "queue": facts.queue if facts.waits else None,
        "position": cluster.positions(pods, names).get(facts.uid),
        "asks": _asks(facts),
        "condition": f"{condition.get('reason')}: {condition.get('message')}" if condition else None,
        "placed": _placed(facts),
        "cards": [
            {
                "node": line.node,
                "card": line.card,
                "memory_bytes": line.memory_bytes,
                "free_bytes": line.free_bytes,
                "free_cores": line.free_cores,
                "reason": line.reason or None,
                "text": line.text,
            }
            for line in lines
        ],
        "summary": ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or None,
    }


def _holders(pods: Sequence[tuple[Json, PodFacts]]) -> dict[str, list[Holder]]:
    """By node: the pods that are there, or placed there, with what they hold."""
    from vcuda.kube.placements import PlacementError, decode

    found: dict[str, list[Holder]] = {}
    for _, pod in pods:
        if pod.over or pod.gated:
            continue
        try:
            # Not verified: the key is for nodes. Here a forger's word is taken, as for the worst.
            placement = decode(pod.placement, pod.uid, None) if pod.placement else None
        except PlacementError:
            placement = None
        node = placement.node if placement is not None else pod.node
        if node is not None:
            found.setdefault(node, []).append((placement, pod.amounts))
    return found


def _lines(facts: PodFacts, node: NodeFacts, holders: Sequence[Holder]) -> list[Line]:
    """Of one node, each card: its first reason, or that it has room."""
    from vcuda.kube.eligibility import lacking, why_not
    from vcuda.kube.placing import Reason, booked, held, place_on, refusals

    why = why_not(node, facts.rules)
    if why is not None or node.cards is None:
        reason, text = why or (Reason.NODE_WITHOUT_CARDS, node.fault)
        return [Line(node=node.name, card=None, reason=reason, text=text)]
    shares = [held(placement, node.moved) for placement, _ in holders if placement is not None]
    rooms = sorted(booked(node.cards.cards, shares), key=lambda room: room.card.index)
    unit = node.cards.memory_unit_bytes
    short = lacking(node.room, [amounts for _, amounts in holders], facts.amounts)
    refused = refusals(rooms, facts.ask, unit_bytes=unit)
    together = place_on(rooms, facts.ask, unit_bytes=unit, policy="binpack") is not None
    found: list[Line] = []
    for room in rooms:
        mine = [each for each in refused if each.card.uuid == room.card.uuid]
        if len(mine) == len(facts.ask.containers):
            who = f"{mine[0].container}: " if len(mine) > 1 else ""
            reason, text = mine[0].reason, f"{who}{mine[0].text}"
        elif not together:
            reason, text = (
                Reason.TOO_FEW_CARDS,
                "has room, but with the node's others not for all that is asked",
            )
        elif short:
            reason, text = Reason.NODE_FULL, f"the card has room, the node has not: {short}"
        else:
            reason, text = "", "has room"
        found.append(
            Line(
                node=node.name,
                card=room.card.index,
                memory_bytes=room.card.memory_bytes,
                free_bytes=room.free_bytes,
                free_cores=room.free_cores,
                reason=reason,
                text=text,
            )
        )
    return found or [
        Line(node=node.name, card=None, reason=Reason.NODE_WITHOUT_CARDS, text="it has no cards")
    ]


def _asks(facts: PodFacts) -> str:
    if facts.fault:
        return facts.fault
    return ", ".join(
        f"{ask.container}: "
        + (
            f"{ask.whole} whole card{'s' if ask.whole > 1 else ''}"
            if ask.whole
            else f"{f'{ask.cores}% of cores and ' if ask.cores else ''}{ask.memory_units} units of memory"
        )
        for ask in facts.ask.containers
    )


def _placed(facts: PodFacts) -> str | None:
    from vcuda.kube.placements import PlacementError, decode

    if facts.placement is None or facts.gated:
        return None
    try:
        placement = decode(facts.placement, facts.uid, None)
    except PlacementError as error:
        return str(error)
    shares = ", ".join(
        f"{name}: {share.uuid} "
        + ("whole" if share.whole else f"{share.cores}% {format_size(share.memory_bytes)}")
        for name, each in placement.containers.items()
        for share in each
    )
    bound = "bound" if facts.node else "not bound yet: see the scheduler's own events"
    return f"on node {placement.node}: {shares}; {'over' if facts.over else bound}"

"""Which nodes a pod may go to, as far as labels, taints and room say: Kubernetes' own rules, and pure.

It follows what the scheduler will ask when the pod's gate is gone: a pod must not be given cards of a node to
which the scheduler will not bind it. Of the room on a node only what managed pods take is known here; what
other pods take is not, so a node that is full of these keeps a placed pod waiting for the scheduler.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

from vcuda.kube.asks import mapping
from vcuda.kube.names import Names
from vcuda.kube.nodes import NodeCards, NodeError, decode_cards, decode_moved
from vcuda.kube.placing import Reason

Json = Mapping[str, Any]

_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i)?)")
_FACTORS = {
    **{suffix: Fraction(1, 1000**power) for power, suffix in enumerate("mun", start=1)},
    **{suffix: Fraction(1000**power) for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{suffix}i": Fraction(1024**power) for power, suffix in enumerate("KMGTPE", start=1)},
}
_MOST = 2**62


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """Of what the scheduler counts on a node: has, or asked by a pod."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    pods: int = 0
    core: int = 0
    """The resource vcuda-core, as the kubelet offers it."""
    memory_units: int = 0
    """The resource vcuda-memory."""

    def values(self) -> tuple[int, int, int, int, int]:
        """All of them, in the order of `AMOUNT_NAMES`."""
        return self.cpu_milli, self.memory_bytes, self.pods, self.core, self.memory_units


AMOUNT_NAMES = ("milli-CPUs", "bytes of memory", "pods", "vcuda-core", "vcuda-memory")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a pod says of the nodes that it may go to."""

    selector: Mapping[str, str] = field(default_factory=dict[str, str])
    terms: Sequence[Json] | None = None
    """Node selector terms, of which one must hold; None: no required affinity."""
    tolerations: Sequence[Json] = ()


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What matters of a node."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[tuple[str, str, str], ...]
    """Key, value, effect; those that keep pods away."""
    ready: bool
    cordoned: bool
    cards: NodeCards | None
    """None: it has none, or what it says of them cannot be read; then `fault` says so."""
    fault: str
    moved: Mapping[str, Mapping[str, tuple[str, ...]]]
    room: Amounts


def node_facts(node: Json, names: Names) -> NodeFacts:
    """Read a node as the API writes it in JSON. What cannot be read is told in `fault`, never raised."""
    metadata, spec, status = (mapping(node.get(part)) for part in ("metadata", "spec", "status"))
    annotations = mapping(metadata.get("annotations"))
    cards, fault = None, ""
    moved: Mapping[str, Mapping[str, tuple[str, ...]]] = {}
    if names.cards not in annotations:
        fault = "it has no cards: vcuda-node does not run there, or found none"
    else:
        try:
            cards = decode_cards(annotations[names.cards])
            moved = decode_moved(annotations.get(names.moved))
        except NodeError as error:
            cards, fault = None, str(error)  # who holds what is not known: nothing is placed there
    conditions = {each.get("type"): each.get("status") for each in objects(status.get("conditions"))}
    return NodeFacts(
        name=str(metadata.get("name")),
        labels=dict(mapping(metadata.get("labels"))),
        taints=tuple(
            (str(each.get("key")), str(each.get("value") or ""), str(each.get("effect")))
            for each in objects(spec.get("taints"))
            if each.get("effect") in ("NoSchedule", "NoExecute")
        ),
        ready=conditions.get("Ready") == "True",
        cordoned=bool(spec.get("unschedulable")),
        cards=cards,
        fault=fault,
        moved=moved,
        room=_amounts(mapping(status.get("allocatable")), names),
    )


def rules_of(pod: Json) -> Rules:
    """What a pod says of the nodes that it may go to."""
    spec = mapping(pod.get("spec"))
    affinity = mapping(mapping(spec.get("affinity")).get("nodeAffinity"))
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return Rules(
        selector=dict(mapping(spec.get("nodeSelector"))),
        terms=None if required is None else objects(mapping(required).get("nodeSelectorTerms")),
        tolerations=objects(spec.get("tolerations")),
    )


def amounts_of(pod: Json, names: Names) -> Amounts:
    """What the scheduler counts for a pod: its containers together, or an init container that asks more."""
    spec = mapping(pod.get("spec"))
    sidecars, steps = _NOTHING, _NOTHING
    for container in objects(spec.get("initContainers")):
        asked = _amounts_asked(container, names)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum(sidecars, asked)
            steps = _most(steps, sidecars)
        else:
            steps = _most(steps, _sum(sidecars, asked))
    together = sidecars
    for container in objects(spec.get("containers")):
        together = _sum(together, _amounts_asked(container, names))
    total = _most(together, steps)
    whole_pod = mapping(mapping(spec.get("resources")).get("requests"))
    if whole_pod:  # a pod may say cpu and memory once for all its containers
        said = _amounts(whole_pod, names)
        total = Amounts(
            cpu_milli=said.cpu_milli if "cpu" in whole_pod else total.cpu_milli,
            memory_bytes=said.memory_bytes if "memory" in whole_pod else total.memory_bytes,
            core=total.core,
            memory_units=total.memory_units,
        )
    return _sum(_sum(total, _amounts(mapping(spec.get("overhead")), names)), Amounts(pods=1))


def lacking(room: Amounts, used: Sequence[Amounts], asked: Amounts) -> str:
    """What a node has too little of for a pod beside cards, with these pods there; empty: it has enough."""
    taken = _NOTHING
    for each in used:
        taken = _sum(taken, each)
    return ", ".join(
        f"{name}: {wanted} asked, {max(0, has - gone)} of {has} free"
        for name, has, gone, wanted in zip(
            AMOUNT_NAMES, room.values(), taken.values(), asked.values(), strict=True
        )
        if wanted and wanted > has - gone
    )


def objects(value: object) -> tuple[Json, ...]:
    """The objects of a list of JSON; none, if it is no list."""
    return tuple(mapping(each) for each in cast("list[object]", value)) if isinstance(value, list) else ()


def why_not(node: NodeFacts, rules: Rules) -> tuple[Reason, str] | None:
    """Why a pod with these rules may not go to a node; None if it may."""
    if node.cards is None:
        return Reason.NODE_WITHOUT_CARDS, node.fault
    if not node.ready:
        return Reason.NODE_NOT_READY, "the node is not ready"
    if not node.cards.served:
        return Reason.NODE_NOT_SERVED, "vcuda-node is just being started or stopped there"
    tolerated = [_tolerates(rules.tolerations, taint) for taint in node.taints]
    if not all(tolerated):
        key, value, effect = node.taints[tolerated.index(False)]
        return Reason.NODE_TAINTED, f"taint {key}{f'={value}' if value else ''}:{effect} is not tolerated"
    if node.cordoned and not _tolerates(rules.tolerations, _CORDONED):
        return Reason.NODE_CORDONED, "the node is cordoned"
    for key, value in rules.selector.items():
        if node.labels.get(key) != value:
            has = node.labels.get(key)
            return (
                Reason.NODE_SELECTED_AGAINST,
                f"nodeSelector asks {key}={value}, the node has {'none' if has is None else repr(has)}",
            )
    if rules.terms is not None and not any(_holds(term, node) for term in rules.terms):
        return Reason.NODE_AFFINITY, "no term of the required node affinity holds"
    return None


_CORDONED = ("node.kubernetes.io/unschedulable", "", "NoSchedule")
_NOTHING = Amounts()


def _amount(value: object, scale: int) -> int:
    """A quantity times `scale`, rounded up; 0 for what is none."""
    match = _AMOUNT.fullmatch(str(value))
    if match is None:
        return 0
    number, power, suffix = match.groups()
    factor = Fraction(10) ** int(power) if power else _FACTORS.get(suffix or "", Fraction(1))
    return min(_MOST, -int(-Fraction(number.rstrip(".")) * factor * scale // 1))


def _amounts(listed: Json, names: Names) -> Amounts:
    return Amounts(
        cpu_milli=_amount(listed.get("cpu", 0), 1000),
        memory_bytes=_amount(listed.get("memory", 0), 1),
        pods=_amount(listed.get("pods", 0), 1),
        core=_amount(listed.get(names.core, 0), 1),
        memory_units=_amount(listed.get(names.memory, 0), 1),
    )


def _amounts_asked(container: Json, names: Names) -> Amounts:
    resources = mapping(container.get("resources"))
    return _amounts({**mapping(resources.get("limits")), **mapping(resources.get("requests"))}, names)


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return _each(*(a + b for a, b in zip(one.values(), other.values(), strict=True)))


def _most(one: Amounts, other: Amounts) -> Amounts:
    return _each(*(max(a, b) for a, b in zip(one.values(), other.values(), strict=True)))


def _each(*values: int) -> Amounts:
    cpu_milli, memory_bytes, pods, core, memory_units = values
    return Amounts(
        cpu_milli=cpu_milli, memory_bytes=memory_bytes, pods=pods, core=core, memory_units=memory_units
    )


def _tolerates(tolerations: Sequence[Json], taint: tuple[str, str, str]) -> bool:
    key, value, effect = taint
    for each in tolerations:
        if each.get("effect") not in (None, "", effect):
            continue
        exists = each.get("operator") == "Exists"
        if not each.get("key"):
            if exists:
                return True
        elif each["key"] == key and (exists or (each.get("value") or "") == value):
            return True
    return False


def _holds(term: Json, node: NodeFacts) -> bool:
    """Whether a node selector term holds; one without any requirement never does."""
    expressions, fields = objects(term.get("matchExpressions")), objects(term.get("matchFields"))
    if not expressions and not fields:
        return False
    return all(_meets(each, node.labels) for each in expressions) and all(
        _meets(each, {"metadata.name": node.name}) for each in fields
    )


def _meets(requirement: Json, values: Mapping[str, str]) -> bool:
    key, operator = requirement.get("key"), requirement.get("operator")
    values_wanted: list[object] = requirement.get("values") or []
    wanted = [str(each) for each in values_wanted]
    has = values.get(str(key))
    match operator:
        case "In":
            return has in wanted
        case "NotIn":
            return has not in wanted
        case "Exists":
            return has is not None
        case "DoesNotExist":
            return has is None
        case "Gt" | "Lt":
            try:
                number, bound = int(str(has)), int(wanted[0])
            except (ValueError, IndexError):
                return False
            return number > bound if operator == "Gt" else number < bound
        case _:
            return False

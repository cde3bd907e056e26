"""What becomes of a pod at its creation: its asks in vcuda's own resources, label, arrival and gate. Pure.

`admitted` is idempotent for one instant: what it makes, it leaves. A pod that asks for no share it does not
touch, and it knows of no other pod and no node: whether a share can be had is the controller's to tell.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from admission.aliases import Rules, asks, translated
from vcuda.kube.asks import LISTS, AskError, asked_of, containers_of, mapping, shown

Pod = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """What is to be done with a pod."""

    pod: Pod | None
    """As it is to be created; None: as it is, or not at all."""
    faults: tuple[str, ...] = ()
    """Why it is refused, each with its field; none: it is not."""
    warnings: tuple[str, ...] = ()
    """What its user should know though it is created."""
    aliases: tuple[str, ...] = ()
    """Resources of other systems that were replaced, one for each container."""


def admitted(pod: Mapping[str, Any], *, rules: Rules, now_ns: int) -> Admitted:
    """What is to be done with a pod that is being created; now_ns: ns since 1970."""
    if not any(asks(container.get("resources"), rules) for _, container in containers_of(pod)):
        return Admitted(pod=None)
    made = dict(pod)
    faults = [*_init_faults(pod, rules), *_ephemeral_faults(pod, rules)]
    warnings: list[str] = []
    aliases: list[str] = []
    exact: dict[str, int] = {}
    spec = dict(mapping(pod["spec"]))
    made["spec"] = spec
    for field in LISTS:
        after: list[Any] = []
        for index, container in enumerate(_listed(spec, field)):
            given = mapping(container)
            done = translated(given.get("resources"), f"spec.{field}[{index}].resources", rules)
            faults.extend(done.faults)
            warnings.extend(done.warnings)
            aliases.extend(done.aliases)
            if done.memory_bytes is not None:
                exact[str(given.get("name"))] = done.memory_bytes
            after.append(_with(container, {"limits": done.limits, "requests": done.requests}))
        if after:
            spec[field] = after
    try:
        asked_of(made, rules.names)
    except AskError as error:
        faults.extend(error.faults)
    faults.extend(_faults_of_what_is_ours(pod, rules))
    if faults:
        return Admitted(pod=None, faults=tuple(faults), aliases=tuple(aliases))
    names = rules.names
    metadata = dict(mapping(pod.get("metadata")))
    metadata["labels"] = {**mapping(metadata.get("labels")), names.managed: "true"}
    annotations = {**mapping(metadata.get("annotations")), names.arrival: str(now_ns)}
    if exact:
        annotations[names.memory_bytes] = json.dumps(exact)
    metadata["annotations"] = annotations
    made["metadata"] = metadata
    gates = list(cast("list[object]", spec.get("schedulingGates") or []))
    if {"name": names.gate} not in gates:
        gates.append({"name": names.gate})
    spec["schedulingGates"] = gates
    return Admitted(pod=made, warnings=tuple(warnings), aliases=tuple(aliases))


def _listed(spec: Mapping[str, Any], field: str) -> list[object]:
    found = spec.get(field)
    return cast("list[object]", found) if isinstance(found, list) else []


def _with(container: object, resources: Mapping[str, Mapping[str, Any]]) -> object:
    """A container with these limits and requests: the same object, if it has them."""
    given = mapping(container)
    before = mapping(given.get("resources"))
    after = {**before, **{kind: counts for kind, counts in resources.items() if counts or kind in before}}
    return container if after == before else {**given, "resources": after}


def _init_faults(pod: Mapping[str, Any], rules: Rules) -> list[str]:
    # Of those that end before the others start: these get their ids, and a kubelet that is started again
    # later fails the whole pod for it.
    containers = [mapping(each) for each in _listed(mapping(pod.get("spec")), "initContainers")]
    return [
        f"spec.initContainers[{index}].resources: must not ask for a share, which could not be kept for it; "
        "ask in spec.containers, or make it a sidecar with restartPolicy: Always"
        for index, container in enumerate(containers)
        if container.get("restartPolicy") != "Always" and asks(container.get("resources"), rules)
    ]


def _ephemeral_faults(pod: Mapping[str, Any], rules: Rules) -> list[str]:
    containers = _listed(mapping(pod.get("spec")), "ephemeralContainers")
    return [
        f"spec.ephemeralContainers[{index}].resources: must be empty, an ephemeral container has no share"
        for index, container in enumerate(containers)
        if asks(mapping(container).get("resources"), rules)
    ]


def _faults_of_what_is_ours(pod: Mapping[str, Any], rules: Rules) -> Iterator[str]:
    """Faults of the fields that vcuda writes itself, or needs to write."""
    names = rules.names
    given, spec = cast("object", pod.get("metadata")), mapping(pod.get("spec"))
    metadata = mapping(given)
    if given is not None and not isinstance(given, Mapping):
        yield f"metadata: {shown(given)}: must be an object"
    for field in ("labels", "annotations"):
        value = metadata.get(field)
        if value is not None and not isinstance(value, Mapping):
            yield f"metadata.{field}: {shown(value)}: must be an object"
    if spec.get("schedulingGates") is not None and not isinstance(spec["schedulingGates"], list):
        yield f"spec.schedulingGates: {shown(spec['schedulingGates'])}: must be a list"
    label = mapping(metadata.get("labels")).get(names.managed, "true")
    if label != "true":
        yield f"metadata.labels[{names.managed}]: {shown(label)}: is set by vcuda itself; leave it out"
    annotations = mapping(metadata.get("annotations"))
    if names.placement in annotations:
        yield (
            f"metadata.annotations[{names.placement}]: {shown(annotations[names.placement])}: is written by "
            "vcuda's controller alone, which chooses the card; leave it out"
        )
    node = spec.get("nodeName")
    if node is not None and node != "":
        yield (
            f"spec.nodeName: {shown(node)}: must not be set, since vcuda's controller chooses the node; "
            "to narrow its choice use spec.nodeSelector or spec.affinity"
        )

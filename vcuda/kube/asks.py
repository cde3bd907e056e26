"""What the containers of a pod ask of cards, as its resources say it after admission. Pure."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from vcuda.errors import VcudaError
from vcuda.kube.names import CORES_PER_CARD, POLICIES, PRIORITIES, Names
from vcuda.kube.quantities import MOST, count_of

Pod = Mapping[str, Any]
"""A pod as the API writes it in JSON."""

LISTS = ("initContainers", "containers")
"""The fields of a pod's spec with containers that can ask, in the order in which they start."""


class AskError(VcudaError):
    """A pod asks for what cannot be. The text is all faults in one line; each names its field."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one container asks: a share of one card, or whole cards.

    cores and memory_units are the container's own resources, as kubelet counts them; 0 = not asked. Memory
    without cores is a share whose cores are in proportion to its memory, and elastic up to the whole card.
    """

    container: str
    cores: int
    memory_units: int
    memory_bytes: int | None = None
    """Where it asked for less than so many units: how much."""

    def bytes_of(self, unit_bytes: int) -> int:
        """The memory of its share."""
        units = self.memory_units * unit_bytes
        return units if self.memory_bytes is None else min(units, self.memory_bytes)

    @property
    def whole(self) -> int:
        """The number of cards that it is to have alone; 0 = a share of one card."""
        return self.cores // CORES_PER_CARD if self.cores and self.cores % CORES_PER_CARD == 0 else 0


@dataclass(frozen=True, kw_only=True)
class PodAsk:
    """What a pod asks."""

    containers: tuple[Ask, ...]
    """Those that ask, init containers first, in the pod's order."""
    cores_max: int | None = None
    """In percent of a card; None: no more than the share, or, where cores were not asked, the whole card."""
    priority: int = 0
    policy: str | None = None
    """None: as the cluster has it."""


def asked_of(pod: Pod, names: Names) -> PodAsk:
    """What a pod asks; no containers, if nothing.

    Raises:
        AskError: of what it asks, with all faults.

    """
    faults: list[str] = []
    asks: list[Ask] = []
    for where, container in containers_of(pod):
        limits = mapping(mapping(container.get("resources")).get("limits"))
        core = f"{where}.resources.limits[{names.core}]"
        memory = f"{where}.resources.limits[{names.memory}]"
        cores = _count(limits.get(names.core), core, faults)
        units = _count(limits.get(names.memory), memory, faults)
        if cores is None or units is None or not (cores or units):
            continue
        fault = share_fault(cores, units, where=core, memory=names.memory)
        if fault is not None:
            faults.append(fault)
        asks.append(Ask(container=str(container.get("name")), cores=cores, memory_units=units))
    annotations = mapping(mapping(pod.get("metadata")).get("annotations"))
    exact = _memory_bytes(annotations.get(names.memory_bytes), names, faults)
    found = PodAsk(
        containers=tuple(replace(ask, memory_bytes=exact.get(ask.container)) for ask in asks),
        cores_max=_cores_max(annotations.get(names.cores_max), asks, names, faults),
        priority=_priority(annotations.get(names.priority), names, faults),
        policy=_policy(annotations.get(names.policy), names, faults),
    )
    if faults:
        raise AskError(*faults)
    return found


def containers_of(pod: Pod) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each container that can ask, with its field, such as spec.containers[0]; init containers first."""
    spec = mapping(pod.get("spec"))
    for field in LISTS:
        found = spec.get(field)
        if isinstance(found, list):
            for index, container in enumerate(cast("list[object]", found)):
                yield f"spec.{field}[{index}]", mapping(container)


def mapping(value: object) -> Mapping[str, Any]:
    """The value, if it is an object of JSON; else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def share_fault(cores: int, memory_units: int, *, where: str, memory: str) -> str | None:
    """What is wrong with the numbers of one container that asks; None: nothing.

    where: the field with the cores. memory: the name of the resource that stands for memory beside it.
    """
    if cores > CORES_PER_CARD and cores % CORES_PER_CARD:
        less = cores - cores % CORES_PER_CARD
        return (
            f"{where}: {cores}: above {CORES_PER_CARD} only whole cards can be asked, "
            f"{less} or {less + CORES_PER_CARD}"
        )
    if cores % CORES_PER_CARD and not memory_units:
        return f"{where}: {cores}: a share of a card needs memory: add {memory} beside it"
    return None


def count_fault(value: object, where: str) -> str:
    """What is to be said of a value that should be a count."""
    return f"{where}: {shown(value)}: must be a whole number from 0 to {MOST}"


def shown(value: object) -> str:
    """A value of a user's, as messages show it: one line, and not long."""
    match value:
        case str():
            text = value if value.isprintable() and value else ascii(value)
        case int() if value.bit_length() > 200:
            text = hex(value)  # decimal digits are refused by Python where they are very many
        case int() | float() | None:
            text = repr(value)
        case _:
            text = "{...}" if isinstance(value, Mapping) else "[...]"
    return text if len(text) <= 64 else f"{text[:61]}..."


def _count(value: object, where: str, faults: list[str]) -> int | None:
    if value is None:
        return 0
    count = count_of(value)
    if count is None:
        faults.append(count_fault(value, where))
    return count


def _annotation(name: str, value: object, allowed: str) -> str:
    return f"metadata.annotations[{name}]: {shown(value)}: must be {allowed}"


def _cores_max(value: object, asks: Iterable[Ask], names: Names, faults: list[str]) -> int | None:
    if value is None:
        return None
    least = max((ask.cores for ask in asks if not ask.whole and ask.cores < CORES_PER_CARD), default=0) or 1
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len("100"):
        ceiling = int(value)
        if least <= ceiling <= CORES_PER_CARD:
            return ceiling
    faults.append(_annotation(names.cores_max, value, f"a whole number from {least} to {CORES_PER_CARD}"))
    return None


def _memory_bytes(value: object, names: Names, faults: list[str]) -> Mapping[str, int]:
    if value is None:
        return {}
    try:
        found = cast("object", json.loads(value)) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and all(
        isinstance(each, int) and not isinstance(each, bool) and each > 0
        for each in cast("dict[str, object]", found).values()
    ):
        return cast("dict[str, int]", found)
    faults.append(_annotation(names.memory_bytes, value, "an object of JSON, container to bytes"))
    return {}


def _priority(value: object, names: Names, faults: list[str]) -> int:
    if value is None:
        return 0
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    faults.append(_annotation(names.priority, value, f"one of {', '.join(PRIORITIES)}"))
    return 0


def _policy(value: object, names: Names, faults: list[str]) -> str | None:
    if value is None or (isinstance(value, str) and value in POLICIES):
        return value
    faults.append(_annotation(names.policy, value, f"one of {', '.join(POLICIES)}"))
    return None

"""What a container asks, in vcuda's own resources, whichever system's it was written in. Pure.

vcuda's own: `vcuda-core` (percent of a card, or N x 100 for N whole ones) and `vcuda-memory` (units).
Tencent's gpu-manager: the same two, memory in units of 256 MiB. Alibaba's gpushare: `gpu-mem` in MiB or GiB
(as its cluster was set up), a share of one card; `gpu-count`, whole cards.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vcuda.kube.asks import count_fault, mapping, share_fault, shown
from vcuda.kube.names import (
    ALIASES,
    ALIYUN_COUNT,
    ALIYUN_MEMORY,
    CORES_PER_CARD,
    MEMORY_UNIT_BYTES,
    TENCENT_CORE,
    TENCENT_MEMORY,
    Names,
)
from vcuda.kube.quantities import MOST, count_of
from vcuda.units import format_size

TENCENT_UNIT_BYTES = 256 * 2**20
_KINDS = ((TENCENT_CORE, TENCENT_MEMORY), (ALIYUN_MEMORY, ALIYUN_COUNT))


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What one cluster has chosen."""

    names: Names = field(default_factory=Names)
    memory_unit_bytes: int = MEMORY_UNIT_BYTES
    """Of one `vcuda-memory`; the same as the node agents publish."""
    aliyun_unit_bytes: int = 2**20
    """Of one `aliyun.com/gpu-mem`."""

    @property
    def resources(self) -> tuple[str, ...]:
        """All resources by which a container can ask."""
        return (self.names.core, self.names.memory, *ALIASES)


@dataclass(frozen=True, kw_only=True)
class Translation:
    """The resources of one container after it."""

    limits: Mapping[str, Any]
    requests: Mapping[str, Any]
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Those that stood for what is now asked."""
    memory_bytes: int | None = None
    """What it asked, where that is less than the units that it counts as."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """One resource that a container asks."""

    name: str
    field: str
    """Where it was read."""
    value: object
    count: int | None
    """None: the value is no count."""


def asks(resources: object, rules: Rules) -> bool:
    """Whether a container's resources ask for a share, by whatever name; zeros ask nothing."""
    found = mapping(resources)
    return any(
        name in listed and count_of(listed[name]) != 0
        for listed in (mapping(found.get("limits")), mapping(found.get("requests")))
        for name in rules.resources
    )


def translated(resources: object, where: str, rules: Rules) -> Translation:
    """What a container's resources are in vcuda's own.

    where: their field, such as spec.containers[0].resources.
    Values that are no counts stay where they are vcuda's own: who reads those finds the fault.
    """
    limits = dict(mapping(mapping(resources).get("limits")))
    requests = dict(mapping(mapping(resources).get("requests")))
    faults: list[str] = []
    asked = {
        name: each
        for name in rules.resources
        if (each := _asked(name, limits, requests, where, faults)) is not None and each.count != 0
    }
    for name in ALIASES:
        limits.pop(name, None)
        requests.pop(name, None)
    for name in (rules.names.core, rules.names.memory):
        if name in requests:
            limits.setdefault(name, requests[name])
        if name in limits:
            requests.setdefault(name, limits[name])
    aliases = tuple(name for name in ALIASES if name in asked)
    if not aliases:
        return Translation(limits=limits, requests=requests, faults=tuple(faults))
    own = (rules.names.core, rules.names.memory)
    kinds = [names for kind in (own, *_KINDS) if (names := [name for name in kind if name in asked])]
    faults.extend(count_fault(each.value, each.field) for each in _of(asked, ALIASES) if each.count is None)
    if len(kinds) > 1:
        named = " beside ".join(" and ".join(names) for names in kinds)
        faults.append(f"{where}: {named}: must be of one kind; keep {' and '.join(kinds[0])} alone")
    if faults:
        return Translation(limits=limits, requests=requests, faults=tuple(faults), aliases=aliases)
    cores, units, fault, warning = (
        _tencent(asked, rules) if aliases[0] in _KINDS[0] else _aliyun(asked, rules)
    )
    if fault is not None:
        return Translation(limits=limits, requests=requests, faults=(fault,), aliases=aliases)
    size_bytes = _bytes(asked, rules)
    for listed in (limits, requests):
        for name, count in ((rules.names.core, cores), (rules.names.memory, units)):
            listed.pop(name, None)
            if count:
                listed[name] = str(count)
    return Translation(
        limits=limits,
        requests=requests,
        aliases=aliases,
        warnings=() if warning is None else (warning,),
        memory_bytes=size_bytes if size_bytes < units * rules.memory_unit_bytes else None,
    )


def _asked(
    name: str, limits: Mapping[str, Any], requests: Mapping[str, Any], where: str, faults: list[str]
) -> _Asked | None:
    """A resource as limits and requests say it together; None: they do not."""
    limit, request = limits.get(name), requests.get(name)
    if limit is None and request is None:
        return None
    listed, value = ("requests", request) if limit is None else ("limits", limit)
    if (
        limit is not None
        and request is not None
        and request != limit
        and count_of(request) != count_of(limit)
    ):
        faults.append(
            f"{where}.requests[{name}]: {shown(request)}: must equal the limit, {shown(limit)}; leave it out"
        )
    return _Asked(name=name, field=f"{where}.{listed}[{name}]", value=value, count=count_of(value))


def _of(asked: Mapping[str, _Asked], names: Iterable[str]) -> list[_Asked]:
    return [asked[name] for name in names if name in asked]


def _count(asked: Mapping[str, _Asked], name: str) -> int:
    return (asked[name].count or 0) if name in asked else 0


_Numbers = tuple[int, int, str | None, str | None]
"""Cores, units of memory, a fault, a warning."""


def _tencent(asked: Mapping[str, _Asked], rules: Rules) -> _Numbers:
    cores = _count(asked, TENCENT_CORE)
    if cores:
        fault = share_fault(
            cores, _count(asked, TENCENT_MEMORY), where=asked[TENCENT_CORE].field, memory=TENCENT_MEMORY
        )
        if fault is not None:
            return 0, 0, fault, None
    units, fault, warning = _units(asked.get(TENCENT_MEMORY), TENCENT_UNIT_BYTES, rules)
    return cores, units, fault, warning


def _aliyun(asked: Mapping[str, _Asked], rules: Rules) -> _Numbers:
    count = _count(asked, ALIYUN_COUNT)
    units, fault, warning = _units(asked.get(ALIYUN_MEMORY), rules.aliyun_unit_bytes, rules)
    if fault is not None or not count:
        return 0, units, fault, warning
    each = asked[ALIYUN_COUNT]
    if units:
        if count == 1:
            return 0, units, None, warning
        return (
            0,
            0,
            (
                f"{each.field}: {count}: must be 1 beside {ALIYUN_MEMORY}, which is a share of one card; "
                f"for {count} whole cards keep {ALIYUN_COUNT} alone"
            ),
            None,
        )
    if count > MOST // CORES_PER_CARD:
        return 0, 0, f"{each.field}: {count}: must be at most {MOST // CORES_PER_CARD}", None
    return count * CORES_PER_CARD, 0, None, None


def _bytes(asked: Mapping[str, _Asked], rules: Rules) -> int:
    aliyun = _count(asked, ALIYUN_MEMORY) * rules.aliyun_unit_bytes
    return aliyun or _count(asked, TENCENT_MEMORY) * TENCENT_UNIT_BYTES


def _units(asked: _Asked | None, unit_bytes: int, rules: Rules) -> tuple[int, str | None, str | None]:
    """Memory in the cluster's units, rounded up: the share itself is not. A fault, a warning."""
    if asked is None:
        return 0, None, None
    size_bytes = (asked.count or 0) * unit_bytes
    units = -(-size_bytes // rules.memory_unit_bytes)
    if units > MOST:
        most = MOST * rules.memory_unit_bytes // unit_bytes
        return 0, f"{asked.field}: {asked.count}: must be at most {most}", None
    if units * rules.memory_unit_bytes == size_bytes:
        return units, None, None
    return (
        units,
        None,
        (
            f"{asked.field}: {asked.count}: counts as {units} {rules.names.memory} "
            f"of {format_size(rules.memory_unit_bytes)}"
        ),
    )

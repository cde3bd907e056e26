"""The node's cards as NVML shows them: which there are, whether they are well, and how they are used.

NVML is the driver's library: it may take seconds, hang, or find no card at all. So it is asked in threads,
and what it said last is kept. Its events tell of faults (XIDs) when they happen; a card that had one is asked
again and again, and is well when it has answered for a while without another fault.
"""

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]

from vcuda import libraries
from vcuda.driver import Card, Driver
from vcuda.errors import VcudaError
from vcuda.kube.nodes import NodeCard

nvml: Any = pynvml
_LOG = logging.getLogger(__name__)

APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 109})
"""Faults of a program, which the card survives: engine exception, page fault, stopped processing, preemptive
cleanup, video processor exception, context switch timeout (NVIDIA, XID Errors)."""
_WAIT_MS = 1000
"""For so long a thread waits for events at a time, and then looks whether it is to end."""


class InventoryError(VcudaError):
    """The driver cannot be loaded, or shows no cards."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A card that is there."""

    card: NodeCard
    name: str
    """With its maker, as NVML has it."""
    minor: int
    """Of its device node."""


@dataclass(frozen=True, kw_only=True)
class Use:
    """How a card is used just now, by anybody."""

    used_bytes: int
    utilisation: float
    """Of the time, 0 to 1, a kernel ran."""
    processes: Mapping[int, int]
    """Bytes by pid, as the driver knows it."""


@dataclass
class _Health:
    """What is known of a card's faults."""

    fault: str | None = None
    well_since: float | None = None
    """CLOCK_MONOTONIC, in seconds: from then on it has answered."""


@dataclass
class Inventory:
    """The cards of one driver. `changed` is called, in some thread, when health changes."""

    changed: Callable[[], None]
    well_seconds: float = 30.0
    driver_dir: Path | None = None
    _found: dict[str, Found] = field(default_factory=dict[str, Found])
    _health: dict[str, _Health] = field(default_factory=dict[str, _Health])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _loaded: bool = False
    _version: str = "?"

    def load(self) -> None:
        """Load the driver's library and see which cards there are; again, for those that were missing before.

        Raises:
            InventoryError: there is no library, it does not work, or it shows no cards.

        """
        if not self._loaded and self.driver_dir is not None:
            path = self.driver_dir / "libnvidia-ml.so.1"
            try:  # first come: by this name, pynvml finds this one
                ctypes.CDLL(os.fspath(path), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise InventoryError(f"{path}: {error}; is driver_dir right?") from error
        try:
            nvml.nvmlInit()
            self._loaded = True
            self._version = _text(nvml.nvmlSystemGetDriverVersion())
            found = {each.card.uuid: each for each in map(_found, range(nvml.nvmlDeviceGetCount()))}
        except nvml.NVMLError as error:
            raise InventoryError(f"NVML: {error}; is the driver installed, and seen from here?") from error
        if not found:
            raise InventoryError("NVML: shows no cards; see 'nvidia-smi'")
        with self._lock:
            self._found |= found
            for uuid in found:
                self._health.setdefault(uuid, _Health())

    @property
    def found(self) -> list[Found]:
        """All cards that were ever seen, as they are now."""
        with self._lock:
            return [
                Found(
                    card=_with_health(each.card, self._health[uuid].fault is None),
                    name=each.name,
                    minor=each.minor,
                )
                for uuid, each in sorted(self._found.items(), key=lambda item: item[1].card.index)
            ]

    @property
    def cards(self) -> list[NodeCard]:
        """The same, as others take them."""
        return [each.card for each in self.found]

    def fault(self, uuid: str) -> str | None:
        """Why a card is not well; None: it is."""
        with self._lock:
            return self._health[uuid].fault if uuid in self._health else "is not there"

    def driver(self, environment: Mapping[str, str], sim_dir: str | None) -> Driver:
        """The driver as the rest of vcuda knows it."""
        return Driver(
            sim_dir=sim_dir,
            environment=environment,
            libcuda=_loaded("libcuda.so") or "libcuda.so.1",
            nvml=_loaded("libnvidia-ml.so"),
            version=self._version,
            cuda=None,
            cards=(),
        )

    def use(self, uuid: str) -> Use | None:
        """How a card is used; None where it does not answer."""
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            utilisation = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            processes = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except nvml.NVMLError:
            return None
        by_pid: dict[int, int] = {}
        for process in processes:
            by_pid[int(process.pid)] = by_pid.get(int(process.pid), 0) + int(process.usedGpuMemory or 0)
        reserved = _reserved_bytes(handle)
        return Use(used_bytes=int(memory.used) - reserved, utilisation=utilisation, processes=by_pid)

    def processes(self, uuid: str) -> list[tuple[int, int]]:
        """Pid and bytes of each process on a card, as the driver lists them; a pid may be there twice."""
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            return [
                (int(each.pid), int(each.usedGpuMemory or 0))
                for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle)
            ]
        except nvml.NVMLError:
            return []

    def check(self, now: float) -> None:
        """Ask each card whether it answers; `now` is CLOCK_MONOTONIC in seconds."""
        for each in self.found:
            uuid = each.card.uuid
            try:
                nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid))
            except nvml.NVMLError as error:
                self._fail(uuid, f"does not answer: {error}")
                continue
            with self._lock:
                health = self._health[uuid]
                if health.fault is None:
                    continue
                health.well_since = health.well_since or now
                if now - health.well_since < self.well_seconds:
                    continue
                _LOG.warning("card %d (%s): is well again; was: %s", each.card.index, uuid, health.fault)
                self._health[uuid] = _Health()
            self.changed()

    def listen(self, stop: threading.Event) -> None:
        """Take in the driver's events until told to stop."""
        while not stop.is_set():
            try:
                events = nvml.nvmlEventSetCreate()
            except nvml.NVMLError as error:
                _LOG.warning("NVML: events cannot be had: %s; faults are found by asking", error)
                return
            try:
                self._listen(events, stop)
            finally:
                with contextlib.suppress(nvml.NVMLError):
                    nvml.nvmlEventSetFree(events)

    def _listen(self, events: Any, stop: threading.Event) -> None:  # noqa: ANN401 (NVML's)
        """Until the set has to be made anew: a card that came back has to be registered again."""
        kinds = nvml.nvmlEventTypeXidCriticalError | nvml.nvmlEventTypeDoubleBitEccError
        registered: set[str] = set()
        for each in self.found:
            with contextlib.suppress(nvml.NVMLError):  # it is lost, or has no events: it is asked
                handle = nvml.nvmlDeviceGetHandleByUUID(each.card.uuid)
                supported = nvml.nvmlDeviceGetSupportedEventTypes(handle)
                nvml.nvmlDeviceRegisterEvents(handle, kinds & supported, events)
                registered.add(each.card.uuid)
        while not stop.is_set():
            if {each.card.uuid for each in self.found if each.card.healthy} - registered:
                return
            try:
                event = nvml.nvmlEventSetWait_v2(events, _WAIT_MS)
            except nvml.NVMLError_Timeout:
                continue
            except nvml.NVMLError as error:
                _LOG.warning("NVML: waiting for events failed: %s", error)
                stop.wait(_WAIT_MS / 1000)
                return
            uuid = self._uuid_of(event)
            if self._take(uuid, int(event.eventType), int(event.eventData)) and uuid:
                registered.discard(uuid)

    def _uuid_of(self, event: Any) -> str | None:  # noqa: ANN401 (NVML's)
        try:
            return _text(nvml.nvmlDeviceGetUUID(event.device))
        except nvml.NVMLError:
            pass
        with contextlib.suppress(nvml.NVMLError):
            index = int(nvml.nvmlDeviceGetIndex(event.device))
            return next((each.card.uuid for each in self.found if each.card.index == index), None)
        return None  # whose it is cannot be said: each card is asked

    def _take(self, uuid: str | None, kind: int, data: int) -> bool:
        """Take in one event; whether a card failed."""
        xid = kind == nvml.nvmlEventTypeXidCriticalError
        if xid and data in APPLICATION_XIDS:
            return False
        if uuid is None:
            self.check(time.monotonic())
            return False
        self._fail(uuid, f"XID {data}" if xid else "double-bit ECC error")
        return True

    def _fail(self, uuid: str, fault: str) -> None:
        with self._lock:
            if uuid not in self._health:
                return
            health = self._health[uuid]
            before, health.well_since = health.fault, None
            # What an event said is worth more than that it does not answer.
            health.fault = before or fault
            index = self._found[uuid].card.index
        if before is None:
            _LOG.error(
                "card %d (%s): %s; nothing new is placed there until it is well again", index, uuid, fault
            )
            self.changed()


def prepare_simulated(directory: Path, models: str) -> Mapping[str, str]:
    """Make this process see simulated cards; the variables that lead other processes of the node to them.

    Raises:
        VcudaError: the simulator was not built, or the directory cannot be made.

    """
    environment = {
        "LD_LIBRARY_PATH": str(libraries.simulator()),
        "SIMGPU_DIR": str(directory),
        "SIMGPU_CARDS": models,
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Processes of any user of any container are to be on this machine.
        directory.chmod(0o777)
    except OSError as error:
        raise VcudaError(f"{directory}: cannot be made: {error.strerror}") from error
    os.environ.update(environment)
    return environment


def open_simulated(directory: Path) -> None:
    """Let processes of any user join the simulated machine, which is there when its cards were seen."""
    with contextlib.suppress(OSError):
        (directory / "machine").chmod(0o666)


def calibration_card(found: Found) -> Card:
    """A card as vcuda.calibration takes it."""
    return Card(
        index=found.card.index,
        uuid=found.card.uuid,
        name=found.name,
        total_bytes=found.card.memory_bytes,
        reserved_bytes=0,
        used_bytes=0,
    )


def _found(index: int) -> Found:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(nvml.nvmlDeviceGetName(handle))
    model = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    try:
        minor = int(nvml.nvmlDeviceGetMinorNumber(handle))
    except nvml.NVMLError:
        minor = index
    card = NodeCard(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        model=model,
        memory_bytes=int(memory.total) - _reserved_bytes(handle),
        numa=_numa(handle),
    )
    return Found(card=card, name=name, minor=minor)


def _reserved_bytes(handle: Any) -> int:  # noqa: ANN401 (NVML's)
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).reserved)
    except nvml.NVMLError:
        return 0  # a driver older than 510 counts it as used


def _numa(handle: Any) -> int | None:  # noqa: ANN401 (NVML's)
    """The NUMA node, as the kernel knows it: few drivers tell."""
    try:
        address = _text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower()
        # NVML writes the domain with eight digits, the kernel with four.
        node = int(Path(f"/sys/bus/pci/devices/{address[-12:]}/numa_node").read_text(encoding="ascii"))
    except (nvml.NVMLError, OSError, ValueError):
        return None
    return node if node >= 0 else None


def _with_health(card: NodeCard, healthy: bool) -> NodeCard:
    if healthy == card.healthy:
        return card
    return replace(card, healthy=healthy)


def _loaded(name: str) -> str | None:
    """The path of a library that this process has mapped."""
    for line in _lines(Path("/proc/self/maps")):
        path = line.rstrip("\n").partition("/")[2]
        if path and name in path.rpartition("/")[2]:
            return "/" + path
    return None


def _lines(path: Path) -> Iterable[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

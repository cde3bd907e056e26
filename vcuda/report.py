"""What `cards`, `ps` and `top` show, as data: for --json as it is, for people through vcuda.commands."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcuda.driver import Card
from vcuda.errors import LedgerError
from vcuda.ledger import CardUse, Ended, Kind, Ledger, Process
from vcuda.machine import Machine, rooms
from vcuda.placement import CardRoom
from vcuda.registry import Registry, Share
from vcuda.units import PPM


@dataclass(frozen=True, kw_only=True)
class CardReport:
    """A card, what is promised of it, and what is used by the driver's own count."""

    machine: Machine
    card: Card
    room: CardRoom

    @property
    def promised_bytes(self) -> int:
        """What shares may use together."""
        return self.card.usable_bytes if self.room.whole else self.card.usable_bytes - self.room.free_bytes

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        driver = self.machine.driver
        return {
            "index": self.card.index,
            "uuid": self.card.uuid,
            "name": self.card.name,
            "simulated": driver.simulated,
            "driver_version": driver.version,
            "cuda_version": driver.cuda,
            "total_bytes": self.card.total_bytes,
            "usable_bytes": self.card.usable_bytes,
            "used_bytes": self.card.used_bytes,
            "promised_bytes": self.promised_bytes,
            "free_bytes": self.room.free_bytes,
            "free_core_percent": self.room.free_ppm * 100 / PPM,
            "shares": self.room.shares,
            "whole": self.room.whole,
        }


@dataclass(frozen=True, kw_only=True)
class ShareReport:
    """A share, its living processes, and the totals of those that are gone."""

    share: Share
    processes: tuple[Process, ...]
    ended: Ended

    @property
    def used_bytes(self) -> int:
        """What its processes hold."""
        return sum(process.cards[0].used_bytes for process in self.processes)

    @property
    def gpu_ns(self) -> int:
        """GPU time of all its processes, those that are gone included."""
        return self.ended.gpu_ns + sum(process.cards[0].gpu_ns for process in self.processes)

    @property
    def launches(self) -> int:
        """Launches of all its processes, those that are gone included."""
        return self.ended.launches + sum(process.cards[0].launches for process in self.processes)

    @property
    def refused(self) -> int:
        """Refused allocations of all its processes, those that are gone included."""
        return self.ended.refused + sum(process.cards[0].refused for process in self.processes)

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        share = self.share
        return {
            "name": share.name,
            "command": list(share.command),
            "run_pid": share.pid,
            "started": share.started,
            "directory": share.directory,
            "card": {
                "uuid": share.card_uuid,
                "name": share.card_name,
                "simulated": share.sim_dir is not None,
            },
            "memory_bytes": share.memory_bytes,
            "used_bytes": self.used_bytes,
            "core_percent": None if share.core_ppm is None else share.core_ppm * 100 / PPM,
            "whole": share.whole,
            "gpu_ns": self.gpu_ns,
            "launches": self.launches,
            "refused": self.refused,
            "processes": [_process_json(process) for process in self.processes],
        }


def cards(machines: Sequence[Machine]) -> list[CardReport]:
    """All cards of all machines."""
    if not machines:
        return []
    registry = machines[0].registry
    with registry.locked():
        shares = registry.shares()
    return [
        CardReport(machine=machine, card=card, room=room)
        for machine in machines
        for card, room in zip(machine.driver.cards, rooms(machine.driver.cards, shares), strict=True)
    ]


def shares(registry: Registry) -> list[ShareReport]:
    """All living shares of this user, oldest first."""
    with registry.locked():
        living = registry.shares()
    return [report for share in living if (report := _read(share)) is not None]


def foreign(process: Process) -> bool:
    """Whether a process lives in another pid namespace, so that its pid means nothing here."""
    try:
        return process.pid_namespace not in (0, Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return False


def kinds(use: CardUse) -> dict[str, int]:
    """What is held, by kind, without the kinds of which there is nothing."""
    return {kind.name.lower(): use.bytes_by_kind[kind] for kind in Kind if use.bytes_by_kind[kind]}


def _read(share: Share) -> ShareReport | None:
    try:
        with Ledger(share.path / "ledger", writable=True) as ledger:
            ledger.reclaim()  # what dead processes used goes to the totals
            reading = ledger.read()
    except LedgerError:
        if share.path.exists():
            raise
        return None  # it ended a moment ago
    return ShareReport(share=share, processes=reading.processes, ended=reading.ended[0])


def _process_json(process: Process) -> dict[str, Any]:
    use = process.cards[0]
    return {
        "pid": process.pid,
        "pid_namespace": process.pid_namespace,
        "comm": process.comm,
        "used_bytes": use.used_bytes,
        "peak_bytes": use.peak_bytes,
        "bytes": {kind.name.lower(): use.bytes_by_kind[kind] for kind in Kind},
        "gpu_ns": use.gpu_ns,
        "launches": use.launches,
        "wait_ns": use.wait_ns,
        "refused": use.refused,
        "refused_bytes": use.refused_bytes,
    }

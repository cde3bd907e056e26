"""What `cards`, `ps` and `top` show, as data: for --json as it is, for people through vcuda.commands."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcuda.driver import Card
from vcuda.errors import GrantError, LedgerError
from vcuda.grant import Effective, LiveGrant
from vcuda.ledger import Bucket, CardUse, Ended, Kind, Ledger, Process
from vcuda.machine import Machine, rooms
from vcuda.placement import CardRoom
from vcuda.registry import Registry, Share, node_directory, node_shares
from vcuda.units import PPM, format_priority


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
    """A share, its living processes, the totals of those that are gone, and what its limiter does."""

    share: Share
    processes: tuple[Process, ...]
    ended: Ended
    bucket: Bucket
    in_force: Effective
    seen_ns: int
    """CLOCK_MONOTONIC."""

    @property
    def rate_ppm(self) -> int | None:
        """The share in force; None for a share that is not limited."""
        limited = not self.share.whole and (self.share.core_ppm or PPM) < PPM
        return self.in_force.rate_ppm if limited else None

    @property
    def used_bytes(self) -> int:
        """What its processes hold."""
        return sum(process.cards[self.share.card].used_bytes for process in self.processes)

    @property
    def gpu_ns(self) -> int:
        """GPU time of all its processes, those that are gone included."""
        return self.ended.gpu_ns + sum(process.cards[self.share.card].gpu_ns for process in self.processes)

    @property
    def launches(self) -> int:
        """Launches of all its processes, those that are gone included."""
        return self.ended.launches + sum(
            process.cards[self.share.card].launches for process in self.processes
        )

    @property
    def refused(self) -> int:
        """Refused allocations of all its processes, those that are gone included."""
        return self.ended.refused + sum(process.cards[self.share.card].refused for process in self.processes)

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
            "core_percent": _percent(share.core_ppm),
            "core_max_percent": _percent(share.core_max_ppm),
            "priority": format_priority(share.priority),
            "whole": share.whole,
            "gpu_ns": self.gpu_ns,
            "limiter": self._limiter_json(),
            "launches": self.launches,
            "refused": self.refused,
            "processes": [_process_json(process, share.card) for process in self.processes],
        }

    def _limiter_json(self) -> dict[str, Any]:
        uses = [process.cards[self.share.card] for process in self.processes]
        return {
            "rate_percent": _percent(self.rate_ppm),
            "slice_percent": _percent(self.in_force.slice_ppm),
            "balance_ns": self.bucket.balance_at(self.seen_ns),
            "starved": self.bucket.starved_ns > self.seen_ns,
            "resets": self.bucket.resets,
            "wait_ns": self.ended.wait_ns + sum(use.wait_ns for use in uses),
            "waits": sum(use.waits for use in uses),
            "wakeups": sum(use.wakeups for use in uses),
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
    """All living shares of this user, oldest first; then those of this node's containers, if one may look."""
    with registry.locked():
        living = registry.shares()
    living += node_shares(node_directory())
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
        with Ledger(share.path / "ledger", writable=True) as ledger, LiveGrant(share.path / "grant") as grant:
            ledger.reclaim()  # what dead processes used goes to the totals
            reading = ledger.read(cards=share.card + 1)
            seen_ns = time.monotonic_ns()
            in_force = grant.in_force(share.card, seen_ns)
    except (LedgerError, GrantError):
        if share.path.exists():
            raise
        return None  # it ended a moment ago
    return ShareReport(
        share=share,
        processes=reading.processes,
        ended=reading.ended[share.card],
        bucket=reading.buckets[share.card],
        in_force=in_force,
        seen_ns=seen_ns,
    )


def _percent(ppm: int | None) -> float | None:
    return None if ppm is None else ppm * 100 / PPM


def _process_json(process: Process, card: int) -> dict[str, Any]:
    use = process.cards[card]
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
        "waits": use.waits,
        "wakeups": use.wakeups,
        "owed_ns": use.owed_ns,
        "refused": use.refused,
        "refused_bytes": use.refused_bytes,
    }

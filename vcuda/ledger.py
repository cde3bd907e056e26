"""The ledger: what the processes of one share use. Made here, written by libvcuda.so, read here.

Who is alive is judged by ledger.c, compiled into vcuda._abi: a slot belongs to the process that holds the
file lock on it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vcuda._abi import ffi, lib
from vcuda.errors import LedgerError

BURST_NS = 10_000_000
"""The most GPU time that an idle share keeps (VCUDA_BURST_NS of bucket.h)."""


class Kind(IntEnum):
    """What bytes of a card are used for; the numbers are enum vcuda_kind's."""

    LINEAR = 0
    MANAGED = 1
    ARRAY = 2
    VMM = 3
    POOL = 4
    GRAPH = 5
    CONTEXT = 6
    MODULE = 7


@dataclass(frozen=True, kw_only=True)
class CardUse:
    """What one process uses of one card."""

    used_bytes: int
    bytes_by_kind: Mapping[Kind, int]
    peak_bytes: int
    gpu_ns: int
    launches: int
    wait_ns: int
    """For so long launches waited for GPU time in all."""
    waits: int
    """So many launches did."""
    wakeups: int
    """So often one of them looked whether it may go."""
    owed_ns: int
    """GPU time paid for that has not been measured yet."""
    active_ns: int
    """CLOCK_MONOTONIC when work was last paid for."""
    refused: int
    """Allocations refused by the limit."""
    refused_bytes: int
    """The size of the last one."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """One living process of a share."""

    pid: int
    """In its own pid namespace."""
    pid_namespace: int
    start_ticks: int
    comm: str
    cards: tuple[CardUse, ...]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Totals of the processes that are gone, on one card."""

    gpu_ns: int
    launches: int
    wait_ns: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """What the limiter keeps for all processes of a share, on one card. They can write anything there."""

    balance_ns: int
    """GPU time that may be used at once; negative: that is owed. As of `refill_ns`."""
    refill_ns: int
    """CLOCK_MONOTONIC, as the next two."""
    active_ns: int
    """When work was last paid for."""
    starved_ns: int
    """Until when a launch had to wait, last; in the future while one does."""
    rate_ppm: int
    """The share at which time comes in since `refill_ns`; 0: nobody has asked for any yet."""
    resets: int
    """Contents that could not be true and were put right."""

    def balance_at(self, now_ns: int) -> int:
        """The balance as it will be found at `now_ns`."""
        return balance_at(self.balance_ns, self.refill_ns, self.rate_ppm, now_ns)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A ledger at one instant."""

    processes: tuple[Process, ...]
    ended: tuple[Ended, ...]
    buckets: tuple[Bucket, ...]


def create(path: Path, *, slots: int = 0) -> None:
    """Make an empty ledger for `slots` processes at once (0 for the default).

    Raises:
        LedgerError: the file cannot be made.

    """
    if not 0 <= slots <= lib.VCUDA_MAX_SLOTS:
        raise LedgerError(f"ledger {path}: {slots} slots; a ledger has 1 to {lib.VCUDA_MAX_SLOTS}")
    status = lib.vcuda_ledger_create(os.fsencode(path), slots)
    if status != lib.VCUDA_LEDGER_OK:
        raise LedgerError(f"ledger {path}: {_reason(status)}")


class Ledger:
    """A ledger mapped for reading, or with `writable` for taking back what dead processes left.

    Raises:
        LedgerError: there is no ledger at `path`, or not one of this version.

    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self._path = path
        self._map = ffi.new("struct vcuda_ledger_map *")
        self._writable = writable
        status = lib.vcuda_ledger_open(self._map, os.fsencode(path), writable)
        if status != lib.VCUDA_LEDGER_OK:
            raise LedgerError(f"ledger {path}: {_reason(status, self._map)}")
        self._open = True
        self._bytes = path.stat().st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; the object is of no use afterwards."""
        if self._open:
            self._open = False
            lib.vcuda_ledger_close(self._map)

    def used_bytes(self, card: int) -> int:
        """The sum of all charges on the grant's `card`-th card."""
        return lib.vcuda_ledger_used(self._map, card)

    def reclaim(self) -> int:
        """Take back the slots of dead processes; returns how many.

        Raises:
            LedgerError: the ledger was opened for reading.

        """
        if not self._writable:
            raise LedgerError("ledger: was opened for reading; open it with writable=True to take slots back")
        return lib.vcuda_ledger_reclaim(self._map)

    def living(self) -> list[int]:
        """The indices of the slots that a living process owns."""
        return [
            index
            for index in range(min(self._map.header.slots_high, self._map.slot_count))
            if lib.vcuda_ledger_alive(self._map, index)
        ]

    def read(self, *, cards: int = 1) -> Reading:
        """The living processes, and the totals of those that are gone, on the first `cards` cards."""
        processes: list[Process] = []
        for index in self.living():
            slot = lib.vcuda_ledger_slot(self._map, index)
            processes.append(
                Process(
                    pid=slot.pid,
                    pid_namespace=slot.pid_ns,
                    start_ticks=slot.start_ticks,
                    comm=ffi.string(slot.comm, 16).decode(errors="replace"),
                    cards=tuple(_use(slot, card) for card in range(cards)),
                )
            )
        header = self._map.header
        ended = tuple(
            Ended(
                gpu_ns=card.ended_gpu_ns,
                launches=card.ended_launches,
                wait_ns=card.ended_wait_ns,
                refused=card.ended_refused,
            )
            for card in (header.cards[index] for index in range(cards))
        )
        buckets = tuple(_bucket(header.cards[index]) for index in range(cards))
        return Reading(processes=tuple(processes), ended=ended, buckets=buckets)

    def pids(self) -> dict[int, set[int]]:
        """The pids of the living processes, by the inode of the pid namespace in which they are these."""
        found: dict[int, set[int]] = {}
        for index in self.living():
            slot = lib.vcuda_ledger_slot(self._map, index)
            found.setdefault(slot.pid_ns, set()).add(slot.pid)
        return found


def balance_of(supply_ns: int, demand_ns: int) -> int:
    """The difference of a bucket's two counters, which wrap, in ns; negative: that is owed."""
    balance = (supply_ns - demand_ns) % 2**64
    return balance - 2**64 if balance >= 2**63 else balance


def balance_at(balance_ns: int, refill_ns: int, rate_ppm: int, now_ns: int) -> int:
    """A balance as of `refill_ns`, in ns, as it will be found at `now_ns`; a new bucket (0) is full."""
    if refill_ns == 0:
        return BURST_NS
    income_ns = max(0, now_ns - refill_ns) * rate_ppm // lib.VCUDA_PPM
    return min(BURST_NS, balance_ns + income_ns)


def _bucket(card: Any) -> Bucket:  # noqa: ANN401 (a cffi struct)
    bucket = card.bucket
    return Bucket(
        balance_ns=balance_of(bucket.supply_ns, bucket.demand_ns),
        refill_ns=bucket.refill_ns,
        active_ns=card.active_ns,
        starved_ns=card.starved_ns,
        rate_ppm=bucket.rate_ppm,
        resets=bucket.resets,
    )


def _use(slot: Any, card: int) -> CardUse:  # noqa: ANN401 (a cffi struct)
    use = slot.cards[card]
    return CardUse(
        used_bytes=lib.vcuda_slot_used(slot, card),
        bytes_by_kind={kind: use.bytes[kind] for kind in Kind},
        peak_bytes=use.peak_bytes,
        gpu_ns=use.gpu_ns,
        launches=use.launches,
        wait_ns=use.wait_ns,
        waits=use.waits,
        wakeups=use.wakeups,
        owed_ns=use.owed_ns,
        active_ns=use.active_ns,
        refused=use.refused,
        refused_bytes=use.refused_bytes,
    )


def _reason(status: int, ledger: Any = None) -> str:  # noqa: ANN401 (a cffi struct)
    if status == lib.VCUDA_LEDGER_VERSION and ledger is not None:
        theirs = f"{ledger.other_major}.{ledger.other_minor}"
        return f"is of ABI version {theirs}; this vcuda reads {lib.VCUDA_ABI_MAJOR}.x"
    return {
        lib.VCUDA_LEDGER_MISSING: f"cannot be opened: {os.strerror(ffi.errno)}",
        lib.VCUDA_LEDGER_READ_ONLY: "is read-only",
        lib.VCUDA_LEDGER_TRUNCATED: "is truncated",
        lib.VCUDA_LEDGER_GARBAGE: "is not a ledger",
        lib.VCUDA_LEDGER_VERSION: "is of another ABI version",
        lib.VCUDA_LEDGER_FULL: "is full: every slot has a living process",
        lib.VCUDA_LEDGER_NO_SPACE: "the file system is full",
        lib.VCUDA_LEDGER_NO_LOCKS: "the kernel has no open-file-description locks (Linux 3.15 has)",
    }.get(status, f"failed with status {status}")

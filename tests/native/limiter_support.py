"""What tests of the limiter share: a share of a simulated card's GPU time, and processes that use it.

GPU time is what the card's own timeline says (native/tests/clients/limiter_stat.c), never what the limiter
believes.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import subprocess
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import BUILD, GIB, card_uuids, make_share, shim_environment, told
from vcuda._abi import ffi, lib
from vcuda.ledger import Ledger

CLIENTS = BUILD / "clients"
BURST_NS = 10_000_000
"""The most that an idle share keeps: VCUDA_BURST_NS of native/shim/bucket.h."""
PPM = lib.VCUDA_PPM
PERCENT = PPM // 100
MS = 1_000_000
SECOND = 1_000_000_000
STUCK_SECONDS = 60
"""Longer than anything here takes, on the slowest machine."""

_FUTEX = {"x86_64": 202, "aarch64": 98}[platform.machine()]
_FUTEX_WAKE = 1


@dataclass(frozen=True)
class Timeline:
    """What a card has done up to an instant of CLOCK_MONOTONIC."""

    now_ns: int
    operations: int
    """Kernels, events and whatever else was submitted."""
    busy_ns: int


def timeline(env: Mapping[str, str]) -> Timeline:
    """The first card's."""
    return Timeline(**told(env, CLIENTS / "limiter_stat", timeout=STUCK_SECONDS))


def share_between(before: Timeline, after: Timeline) -> float:
    """Percent of the time in which the card worked."""
    return 100 * (after.busy_ns - before.busy_ns) / (after.now_ns - before.now_ns)


def share_over(env: Mapping[str, str], seconds: float) -> float:
    """Percent of the time from now on in which the card works."""
    before = timeline(env)
    time.sleep(seconds)
    return share_between(before, timeline(env))


def meets(env: Mapping[str, str], percent: float, points: float, seconds: float = 3) -> bool:
    """Whether the card works for so many percent of the time: never for more, and for as much once it may.

    A busy machine submits late, and a share that is not used is lost; so a window with less is given two more
    chances, one with more is not.
    """
    for _ in range(3):
        share = share_over(env, seconds)
        if share > percent + points:
            return False
        if share >= percent - points:
            return True
    return False


def switches(pid: int) -> int:
    """How often threads of a process have been switched away from: each wake-up makes one."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        for line in status.read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total


def cpu_ns(pid: int) -> int:
    """Processor time of all threads that a process has."""
    return sum(int(stat.read_text().split()[0]) for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"))


class Load:
    """A running limiter_load; see native/tests/clients/limiter_load.c for its modes."""

    def __init__(self, env: Mapping[str, str], *arguments: object, under: tuple[str, ...] = ()) -> None:
        self._process = subprocess.Popen(
            [*under, str(CLIENTS / "limiter_load"), *map(str, arguments)],
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def say(self, step: str) -> None:
        """Give it a step without waiting for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{step}\n")
        self._process.stdin.flush()

    def answer(self) -> tuple[int, int]:
        """CLOCK_MONOTONIC before and after the next step that was said, in ns."""
        before, after = map(int, self._line().split())
        return before, after

    def step(self, step: str) -> tuple[int, int]:
        self.say(step)
        return self.answer()

    def launch(self, us: int, count: int = 1) -> tuple[int, int]:
        return self.step(f"launch {us} {count}")

    def sync(self) -> tuple[int, int]:
        return self.step("sync")

    def end(self) -> tuple[int, int]:
        """Let it end, as it has to: launches taken, and the longest one in ns."""
        output, _ = self._process.communicate(timeout=STUCK_SECONDS)
        assert self._process.returncode == 0
        launches, longest_ns = map(int, output.split() or (0, 0))
        return launches, longest_ns

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


class Container:
    """A share of the first card of a simulated machine; whatever was started in it is killed at its end."""

    def __init__(self, tmp_path: Path, env: Mapping[str, str], core_ppm: int, **card: Any) -> None:
        card = {"core_max_ppm": core_ppm, **card}
        self.machine = dict(env)
        self.directory = make_share(tmp_path, card_uuids(env)[0], 8 * GIB, core_ppm=core_ppm, **card)
        self.env = shim_environment(env, self.directory)
        self._loads: list[Load] = []
        self._ledger = Ledger(self.directory / "ledger", writable=True)
        self._words = ffi.new("struct vcuda_ledger_map *")
        opened = lib.vcuda_ledger_open(self._words, os.fsencode(self.directory / "ledger"), True)
        assert opened == lib.VCUDA_LEDGER_OK
        path = self.directory / "grant"
        path.chmod(0o644)
        with path.open("r+b") as file:
            self._grant = mmap.mmap(file.fileno(), 0)
        path.chmod(0o444)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for load in self._loads:
            load.kill()
        self._ledger.close()
        lib.vcuda_ledger_close(self._words)

    def start(self, *arguments: object, under: tuple[str, ...] = ()) -> Load:
        load = Load(self.env, *arguments, under=under)
        self._loads.append(load)
        return load

    @contextlib.contextmanager
    def newcomer(self, *arguments: object) -> Generator[Load]:
        """A load that is killed when the block is left."""
        load = self.start(*arguments)
        try:
            yield load
        finally:
            load.kill()

    # ---- the grant ----

    @property
    def grant(self) -> Any:
        """The card's part of the grant, live."""
        file = ffi.from_buffer("struct vcuda_grant *", self._grant)
        return ffi.addressof(file.cards, 0)[0]

    def announce(self) -> None:
        """Tell who waits that something of the grant has changed."""
        card = self.grant
        card.changes = (card.changes + 1) % 2**32
        at = int(ffi.cast("uintptr_t", ffi.addressof(card, "changes")))
        ctypes.CDLL(None).syscall(_FUTEX, ctypes.c_void_p(at), _FUTEX_WAKE, 2**31 - 1, None, None, 0)

    def change(self, core_ppm: int) -> int:
        """Change the share in place; returns CLOCK_MONOTONIC just before it is in force, in ns."""
        card = self.grant
        card.core_max_ppm = max(core_ppm, card.core_max_ppm)
        now_ns = time.monotonic_ns()
        card.core_ppm = core_ppm
        card.core_max_ppm = core_ppm
        self.announce()
        return now_ns

    # ---- the ledger ----

    @property
    def card(self) -> Any:
        """The card's part of the ledger, live."""
        return self._words.header.cards[0]

    @property
    def bucket(self) -> Any:
        return self.card.bucket

    def balance_ns(self) -> int:
        """As of the last refill; negative: debt."""
        wrapped = (self.bucket.supply_ns - self.bucket.demand_ns) % 2**64
        return wrapped - 2**64 if wrapped >= 2**63 else wrapped

    def living(self) -> list[Any]:
        """The slots of living processes."""
        return [lib.vcuda_ledger_slot(self._words, index) for index in self._ledger.living()]

    def slots_used(self) -> int:
        """How many slots have ever been taken."""
        return self._words.header.slots_high

    def use(self, load: Load) -> Any:
        """What a process uses, live."""
        (slot,) = [slot for slot in self.living() if slot.pid == load.pid]
        return slot.cards[0]

    def reclaim(self) -> None:
        self._ledger.reclaim()


def end_of(process: subprocess.Popen[str], seconds: float) -> tuple[str, str]:
    """What a program says until its end, or until it is taken to hang and killed."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return output, f"{errors}(hangs)"


def begin(env: Mapping[str, str], client: str, *arguments: object) -> subprocess.Popen[str]:
    """Start any client; its output is kept."""
    return subprocess.Popen(
        [str(CLIENTS / client), *map(str, arguments)],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def garbage_words(seed: int) -> list[int]:
    """64-bit patterns that no honest counter holds, and some that one might."""
    state = (seed * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64
    nan = 0x7FF8_0000_0000_0000
    return [
        state,
        nan,
        nan | 2**63 | 1,
        2**64 - 1,
        0,
        1,
        2**63,
        2**63 - 1,
        0x7FF0_0000_0000_0000,
        state >> 17,
        int.from_bytes(os.urandom(8), "little"),
    ]

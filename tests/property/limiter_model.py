"""A container's processes on one card, on a simulated clock, over the shim's own bucket.

Processes ask, wait and launch; the card runs what was admitted, one after the other; measurements arrive late
and correct the bucket; processes are killed; somebody writes noise into the bucket. Nothing here decides how
long a launch waits: the C does. All times are integers in ns, shares in parts per million.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from vcuda._abi import ffi, lib

MS = 10**6
S = 10**9
PPM = 10**6
BEGIN = 10**15
BURST = lib.VCUDA_BUCKET_BURST_NS
LEAST = lib.VCUDA_BUCKET_LEAST_NS
DEBT = lib.VCUDA_DEBT_NS
SOON = 5000
"""What a wait is too short for: SOON_NS in native/shim/limiter.c."""
AHEAD = lib.VCUDA_BUCKET_AHEAD_NS


def signed(word: int) -> int:
    """A difference of two words that wrap."""
    return (word + 2**63) % 2**64 - 2**63


@dataclass(frozen=True)
class Job:
    """One launch of a process's program."""

    true_ns: int
    paid_ns: int
    """What it is predicted to take."""
    pause_ns: int = 0
    """Between the launch before and this one."""
    measured_after_ns: int = 0
    """From its end until the bucket is corrected."""
    waits_for_end: bool = False
    """Whether the program waits for it to end before it goes on."""
    oversleeps_ns: int = 0
    """How much later than asked for each of its sleeps ends."""
    old_clock_ns: int = 0
    """How long before it refills the process has read the clock."""


@dataclass
class Launch:
    """What became of a job."""

    job: Job
    process: int
    asked_ns: int
    ticket: int
    behind_ns: int
    """What was ahead of it when it asked: GPU time, in ns."""
    sleeps: int = 0
    admitted_ns: int | None = None
    start_ns: int = 0
    end_ns: int = 0
    corrected_ns: int | None = None
    charged_ns: int = 0
    """What is taken for it in the end: less than was paid, if its process died first."""
    late_ns: int = 0
    """What had been paid, when it went, for launches that might have gone and slept on: to give something
    back wakes nobody."""
    died_ns: int | None = None


@dataclass
class Scene:
    """The programs, by process, and what else happens."""

    programs: list[list[Job]]
    share: int
    changes: list[tuple[int, int]] = field(default_factory=list)
    """The share in force from an instant (after BEGIN) on."""
    kills: list[tuple[int, int]] = field(default_factory=list)
    """Instant (after BEGIN), process."""
    noise: tuple[int, Callable[[Any], None]] | None = None
    """Instant (after BEGIN), and what is done to the bucket then."""


class Model:
    """A run of a scene; `launches` in the order in which they asked."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.rate = scene.share
        self.bucket = ffi.new("struct vcuda_bucket *")
        lib.vcuda_bucket_refill(self.bucket, BEGIN, scene.share)
        self.now = BEGIN
        self.card_free = BEGIN
        self.launches: list[Launch] = []
        jobs = [job for program in scene.programs for job in program]
        self.slept = max((job.oversleeps_ns + job.old_clock_ns for job in jobs), default=0)
        self.raised: list[tuple[int, int]] = []
        """Corrections that took something: instant, ns."""
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._dead: set[int] = set()
        self._waiting: list[Launch] = []

    def run(self) -> Model:
        """Everything until nothing happens any more."""
        for process, program in enumerate(self.scene.programs):
            if program:
                self._at(BEGIN + program[0].pause_ns, self._asker(process, 0))
        for after, rate in self.scene.changes:
            self._at(BEGIN + after, lambda rate=rate: self._change(rate))
        for after, process in self.scene.kills:
            self._at(BEGIN + after, lambda process=process: self._kill(process))
        if self.scene.noise:
            after, write = self.scene.noise
            self._at(BEGIN + after, lambda: write(self.bucket))
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        return self

    def _at(self, instant: int, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (instant, next(self._order), happens))

    def _refill(self, job: Job) -> None:
        lib.vcuda_bucket_refill(self.bucket, max(self.now - job.old_clock_ns, BEGIN), self.rate)
        assert lib.vcuda_bucket_balance(self.bucket) <= BURST

    def _asker(self, process: int, index: int) -> Callable[[], None]:
        def ask() -> None:
            if process in self._dead:
                return
            job = self.scene.programs[process][index]
            self._refill(job)
            ticket = lib.vcuda_bucket_take(self.bucket, job.paid_ns)
            behind = signed(ticket - self.bucket.supply_ns)
            launch = Launch(job, process, self.now, ticket, max(behind, 0), charged_ns=job.paid_ns)
            self.launches.append(launch)
            self._waiting.append(launch)
            self._look(launch, index)

        return ask

    def _look(self, launch: Launch, index: int) -> None:
        if launch.died_ns is not None or launch.admitted_ns is not None:
            return
        wait = lib.vcuda_bucket_wait_at_ns(self.bucket, launch.ticket, self.bucket.rate_ppm)
        if wait > SOON:
            launch.sleeps += 1
            asleep = launch.sleeps

            def wake() -> None:
                if launch.sleeps == asleep and launch.died_ns is None:
                    self._refill(launch.job)
                    self._look(launch, index)

            launch.wake = wake  # type: ignore[attr-defined]
            self._at(self.now + wait + launch.job.oversleeps_ns, wake)
            return
        self._go(launch)
        self._waiting.remove(launch)
        program = self.scene.programs[launch.process]
        if index + 1 < len(program):
            ready = launch.end_ns if launch.job.waits_for_end else self.now
            self._at(ready + program[index + 1].pause_ns, self._asker(launch.process, index + 1))

    def _go(self, launch: Launch) -> None:
        job = launch.job
        launch.admitted_ns = self.now
        for each in self._waiting:
            if each.sleeps and signed(self.bucket.supply_ns - each.ticket) > share_of(self, self.slept):
                launch.late_ns += each.job.paid_ns
        launch.start_ns = max(self.now, self.card_free)
        launch.end_ns = self.card_free = launch.start_ns + job.true_ns
        self._at(launch.end_ns + job.measured_after_ns, lambda: self._measured(launch))

    def _measured(self, launch: Launch) -> None:
        if launch.died_ns is None:
            self._correct(launch.job.true_ns - launch.job.paid_ns)
            launch.corrected_ns = self.now

    def _correct(self, more_ns: int) -> None:
        lib.vcuda_bucket_correct(self.bucket, more_ns)
        if more_ns > 0:
            self.raised.append((self.now, more_ns))

    def _change(self, rate: int) -> None:
        """Who waits is woken, as by the grant's futex; who does not looks when it asks."""
        self.rate = rate
        for launch in list(self._waiting):
            launch.wake()  # type: ignore[attr-defined]

    def _kill(self, process: int) -> None:
        """What it had paid and nobody can have used is given back, as where its slot is taken back."""
        if process in self._dead:
            return
        self._dead.add(process)
        for launch in self.launches:
            if launch.process != process or launch.corrected_ns is not None:
                continue
            launch.died_ns = self.now
            if launch in self._waiting:
                self._waiting.remove(launch)
                self._correct(-launch.job.paid_ns)
                continue
            ran = max(self.now - launch.start_ns, 0)
            launch.charged_ns = min(launch.job.paid_ns, ran)
            self._correct(launch.charged_ns - launch.job.paid_ns)


def admitted(model: Model) -> list[Launch]:
    """What ran, in that order."""
    ran = [launch for launch in model.launches if launch.admitted_ns is not None]
    return sorted(ran, key=lambda launch: launch.start_ns)


def share_of(model: Model, window: int) -> int:
    """The share of a window, with what is too short to be slept or written down, in ns."""
    return model.scene.share * (window + SOON + LEAST) // PPM + 1


def widest_overuse(model: Model) -> int:
    """By how much the worst window of any length exceeds what it may have, in ns; not positive if none does.

    A window [x, y] may have share x (y - x) + burst + one launch, and, with s the instant since which the
    card has been busy at x:

    - what launches admitted since s took more than was paid, not corrected yet when the last ticket of all
      was admitted: who overslept its ticket goes though a correction has come since;
    - what had been paid too much before s, and was given back since; and what the dead had paid;
    - what had been paid for launches that overslept at s, and what comes in while one oversleeps.

    Only windows that begin with one launch and end with another need be looked at.
    """
    ran = admitted(model)
    worst = -(10**30)
    for first, begin in enumerate(ran):
        idle = first
        while idle and ran[idle - 1].end_ns == ran[idle].start_ns:
            idle -= 1
        since = ran[idle].admitted_ns or 0
        before = ran[:idle]
        returned = sum(
            max(each.job.paid_ns - each.job.true_ns, 0)
            for each in before
            if each.corrected_ns is None or each.corrected_ns >= since
        ) + sum(each.job.paid_ns for each in model.launches if (each.died_ns or 0) >= since)
        used = 0
        for last in range(first, len(ran)):
            used += ran[last].job.true_ns
            within = ran[idle : last + 1]
            decided = max(ran[: last + 1], key=lambda each: each.ticket).admitted_ns or 0
            unknown = sum(
                max(each.job.true_ns - each.charged_ns, 0)
                for each in within
                if each.corrected_ns is None or each.corrected_ns >= decided
            )
            one = max(each.job.paid_ns for each in within)
            window = ran[last].end_ns - begin.start_ns
            known = share_of(model, window) + share_of(model, model.slept) + BURST
            worst = max(worst, used - known - one - unknown - returned - ran[idle].late_ns)
    return worst

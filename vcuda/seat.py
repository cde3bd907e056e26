"""One share on one card, as the governor sees it: what it has, wants, and has lately been at."""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vcuda.arbiter import STARVED_NS, Claim, Memory, Promise, Sight, judge
from vcuda.grant import CardGrant, LiveGrant
from vcuda.slicing import Among, Slicing
from vcuda.turns import Span
from vcuda.units import PPM
from vcuda.utilisation import Answer
from vcuda.watched import View, Watched, Worker

CONFIRM_NS = 180_000_000
"""A share in force is confirmed so often; it holds for a second."""
LEARN_NS = 450_000_000
"""So much time must have been counted to learn from it."""
KEPT_NS = 4_000_000_000
"""For so long what was estimated is kept: the driver's count comes late."""
UNTOLD_MOST = 0.02
"""Of a share that had more of a card's time, and of which nothing is told, the driver knows no process."""
GRACE_NS = 50_000_000
"""Who has ended no longer ago is still at work."""
WAITS_NS = 250_000_000
"""And who waits for time, and has ended no longer ago than that."""
LATELY_NS = 1_000_000_000
"""Who has worked so lately may soon work again."""
_REPORTS = 8
"""Intervals that a ledger keeps."""
_MOST_REPORTS = 1_000_000
_MISSED_MOST = 0.1
_FUTURE_NS = 1_000_000_000
_PENDING_MOST_NS = 100_000_000_000
"""What says that more is to come, or from so far ahead, was not written by the shim."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A share to be governed."""

    grant: Path
    ledger: Path
    pids: Callable[[], Collection[int]]
    """The living processes, as the driver knows them."""
    driver: Mapping[str, str] = field(default_factory=dict[str, str])
    """The environment variables that lead to the driver of its cards."""


@dataclass
class _Process:
    """What one process has been at."""

    launches: int
    ended_ns: int = 0
    """Its last work that was reported."""
    length_ns: int = 0
    """Of that."""
    since_ns: int = 0
    """When the work began that goes on; 0: none does."""
    until_ns: int = 0
    """When that is expected to end."""


@dataclass(slots=True)
class _Point:
    """What was estimated of a share, up to an instant."""

    at_ns: int
    estimated_ns: float
    had_ns: float
    among: Among


@dataclass
class Seat:
    """One card of a member."""

    number: int
    """No other seat ever has the same."""
    member: Member
    grant: LiveGrant
    ledger: Watched
    index: int
    uuid: str
    memory: Memory = field(default_factory=Memory)
    confirmed_ns: int = 0
    corrected_ns: int = 0
    limited: bool = False
    view: View | None = None
    looked_ns: int = 0
    spans: list[tuple[int, Span]] = field(default_factory=list[tuple[int, Span]])
    """By slot: the work reported since the look before."""
    reports_per_ns: float = 0.0
    """Lately."""
    missed: float = 0.0
    """The part of them that was overwritten before anybody looked, lately."""
    grown_ns: float = 0.0
    """By its own clock, neighbours' turns included: work since the look before."""
    part: float = 0.0
    """Of the time in which it was at work, lately."""
    processes: dict[int, _Process] = field(default_factory=dict[int, _Process])
    slicing: Slicing = field(default_factory=Slicing)
    points: list[_Point] = field(default_factory=list[_Point])
    heard: Answer | None = None
    pids: set[int] = field(default_factory=set[int])
    """All that it ever had, for as long as it has neighbours."""

    _promise: tuple[CardGrant, Promise] | None = None

    def look(self, now_ns: int) -> tuple[CardGrant, Claim | None]:
        """See what it has and wants; None for a share that is not limited."""
        granted = self.grant.card(self.index)
        before, self.view = self.view, self.ledger.view(self.index)
        self.limited = not (granted.whole or granted.core_ppm >= PPM)
        self._follow(before, self.view, now_ns)
        self.looked_ns = now_ns
        if not self.limited:
            return granted, None
        if self._promise is None or self._promise[0] is not granted:
            self._promise = (
                granted,
                Promise(
                    guarantee_ppm=granted.core_ppm,
                    ceiling_ppm=granted.core_max_ppm,
                    priority=granted.priority,
                ),
            )
        promise = self._promise[1]
        sight = Sight(
            now_ns=now_ns,
            active_ns=self.view.active_ns,
            starved_ns=self.view.starved_ns,
            balance_ns=self.view.balance_at(now_ns),
            gpu_ns=self.view.gpu_ns,
        )
        self.memory = judge(self.memory, sight, promise)
        return granted, Claim(promise=promise, demand_ppm=self.memory.demand_ppm)

    def put_in_force(self, rate_ppm: int, granted: CardGrant, now_ns: int) -> None:
        """Write a rate where it is another, or must be confirmed; the guarantee holds by itself."""
        in_force = self.grant.in_force(self.index, now_ns).rate_ppm
        if rate_ppm == granted.core_ppm:
            if in_force != rate_ppm:
                self.grant.confirm_rate(self.index, rate_ppm, now_ns)
            self.confirmed_ns = 0
        elif in_force != rate_ppm or now_ns - self.confirmed_ns >= CONFIRM_NS:
            self.grant.confirm_rate(self.index, rate_ppm, now_ns)
            self.confirmed_ns = now_ns

    def correct(self, slice_ppm: int, now_ns: int) -> None:
        """Write how much of what is measured is truly had, where it is another, or must be confirmed."""
        none = slice_ppm >= PPM
        in_force = self.grant.in_force(self.index, now_ns).slice_ppm
        if slice_ppm != in_force or (not none and now_ns - self.corrected_ns >= CONFIRM_NS):
            self.grant.correct_slice(self.index, 0 if none else slice_ppm, now_ns)
            self.corrected_ns = now_ns

    # ---- what it has been at ----

    def _follow(self, before: View | None, view: View, now_ns: int) -> None:
        """Take in what has been reported since the look before, and what is expected to go on."""
        slice_ppm = self.grant.in_force(self.index, now_ns).slice_ppm if self.limited else PPM
        known, self.processes, self.spans = self.processes, {}, []
        for worker in view.workers:
            self.processes[worker.slot] = known.get(worker.slot) or _Process(launches=worker.launches)
        for busy in view.fresh(before):
            process = self.processes.get(busy.slot)
            if process is None or not now_ns - KEPT_NS < busy.from_ns < busy.to_ns <= now_ns + _FUTURE_NS:
                continue
            self.spans.append((busy.slot, (busy.from_ns, busy.to_ns)))
            if busy.to_ns > process.ended_ns:
                process.ended_ns, process.length_ns = busy.to_ns, busy.to_ns - busy.from_ns
        for worker in view.workers:
            self._expect(self.processes[worker.slot], worker, slice_ppm, now_ns)
        if before is None:
            return
        passed_ns = max(1, now_ns - self.looked_ns)
        gain = min(1.0, passed_ns / WAITS_NS)
        reports = min(_MOST_REPORTS, (view.reports - before.reports) % 2**64)
        self.reports_per_ns += gain * (reports / passed_ns - self.reports_per_ns)
        self.missed += gain * (max(0.0, 1 - _REPORTS / max(1, reports)) - self.missed)
        # Of several processes, each may have been at work all the time, but the share only once.
        grown_ns = max(0, view.gpu_ns - before.gpu_ns) * PPM / slice_ppm
        self.grown_ns = min(grown_ns, 4.0 * LATELY_NS)
        self.part = min(1.0, self.part + gain * (self.grown_ns / passed_ns - self.part))

    def _expect(self, process: _Process, worker: Worker, slice_ppm: int, now_ns: int) -> None:
        active_ns = worker.active_ns if worker.active_ns <= now_ns + _FUTURE_NS else 0
        pending_ns = min(worker.pending_ns, _PENDING_MOST_NS) * PPM // slice_ppm
        if not self.limited:  # it pays for nothing: that it works is seen by its launches
            active_ns = now_ns if worker.launches != process.launches else 0
            pending_ns = process.length_ns
        process.launches = worker.launches
        goes_on = process.until_ns > process.ended_ns  # there was more to come than what has ended
        if active_ns:
            process.until_ns = active_ns + pending_ns
        if process.until_ns <= process.ended_ns:
            process.since_ns = 0
        elif process.since_ns < process.ended_ns or not process.since_ns:
            process.since_ns = process.ended_ns if goes_on else max(process.ended_ns, active_ns)

    def pending(self) -> dict[int, Span]:
        """By slot: work that is expected to go on, and is not reported yet."""
        return {
            slot: (process.since_ns, process.until_ns)
            for slot, process in self.processes.items()
            if 0 < process.since_ns < process.until_ns
        }

    @property
    def latest_ns(self) -> int:
        """Until when any of its processes worked, or is expected to; 0: none did."""
        return max((max(each.until_ns, each.ended_ns) for each in self.processes.values()), default=0)

    def at_work(self, now_ns: int) -> bool:
        """Whether it is, or waits for time in between."""
        latest_ns = self.latest_ns
        waits = self.view is not None and now_ns < self.view.starved_ns <= now_ns + _PENDING_MOST_NS
        return now_ns - latest_ns < (WAITS_NS if waits else GRACE_NS)

    def lately(self, now_ns: int) -> bool:
        """Whether it was at work lately, or waits."""
        if self.view is None:
            return False
        starved = now_ns - STARVED_NS < self.view.starved_ns <= now_ns + _PENDING_MOST_NS
        return starved or now_ns - self.latest_ns < LATELY_NS

    @property
    def seen(self) -> bool:
        """Whether its intervals are looked at so often that few are missed."""
        return self.missed < _MISSED_MOST

    # ---- what the driver says of it ----

    def estimate(self, among: Among, at_ns: int) -> None:
        """Remember what is estimated so far, up to `at_ns`; `among` holds since the point before."""
        point = _Point(at_ns, self.slicing.estimated_ns, self.slicing.had_ns, among)
        if self.points and self.points[-1].at_ns >= at_ns:
            return
        self.points.append(point)
        if at_ns - self.points[0].at_ns > 2 * KEPT_NS:
            del self.points[: bisect_left(self.points, at_ns - KEPT_NS, key=_instant)]

    def hear(self, answer: Answer) -> None:
        """Learn from the driver's count; nothing, where it does not know the share's processes.

        Believed, it would mean that the share has had nothing, and is owed all that it works for.
        """
        heard, points = self.heard, self.points
        if not points or not points[0].at_ns <= answer.until_ns <= points[-1].at_ns:
            return
        if heard is None or heard.until_ns < points[0].at_ns:
            self.heard = answer
            return
        if answer.until_ns - heard.until_ns < LEARN_NS:
            return
        self.heard = answer
        told_ns = sum(max(0, answer.used_ns.get(pid, 0) - heard.used_ns.get(pid, 0)) for pid in self.pids)
        first, last = (bisect_left(points, each.until_ns, key=_instant) for each in (heard, answer))
        sets = {point.among for point in points[first : last + 1]}
        then, now = _at(points, first, heard.until_ns), _at(points, last, answer.until_ns)
        if not told_ns and now[1] - then[1] > UNTOLD_MOST * (answer.until_ns - heard.until_ns):
            return
        self.slicing.hear(
            sets.pop() if len(sets) == 1 else None,
            told_ns=told_ns,
            estimated_ns=now[0] - then[0],
            had_ns=now[1] - then[1],
            passed_ns=answer.until_ns - heard.until_ns,
        )

    def be_alone(self) -> None:
        """Nobody has worked beside it lately."""
        self.points.clear()
        self.pids.clear()
        self.heard = None
        self.slicing.carried_ns = self.slicing.slow_ns = 0.0


def _instant(point: _Point) -> int:
    return point.at_ns


def _at(points: list[_Point], after: int, at_ns: int) -> tuple[float, float]:
    """What was estimated, and had, up to an instant; the point `after` is the first that is not before."""
    two = points[after]
    if after == 0 or two.at_ns == at_ns:
        return two.estimated_ns, two.had_ns
    one = points[after - 1]
    part = (at_ns - one.at_ns) / (two.at_ns - one.at_ns)
    return (
        one.estimated_ns + part * (two.estimated_ns - one.estimated_ns),
        one.had_ns + part * (two.had_ns - one.had_ns),
    )

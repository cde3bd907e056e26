"""What was measured, and whether it is what it must be. Pure: values in, values out.

A container's share of a card, over a stretch of time, is the time in which at least one of its kernels ran,
divided by the stretch. Windows begin and end at instants at which the card was looked at, so that nothing is
interpolated.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from vcuda.bench.cases import Case, Member, Run, S

MEAN_POINTS = 0.5
"""By how much the mean may differ from the share, in percent of the card."""
WINDOW_NS = S
WINDOW_POINTS = 2.0
"""By how much a window may differ from it, beside what one launch of the longest makes inevitable."""
THROUGHPUT = 0.98
WHOLE_THROUGHPUT = 0.995
FAIRNESS = 0.99
LATENCY_RATIO = 1.5
YIELD_NS = 100_000_000
"""Within this a neighbour that comes back has its guarantee again."""
YIELD_WINDOW_NS = 500_000_000
CHANGE_NS = 200_000_000
"""Within this a changed share is in force."""
ENOUGH = 0.03
"""Work is enough for a share if without a limit it fills this much more of the card than the share."""


@dataclass(frozen=True)
class Point:
    """What a process has had until an instant."""

    at_ns: int
    busy_ns: int
    kernels: int


@dataclass(frozen=True)
class Curve:
    """Points in the order of time."""

    points: tuple[Point, ...]

    def busy_at(self, at_ns: int) -> float:
        """Interpolated; before the first point nothing, after the last no more."""
        index = bisect.bisect_left(self.points, at_ns, key=lambda point: point.at_ns)
        if index == len(self.points):
            return self.points[-1].busy_ns if self.points else 0
        after = self.points[index]
        if index == 0 or after.at_ns == at_ns:
            return after.busy_ns if after.at_ns == at_ns else 0
        before = self.points[index - 1]
        part = (at_ns - before.at_ns) / (after.at_ns - before.at_ns)
        return before.busy_ns + part * (after.busy_ns - before.busy_ns)

    def share(self, from_ns: int, to_ns: int) -> float:
        """Of that stretch."""
        return (self.busy_at(to_ns) - self.busy_at(from_ns)) / (to_ns - from_ns)

    def between(self, from_ns: int, to_ns: int) -> "Curve":
        """The points in that stretch."""
        return Curve(tuple(point for point in self.points if from_ns <= point.at_ns <= to_ns))


def summed(curves: Sequence[Curve]) -> Curve:
    """The sum, at every instant at which one of them has a point."""
    if len(curves) == 1:
        return curves[0]
    instants = sorted({point.at_ns for curve in curves for point in curve.points})
    return Curve(tuple(Point(at, round(sum(each.busy_at(at) for each in curves)), 0) for at in instants))


@dataclass(frozen=True)
class Window:
    """A stretch of at least WINDOW_NS, and the share that was had of it."""

    from_ns: int
    to_ns: int
    share: float


def windows(curve: Curve, length_ns: int = WINDOW_NS) -> list[Window]:
    """From each point to the first one that is `length_ns` later."""
    found: list[Window] = []
    end = 0
    for begin in curve.points:
        while end < len(curve.points) and curve.points[end].at_ns - begin.at_ns < length_ns:
            end += 1
        if end == len(curve.points):
            break
        last = curve.points[end]
        found.append(
            Window(begin.at_ns, last.at_ns, (last.busy_ns - begin.busy_ns) / (last.at_ns - begin.at_ns))
        )
    return found


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 if all are equal, 1/n if one has everything (Jain, Chiu, Hawe 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


# ---- what a run leaves ----


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a client says of one of its processes; see native/bench/cores.c."""

    pid: int
    work_ns: int
    longest_ns: int
    began_ns: int
    ended_ns: int
    resumed_ns: int
    first_ns: int
    latency_ns: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Had:
    """One member of a run, measured."""

    member: Member
    curve: Curve
    reports: tuple[Report, ...] = ()
    """Empty where it did not end in time."""
    waits: int | None = None
    """In the measured time; None where nobody counts."""
    wakeups: int | None = None

    @property
    def longest_ns(self) -> int:
        """Its longest launch."""
        return max((each.longest_ns for each in self.reports), default=0) or self.member.load.longest_ns

    @property
    def parallelism(self) -> float:
        """How many of its kernels ran at the same time, while one ran."""
        if not self.member.load.side_by_side or not self.reports:
            return 1.0
        busy = self.curve.busy_at(self.reports[0].ended_ns) - self.curve.busy_at(self.reports[0].began_ns)
        return self.reports[0].work_ns / busy if busy else 1.0


@dataclass(frozen=True, kw_only=True)
class Record:
    """A run, measured from `from_ns` to `to_ns` (CLOCK_MONOTONIC)."""

    run: Run
    from_ns: int
    to_ns: int
    had: Mapping[str, Had]
    happened_ns: int | None = None
    """When somebody was killed, or a share changed."""
    pressure: float | None = None
    """The part of the measured time in which something on this host waited for a processor."""

    def share(self, name: str) -> float:
        """What a member had of the measured time."""
        return self.had[name].curve.share(self.from_ns, self.to_ns)

    def measured(self, name: str) -> Curve:
        """The points of the measured time."""
        return self.had[name].curve.between(self.from_ns, self.to_ns)


# ---- verdicts ----


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure and its bound."""

    what: str
    value: float
    bound: float
    unit: str = ""
    at_least: bool = False
    around: float | None = None
    """What is wanted; the bound says how far off it may be, to either side."""

    @property
    def kept(self) -> bool:
        """Whether the bound is kept."""
        if self.around is not None:
            return abs(self.value - self.around) <= self.bound
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """What one share got, in percent of the card; errors in points of that."""

    member: str
    granted: float
    achieved: float
    mean_bound: float
    worst: float
    """Of the windows' errors, the one that is furthest out."""
    worst_bound: float
    longest_ns: int
    enough: bool
    """There was work for all of the share; else only more than it is an error."""
    throughput: float | None = None
    """Work done, by what is expected of the share; None where nobody measured it without a limit."""
    waits: int | None = None
    wakeups: int | None = None
    series: tuple[tuple[float, float], ...] = ()
    """Seconds from the beginning, percent of the window that ends then."""

    @property
    def error(self) -> float:
        """Of the mean, in points."""
        return self.achieved - self.granted

    @property
    def of_longest(self) -> float:
        """The worst window's error by what one launch makes inevitable, L/W."""
        return abs(self.worst) / (100 * self.longest_ns / WINDOW_NS)

    @property
    def of_bound(self) -> float:
        """The same by the whole bound."""
        return abs(self.worst) / self.worst_bound if self.worst_bound else math.inf

    @property
    def wakeups_per_wait(self) -> float | None:
        """How often a launch that waited looked whether it may go."""
        return self.wakeups / self.waits if self.waits and self.wakeups is not None else None

    @property
    def kept(self) -> bool:
        """Whether all bounds are kept."""
        error = abs(self.error) if self.enough else self.error
        worst = abs(self.worst) if self.enough else self.worst
        # Where one launch more or less makes so much of the mean, it makes it of the work, too.
        edge = self.mean_bound / self.granted if self.mean_bound > MEAN_POINTS else 0
        enough_work = min(THROUGHPUT, 1 - edge)
        busy = self.throughput is None or self.throughput >= enough_work
        return error <= self.mean_bound and worst <= self.worst_bound and busy


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is said of a case."""

    shares: tuple[Accuracy, ...] = ()
    checks: tuple[Check, ...] = ()
    problem: str | None = None
    """Why it could not be measured."""
    pressure: float | None = None
    """The part of the time in which something on this host waited for a processor; of the worst run."""

    @property
    def kept(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem and all(each.kept for each in (*self.shares, *self.checks))


def accuracy(record: Record, name: str, granted: float, *, enough: bool = True) -> Accuracy:
    """What a member had against what it was granted, in percent."""
    had = record.had[name]
    part, longest = granted / 100, had.longest_ns
    # No error: a launch that begins with the measured time, or ends just before it, is paid for outside.
    edge = (1 - part) * longest / (record.to_ns - record.from_ns)
    found = windows(record.measured(name))
    errors = [(100 * each.share - granted, each.to_ns - each.from_ns) for each in found]
    bounds = [100 * longest / length + WINDOW_POINTS for _, length in errors]
    judged = [
        (abs(error) if enough else error) - bound for (error, _), bound in zip(errors, bounds, strict=True)
    ]
    index = max(range(len(judged)), key=judged.__getitem__) if judged else -1
    return Accuracy(
        member=name,
        granted=granted,
        achieved=100 * record.share(name),
        mean_bound=max(MEAN_POINTS, 100 * edge),
        worst=errors[index][0] if judged else math.nan,
        worst_bound=bounds[index] if judged else 0.0,
        longest_ns=longest,
        enough=enough,
        waits=had.waits,
        wakeups=had.wakeups,
        series=tuple(
            (round((each.to_ns - record.from_ns) / S, 3), round(100 * each.share, 2)) for each in found
        ),
    )


def _alone(records: Sequence[Record]) -> Verdict:
    """The share, and the work done in it by the work that the same program does without a limit."""
    free, record = records
    (name,) = record.had
    had, granted = record.had[name], record.run.members[0].cores or 100
    offered = max(free.share(name), record.share(name))  # the host may have been too busy to offer more
    found = accuracy(record, name, granted, enough=offered >= min(1 - ENOUGH / 2, granted / 100 + ENOUGH))
    expected = min(offered, granted / 100) * free.had[name].parallelism
    done = record.share(name) * had.parallelism
    return Verdict(shares=(replace(found, throughput=done / expected if expected else 0.0),))


def _together(records: Sequence[Record]) -> Verdict:
    (record,) = records
    shares = tuple(accuracy(record, each.name, each.cores or 100) for each in record.run.members)
    if len(shares) == 1:
        return Verdict(shares=shares)
    fair = jain([each.achieved / each.granted for each in shares])
    return Verdict(
        shares=shares,
        checks=(Check(what="Jain's index of achieved/granted", value=fair, bound=FAIRNESS, at_least=True),),
    )


def _killed(records: Sequence[Record]) -> Verdict:
    """What the killed one was to have used counts as never asked for: after 2 s the others have the share."""
    (record,) = records
    stays = record.run.members[0]
    granted, settled = stays.cores or 100, (record.happened_ns or record.from_ns) + 2 * S
    after = replace(record, from_ns=settled)
    return Verdict(shares=(accuracy(after, stays.name, granted),))


def _latency(records: Sequence[Record]) -> Verdict:
    ideal, limited = (record.had["service"] for record in records)
    if not ideal.reports or not limited.reports:
        return Verdict(problem="the service did not report")
    before, now = (percentile(each.reports[0].latency_ns, 99) / 1e6 for each in (ideal, limited))
    neighbour = records[1]
    return Verdict(
        shares=(accuracy(neighbour, "neighbour", neighbour.had["neighbour"].member.cores or 100),),
        checks=(
            Check(what="p99 beside an ideally paced neighbour", value=before, bound=math.inf, unit="ms"),
            Check(what="p99 beside a limited one", value=now, bound=LATENCY_RATIO * before, unit="ms"),
        ),
    )


def _idle(records: Sequence[Record]) -> Verdict:
    """A request of 2 ms that comes after a pause; a millisecond is the host's."""
    (record,) = records
    had = record.had["service"]
    if not had.reports or not had.reports[0].first_ns:
        return Verdict(problem="the service did not report")
    length_ms = had.member.load.longest_ns / 1e6
    checks = [
        Check(
            what="first request after 10 s",
            value=had.reports[0].first_ns / 1e6,
            bound=length_ms + 1,
            unit="ms",
        )
    ]
    if had.waits is not None:
        checks.append(Check(what="launches that waited", value=had.waits, bound=0))
    return Verdict(checks=tuple(checks))


def _error(what: str, had: Had, from_ns: int, to_ns: int, wanted: float, *, at_least: bool = False) -> Check:
    """The share of a stretch against what is wanted, in percent."""
    share = 100 * had.curve.share(from_ns, to_ns)
    bound = 100 * had.longest_ns / (to_ns - from_ns) + WINDOW_POINTS
    if at_least:
        return Check(what=what, value=share, bound=wanted - bound, unit="%", at_least=True)
    return Check(what=what, value=share, bound=bound, unit="%", around=wanted)


_NO_PAUSE = Verdict(problem="the pausing neighbour did not report")


def _pause(had: Had) -> tuple[int, int] | None:
    """From when to when it paused; None where it did not report."""
    if not had.reports or not had.reports[0].resumed_ns:
        return None
    rest, report = had.member.load.rest, had.reports[0]
    assert rest
    return report.began_ns + round(rest[0] * S), report.resumed_ns


def _ceiling(records: Sequence[Record]) -> Verdict:
    (record,) = records
    busy, pauses = record.had["busy"], record.had["pauses"]
    if (pause := _pause(pauses)) is None:
        return _NO_PAUSE
    begins, ends = pause
    back = ends + YIELD_NS
    ceiling, own, theirs = busy.member.ceiling or 0, busy.member.cores or 0, pauses.member.cores or 0
    return Verdict(
        checks=(
            _error("before the pause", busy, record.from_ns, begins, own),
            _error("during the pause, from 1 s on", busy, begins + S, ends, ceiling),
            _error(
                "neighbour, 100 to 600 ms after", pauses, back, back + YIELD_WINDOW_NS, theirs, at_least=True
            ),
            _error("afterwards, from 1 s on", busy, ends + S, record.to_ns, own),
        )
    )


def _proportion(records: Sequence[Record]) -> Verdict:
    (record,) = records
    working = [record.had[name] for name in ("a", "b")]
    granted = [each.member.cores or 0 for each in working]
    return Verdict(
        checks=tuple(
            _error(each.member.name, each, record.from_ns, record.to_ns, 100 * own / sum(granted))
            for each, own in zip(working, granted, strict=True)
        )
    )


def _priority(records: Sequence[Record]) -> Verdict:
    (record,) = records
    low, high = record.had["low"], record.had["high"]
    if (pause := _pause(high)) is None:
        return _NO_PAUSE
    begins, ends = pause
    back, most = ends + YIELD_NS, high.member.ceiling or 0
    return Verdict(
        checks=(
            _error("low, during the pause, from 1 s on", low, begins + S, ends, low.member.ceiling or 0),
            _error("high, 100 to 600 ms after", high, back, back + YIELD_WINDOW_NS, most, at_least=True),
            _error("low, afterwards, from 1 s on", low, ends + S, record.to_ns, low.member.cores or 0),
        )
    )


def _change(records: Sequence[Record]) -> Verdict:
    (record,) = records
    (member,) = record.run.members
    if not record.run.change or not record.happened_ns:
        return Verdict(problem="the share was not changed")
    had, changed = record.had[member.name], record.happened_ns + CHANGE_NS
    _, _, wanted = record.run.change
    soon = changed + YIELD_WINDOW_NS
    return Verdict(
        checks=(
            _error("before", had, record.from_ns, record.happened_ns, member.cores or 0),
            _error("200 to 700 ms after", had, changed, soon, wanted),
            _error("from then on", had, soon, record.to_ns, wanted),
        )
    )


def _whole(records: Sequence[Record]) -> Verdict:
    free, limited = (record.share("a") for record in records)
    ratio = limited / free if free else 0.0
    what = "throughput by that without the shim"
    return Verdict(checks=(Check(what=what, value=ratio, bound=WHOLE_THROUGHPUT, at_least=True),))


_JUDGES: Mapping[str, Callable[[Sequence[Record]], Verdict]] = {
    "alone": _alone,
    "together": _together,
    "killed": _killed,
    "latency": _latency,
    "idle": _idle,
    "ceiling": _ceiling,
    "proportion": _proportion,
    "priority": _priority,
    "change": _change,
    "whole": _whole,
}


def judge(case: Case, records: Sequence[Record]) -> Verdict:
    """The verdict on a case whose runs left these records."""
    pressures = [record.pressure for record in records if record.pressure is not None]
    return replace(_JUDGES[case.kind](records), pressure=max(pressures, default=None))

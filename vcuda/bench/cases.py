"""What is run: loads, members (a load in a share), runs (members side by side on a card), and cases of runs.

Pure: values in, values out.
"""

import fnmatch
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

US, MS, S = 1_000, 1_000_000, 1_000_000_000

GRAPH_KERNELS = 50
"""In each graph of the workload's."""
LONGEST_GRAPH_NS = 200 * MS
"""A launch cannot be divided: of longer ones, 20 s hold too few to say anything of a mean."""
MIX_LONGEST_NS = 100 * MS
"""Where the workload cuts off its heavy tail."""
SIDE_BY_SIDE = ("streams4", "ptds")
"""Modes in which kernels of one process may run at the same time."""
MODELS = {40: "T4", 80: "V100-SXM2-16GB", 188: "RTX-PRO-6000"}
"""Simulated cards by their number of SMs."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one client does; the options of native/bench/cores.c."""

    mode: str = "queue"
    lengths_ns: tuple[int, ...] = (2 * MS,)
    """Of a kernel; of several, each launch draws one. Empty: drawn from a heavy tail."""
    blocks: int = 640
    functions: int = 1
    processes: int = 1
    rest: tuple[float, float] | None = None
    """Seconds from the start after which it pauses, and for how many."""
    pace: float | None = None
    """The part of the time in which it works, by its own will."""
    period: float = 0.02
    """Seconds between requests, in mode `service`."""

    def arguments(self) -> list[str]:
        """The client's command line."""
        given = [f"mode={self.mode}", f"blocks={self.blocks}"]
        given.append(f"ns={','.join(map(str, self.lengths_ns))}" if self.lengths_ns else "mix=1")
        if self.functions > 1:
            given.append(f"functions={self.functions}")
        if self.processes > 1:
            given.append(f"processes={self.processes}")
        if self.rest:
            given.append(f"rest={self.rest[0]},{self.rest[1]}")
        if self.pace:
            given.append(f"pace={self.pace}")
        if self.mode == "service":
            given.append(f"period={self.period}")
        return given

    @property
    def longest_ns(self) -> int:
        """The longest that one launch can take."""
        kernel = max(self.lengths_ns, default=MIX_LONGEST_NS)
        return kernel * GRAPH_KERNELS if self.mode == "graph" and self.lengths_ns else kernel

    @property
    def side_by_side(self) -> bool:
        """Whether kernels of it may run at the same time."""
        return self.mode in SIDE_BY_SIDE


@dataclass(frozen=True, kw_only=True)
class Member:
    """A load in a share."""

    name: str = "a"
    load: Load = field(default_factory=Load)
    cores: float | None = None
    """Percent of the card's time; None: without the shim, limited by nothing."""
    ceiling: float | None = None
    """Percent; what it may use of others' idle time. None: no more than its own."""
    priority: str | None = None
    memory: str = "1400MiB"
    beside: str | None = None
    """Not a share of its own: one more program in the share of the member of this name."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Members on one card, from a common start."""

    members: tuple[Member, ...]
    warm_seconds: float = 2
    """What comes before the measured time."""
    seconds: float = 20
    kill: tuple[str, float] | None = None
    """A member whose processes are killed, and when: seconds into the measured time."""
    change: tuple[str, float, float] | None = None
    """A member whose share is changed, when, and to how many percent."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Runs, one after the other, that are judged together."""

    name: str
    kind: str
    """Which of judge's judges."""
    runs: tuple[Run, ...]
    sms: int = 80
    """Of the simulated card; a real one has what it has."""
    at_once: bool = False
    """Whether other cases may run at the same time, each on a card of its own."""


# ---- one share alone: every pair of values of two factors, in few cases ----


def pairwise(
    factors: Mapping[str, Sequence[object]], possible: Callable[[Mapping[str, object]], bool]
) -> list[dict[str, object]]:
    """Choose combinations so that each possible pair of values of two factors is in one of them.

    `possible` is asked about partial combinations too: False if no completion can be run. The same factors
    give the same list.
    """
    names = list(factors)
    wanted = {
        ((one, a), (other, b)): None
        for one, other in itertools.combinations(names, 2)
        for a in factors[one]
        for b in factors[other]
        if _completions(factors, {one: a, other: b}, possible)
    }
    chosen: list[dict[str, object]] = []
    used: Counter[Value] = Counter()
    while wanted:
        first = next(iter(wanted))
        best = max(  # what covers most; of equals, what has been had least
            _completions(factors, dict(first), possible),
            key=lambda each: (
                sum(pair in wanted for pair in _pairs(names, each)),
                -sum(used[value] for value in each.items()),
            ),
        )
        chosen.append(best)
        used.update(best.items())
        for pair in _pairs(names, best):
            wanted.pop(pair, None)
    return chosen


def _completions(
    factors: Mapping[str, Sequence[object]],
    given: Mapping[str, object],
    possible: Callable[[Mapping[str, object]], bool],
) -> list[dict[str, object]]:
    free = [name for name in factors if name not in given]
    every = (
        {**given, **dict(zip(free, values, strict=True))}
        for values in itertools.product(*(factors[name] for name in free))
    )
    return [each for each in every if possible(each)]


Value = tuple[str, object]


def _pairs(names: Sequence[str], values: Mapping[str, object]) -> Iterator[tuple[Value, Value]]:
    for one, other in itertools.combinations(names, 2):
        yield (one, values[one]), (other, values[other])


LENGTHS: Mapping[str, tuple[int, ...]] = {
    "20us": (20 * US,),
    "200us": (200 * US,),
    "2ms": (2 * MS,),
    "20ms": (20 * MS,),
    "200ms": (200 * MS,),
    "mix": (),
}
FACTORS: Mapping[str, Sequence[object]] = {
    "mode": ("sync", "queue", "streams4", "graph", "cooperative", "launchex", "ptds"),
    "length": tuple(LENGTHS),
    "cores": (10, 20, 30, 50, 80),
    "blocks": (1, 640, 100_000),
    "sms": (40, 80, 188),
}


def _possible(values: Mapping[str, object]) -> bool:
    """A cooperative grid must fit at once; a graph must not last too long (see LONGEST_GRAPH_NS)."""
    mode, length = values.get("mode"), values.get("length")
    if mode == "cooperative" and values.get("blocks") == 100_000:
        return False
    if mode == "graph" and length is not None:
        return Load(mode="graph", lengths_ns=LENGTHS[str(length)]).longest_ns <= LONGEST_GRAPH_NS
    return True


def alone(values: Mapping[str, object]) -> Case:
    """The case of one combination of FACTORS."""
    length, cores, sms, blocks = (str(values[name]) for name in ("length", "cores", "sms", "blocks"))
    load = Load(mode=str(values["mode"]), lengths_ns=LENGTHS[length], blocks=int(blocks))
    return limited(f"alone/{cores}-{length}-{load.mode}-{blocks}b-{sms}sm", load, int(cores), sms=int(sms))


def limited(name: str, load: Load, cores: float, *, sms: int = 80, memory: str = "1400MiB") -> Case:
    """One share, and before that what the same load does without a limit."""
    return Case(
        name=name,
        kind="alone",
        sms=sms,
        at_once=True,
        runs=(
            Run(members=(Member(load=load),), warm_seconds=0.5, seconds=3),
            Run(members=(Member(load=load, cores=cores, memory=memory),), warm_seconds=_settled(load, cores)),
        ),
    )


def _settled(load: Load, cores: float) -> float:
    """Seconds after which what was launched before any kernel was known is paid for: some of the longest."""
    return 2 + 4 * load.longest_ns / 1e9 / (cores / 100)


# ---- several ----


def _together(name: str, *members: Member) -> Case:
    return Case(name=f"together/{name}", kind="together", runs=(Run(members=members),))


def together() -> list[Case]:
    """Shares beside each other, all with enough to do."""
    ordinary, long, short = Load(), Load(lengths_ns=(20 * MS,)), Load(lengths_ns=(50 * US,))
    return [
        _together(
            "40-30", Member(name="a", load=ordinary, cores=40), Member(name="b", load=ordinary, cores=30)
        ),
        _together("30-30-30", *(Member(name=name, load=ordinary, cores=30) for name in "abc")),
        _together("ten-of-10", *(Member(name=name, load=ordinary, cores=10) for name in "abcdefghij")),
        _together(
            "70-long-30-short",
            Member(name="long", load=long, cores=70),
            Member(name="short", load=short, cores=30),
        ),
    ]


def processes() -> list[Case]:
    """Several processes in one share; eight that are killed have asked for seven kernels that never ran."""
    three = replace(Load(), processes=3, lengths_ns=(2 * MS,))
    many = Load(mode="sync", lengths_ns=(300 * MS,), processes=8)
    return [
        Case(
            name="processes/three",
            kind="together",
            runs=(Run(members=(Member(load=three, cores=30, memory="4GiB"),)),),
        ),
        Case(
            name="processes/killed-in-debt",
            kind="killed",
            runs=(
                Run(
                    members=(
                        Member(name="stays", load=Load(mode="sync"), cores=30, memory="4GiB"),
                        Member(name="killed", load=many, beside="stays"),
                    ),
                    warm_seconds=16,
                    seconds=12,
                    kill=("killed", 0.5),
                ),
            ),
        ),
    ]


def latency() -> list[Case]:
    """A service of 2 ms every 20 ms (30 percent) beside a neighbour that never pauses (70 percent)."""
    service = Member(name="service", load=Load(mode="service"), cores=30)
    work = Load(lengths_ns=(5 * MS,))
    never = Member(name="neighbour", load=work, cores=70)
    ideal = Member(name="neighbour", load=replace(work, mode="sync", pace=0.7))
    idle = replace(service, load=replace(service.load, rest=(3, 10)))
    return [
        Case(
            name="latency/service-beside-70",
            kind="latency",
            runs=(Run(members=(service, ideal)), Run(members=(service, never))),
        ),
        Case(
            name="latency/first-after-10s-idle",
            kind="idle",
            runs=(Run(members=(idle,), warm_seconds=1, seconds=14),),
        ),
    ]


def elastic() -> list[Case]:
    """Idle time of others, and its return."""
    pauses, busy = Load(rest=(4, 6)), Load()
    return [
        Case(
            name="elastic/up-to-ceiling",
            kind="ceiling",
            runs=(
                Run(
                    members=(
                        Member(name="busy", load=busy, cores=40, ceiling=70),
                        Member(name="pauses", load=pauses, cores=60),
                    ),
                    warm_seconds=1,
                    seconds=13,
                ),
            ),
        ),
        Case(
            name="elastic/in-proportion",
            kind="proportion",
            runs=(
                Run(
                    members=(
                        Member(name="a", load=busy, cores=20, ceiling=100),
                        Member(name="b", load=busy, cores=40, ceiling=100),
                        Member(name="idle", load=Load(rest=(0, 60)), cores=40),
                    ),
                    seconds=8,
                ),
            ),
        ),
        Case(
            name="elastic/low-yields-to-high",
            kind="priority",
            runs=(
                Run(
                    members=(
                        Member(name="low", load=busy, cores=30, ceiling=100, priority="low"),
                        Member(name="high", load=pauses, cores=30, ceiling=70, priority="high"),
                    ),
                    warm_seconds=1,
                    seconds=13,
                ),
            ),
        ),
    ]


def changes() -> list[Case]:
    """A share that is changed under a program that works."""
    return [
        Case(
            name=f"changes/{cores}-to-{other}",
            kind="change",
            runs=(Run(members=(Member(cores=cores),), seconds=8, change=("a", 4, other)),),
        )
        for cores, other in ((30, 60), (60, 20))
    ]


def costs() -> list[Case]:
    """Programs whose next kernel's time is hard to know."""
    return [
        limited("costs/100-fold-changes", Load(lengths_ns=(20 * US, 2 * MS)), 30),
        limited("costs/100000-functions", Load(lengths_ns=(200 * US,), functions=100_000), 30, memory="6GiB"),
        limited("costs/tiny-kernels", Load(lengths_ns=(2 * US,), blocks=1), 30),
    ]


def whole() -> list[Case]:
    """All of a card: the shim may cost nothing."""
    load = Load(lengths_ns=(200 * US,))
    return [
        Case(
            name="whole/100-200us-queue",
            kind="whole",
            runs=(
                Run(members=(Member(load=load),), seconds=8),
                Run(members=(Member(load=load, cores=100),), seconds=8),
            ),
        )
    ]


def every(*, simulated: bool = True) -> list[Case]:
    """All cases, in the order in which they are shown; a real card has the SMs that it has."""
    factors = FACTORS if simulated else {**FACTORS, "sms": (0,)}
    return [
        *map(alone, pairwise(factors, _possible)),
        *together(),
        *processes(),
        *latency(),
        *elastic(),
        *changes(),
        *costs(),
        *whole(),
    ]


def selected(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Those whose name matches one of the patterns (fnmatch's), or begins with it; all for no pattern."""
    return [
        case
        for case in cases
        if not patterns
        or any(fnmatch.fnmatchcase(case.name, each) or case.name.startswith(each) for each in patterns)
    ]


def lasting(case: Case, seconds: float) -> Case:
    """The same with so many measured seconds where it has the usual 20."""
    usual = Run(members=()).seconds
    return replace(
        case, runs=tuple(replace(run, seconds=seconds) if run.seconds == usual else run for run in case.runs)
    )

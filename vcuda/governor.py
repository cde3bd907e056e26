"""The loop that puts shares in force: looks at ledgers, asks the arbiter, writes grants.

Looks often only while a share works whose part depends on what others do; else once a second. When it ends,
or hangs, what it has put in force lasts for a second, and then each share has its guarantee.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from vcuda.arbiter import STARVED_NS, Claim, Memory, Promise, Sight, allocate, judge
from vcuda.errors import GrantError, LedgerError, VcudaError
from vcuda.grant import CardGrant, LiveGrant
from vcuda.ledger import Ledger, Load
from vcuda.slicing import Slicing, forget, guess, learn
from vcuda.units import PPM
from vcuda.utilisation import Answer, Utilisation

LOOK_NS = 22_000_000
"""While a share works whose part depends on the others."""
COUNT_NS = 200_000_000
"""While processes take turns on a card, and their true time is to be known."""
REST_NS = 1_000_000_000
"""Else, and after a fault."""
CONFIRM_NS = 180_000_000
"""A share in force is confirmed so often; it holds for a second."""
LEARN_NS = 450_000_000
"""So much time must have been counted to learn from it."""
TURNS_NS = 3_000_000_000
"""Who has worked so lately may take turns with others: with long kernels, work comes seldom."""
DEAF_NS = 5_000_000_000
"""If the driver's count is older, nothing is corrected by it."""
KEPT_NS = 4_000_000_000
"""For so long the points of a ledger are kept: the driver's count comes late."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A share to be governed."""

    grant: Path
    ledger: Path
    pids: Callable[[], Collection[int]]
    """The living processes, as the driver knows them."""
    driver: Mapping[str, str] = field(default_factory=dict[str, str])
    """The environment variables that lead to the driver of its cards."""


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A ledger's counts at an instant: as they stand, and without the correction for time slicing."""

    now_ns: int
    counted_ns: float
    measured_ns: float


@dataclass
class _Seat:
    """One card of a member."""

    member: Member
    grant: LiveGrant
    ledger: Ledger
    index: int
    uuid: str
    memory: Memory = field(default_factory=Memory)
    confirmed_ns: int = 0
    load: Load | None = None
    worked: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """By slot: what it has launched, and when it last worked."""
    slicing: Slicing = field(default_factory=Slicing)
    points: list[_Point] = field(default_factory=list[_Point])
    began_ns: int = 0
    """Since then it has neighbours."""
    heard: Answer | None = None
    learnt: bool = False
    """Something, since it has neighbours."""
    pids: set[int] = field(default_factory=set[int])
    """All that it ever had, for as long as it has neighbours."""

    def look(self, now_ns: int) -> tuple[CardGrant, Claim | None]:
        """See what it has and wants; None for a share that is not limited."""
        granted = self.grant.card(self.index)
        self.load = self.ledger.load(self.index)
        before, self.worked = self.worked, {}
        for slot, active_ns, launches in self.load.workers:
            launched, worked_ns = before.get(slot, (launches, 0))
            # Who is not limited pays for nothing: that it works is seen by its launches.
            latest_ns = now_ns if launches != launched else max(worked_ns, min(active_ns, now_ns))
            self.worked[slot] = (launches, latest_ns)
        if granted.whole or granted.core_ppm >= PPM:
            return granted, None
        promise = Promise(
            guarantee_ppm=granted.core_ppm, ceiling_ppm=granted.core_max_ppm, priority=granted.priority
        )
        bucket = self.load.bucket
        sight = Sight(
            now_ns=now_ns,
            active_ns=bucket.active_ns,
            starved_ns=bucket.starved_ns,
            balance_ns=bucket.balance_at(now_ns),
            gpu_ns=self.load.gpu_ns,
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

    def at_work(self, now_ns: int) -> int:
        """How many of its processes have worked lately."""
        return sum(now_ns - worked_ns < TURNS_NS for _, worked_ns in self.worked.values())

    def count(self, slice_ppm: int, now_ns: int) -> None:
        """Add a point of the ledger, under the correction that was in force until now."""
        assert self.load is not None
        self.pids.update(self.member.pids())
        gpu_ns = float(self.load.gpu_ns)
        if not self.points:
            self.began_ns = now_ns
            self.points.append(_Point(now_ns=now_ns, counted_ns=gpu_ns, measured_ns=0.0))
            return
        last = self.points[-1]
        measured_ns = last.measured_ns + max(0.0, gpu_ns - last.counted_ns) * PPM / slice_ppm
        self.points.append(_Point(now_ns=now_ns, counted_ns=gpu_ns, measured_ns=measured_ns))
        while len(self.points) > 2 and now_ns - self.points[1].now_ns > KEPT_NS:
            del self.points[0]

    def hear(self, answer: Answer) -> None:
        """Learn from the driver's count."""
        heard = self.heard
        if heard is None or not self.points or heard.until_ns < self.points[0].now_ns:
            if self.points and answer.until_ns >= self.points[0].now_ns:
                self.heard = answer
            return
        if answer.until_ns - heard.until_ns < LEARN_NS or answer.until_ns > self.points[-1].now_ns:
            return
        then, now = _at(self.points, heard.until_ns), _at(self.points, answer.until_ns)
        true_ns = sum(max(0, answer.used_ns.get(pid, 0) - heard.used_ns.get(pid, 0)) for pid in self.pids)
        if not self.learnt:  # what was before the driver was heard is taken to have been alike
            self.learnt = True
            measured_ns = now.measured_ns - then.measured_ns
            if measured_ns > 0:
                true_ns = true_ns * (now.measured_ns - self.points[0].measured_ns) / measured_ns
                then = self.points[0]
        self.heard = answer
        self.slicing = learn(
            self.slicing,
            true_ns=true_ns,
            measured_ns=now.measured_ns - then.measured_ns,
            counted_ns=now.counted_ns - then.counted_ns,
            passed_ns=now.now_ns - then.now_ns,
        )

    def starved(self, now_ns: int) -> bool:
        """Whether a launch has had to wait lately."""
        return self.load is not None and now_ns - STARVED_NS < self.load.bucket.starved_ns

    def correction(self, guessed_ppm: int, answer: Answer | None, now_ns: int) -> int:
        """The correction that is best now: by the driver's count, or at the beginning a guess."""
        heard = answer is not None and now_ns - answer.until_ns < DEAF_NS
        begins = now_ns - self.began_ns < DEAF_NS
        if not (heard or begins):
            return PPM
        return self.slicing.slice_ppm if self.slicing.known else guessed_ppm

    def be_alone(self, passed_ns: int) -> None:
        """Nobody takes turns with it."""
        self.points.clear()
        self.pids.clear()
        self.heard, self.learnt = None, False
        self.slicing = forget(self.slicing, passed_ns=passed_ns)


def _at(points: Sequence[_Point], at_ns: int) -> _Point:
    """A ledger's counts at an instant between two points."""
    after = next(index for index, point in enumerate(points) if point.now_ns >= at_ns)
    if after == 0:
        return points[0]
    one, two = points[after - 1], points[after]
    part = (at_ns - one.now_ns) / (two.now_ns - one.now_ns)
    return _Point(
        now_ns=at_ns,
        counted_ns=one.counted_ns + part * (two.counted_ns - one.counted_ns),
        measured_ns=one.measured_ns + part * (two.measured_ns - one.measured_ns),
    )


class Governor:
    """Puts shares in force on the cards of a machine, for as long as it runs.

    `members` tells whose; it is asked again when what `version` returns is another value than before.
    `say` gets one line for each fault. One governor per machine: who elects it sees to that.
    """

    def __init__(
        self,
        members: Callable[[], Sequence[Member]],
        *,
        version: Callable[[], object],
        say: Callable[[str], None],
    ) -> None:
        self._members = members
        self._version = version
        self._say = say
        self._known: object = None
        self._grants: dict[Path, LiveGrant] = {}
        self._ledgers: dict[Path, Ledger] = {}
        self._inodes: dict[Path, int] = {}
        self._cards: dict[tuple[tuple[tuple[str, str], ...], str], list[_Seat]] = {}
        self._drivers: dict[tuple[tuple[str, str], ...], Utilisation] = {}
        self._said: set[str] = set()
        self._counted_ns = 0
        self._asked_ns = 0

    def run(self, stop: Event) -> None:
        """Govern until it is told to stop. Never raises: a fault is told, and tried again."""
        try:
            while not stop.is_set():
                began_ns = time.monotonic_ns()
                try:
                    pause_ns = self.step(began_ns)
                except Exception as error:  # noqa: BLE001 (whatever it is, the programs go on)
                    self._report(error)
                    self.close()
                    pause_ns = 5 * REST_NS
                stop.wait(max(0, pause_ns - (time.monotonic_ns() - began_ns)) / 1e9)
        finally:
            self.close()

    def step(self, now_ns: int) -> int:
        """Look once, and put in force; after how many ns to look again.

        Raises:
            VcudaError: the shares cannot be listed.

        """
        version = self._version()
        if version != self._known:
            self._seat(self._members())
            self._known = version
        pause_ns = REST_NS
        counting = now_ns - self._counted_ns >= COUNT_NS * 3 // 4
        asking = counting and now_ns - self._asked_ns >= LEARN_NS
        for (driver, uuid), seats in self._cards.items():
            looks = [(seat, *seen) for seat in seats if (seen := self._look(seat, now_ns)) is not None]
            pause_ns = min(pause_ns, _divide(looks, now_ns))
            if counting and self._slice(driver, uuid, looks, now_ns, asking=asking):
                pause_ns = min(pause_ns, COUNT_NS)
        if counting:
            self._counted_ns = now_ns
        if asking:
            self._asked_ns = now_ns
        return pause_ns

    def close(self) -> None:
        """Let go of all files and processes; the next step opens them again."""
        self._known = None
        self._cards = {}
        for each in (*self._grants.values(), *self._ledgers.values(), *self._drivers.values()):
            with contextlib.suppress(Exception):
                each.close()
        self._grants, self._ledgers, self._drivers, self._inodes = {}, {}, {}, {}

    def _look(self, seat: _Seat, now_ns: int) -> tuple[CardGrant, Claim | None] | None:
        """See one seat; None where its ledger cannot be read: that is no reason to leave the others alone."""
        try:
            return seat.look(now_ns)
        except (LedgerError, OSError) as error:
            if seat.member.ledger.exists():  # else it ended a moment ago
                self._report(error)
            return None

    def _seat(self, members: Sequence[Member]) -> None:
        """Open the files of those who came, close those of who went."""
        before = {(seat.member.grant, seat.index): seat for seats in self._cards.values() for seat in seats}
        self._cards = {}
        kept = {path for member in members for path in (member.grant, member.ledger)}
        gone = {path for path, file in self._inodes.items() if path not in kept or _inode(path) != file}
        for files in (self._grants, self._ledgers):
            for path in [path for path in files if path in gone]:
                files.pop(path).close()
        for member in members:
            try:
                grant, ledger = self._opened(member)
            except (GrantError, LedgerError) as error:
                if member.grant.exists():  # else it ended a moment ago
                    self._report(error)
                continue
            driver = tuple(sorted(member.driver.items()))
            for index in range(grant.count):
                uuid = grant.card(index).uuid
                seat = before.get((member.grant, index))
                if seat is None or seat.grant is not grant or seat.ledger is not ledger:
                    seat = _Seat(member=member, grant=grant, ledger=ledger, index=index, uuid=uuid)
                self._cards.setdefault((driver, uuid), []).append(seat)
        used = {driver for driver, _ in self._cards}
        for driver in [driver for driver in self._drivers if driver not in used]:
            self._drivers.pop(driver).close()

    def _opened(self, member: Member) -> tuple[LiveGrant, Ledger]:
        if member.grant not in self._grants:
            self._inodes[member.grant] = _inode(member.grant)
            self._grants[member.grant] = LiveGrant(member.grant, writable=True)
        if member.ledger not in self._ledgers:
            self._inodes[member.ledger] = _inode(member.ledger)
            self._ledgers[member.ledger] = Ledger(member.ledger)
        return self._grants[member.grant], self._ledgers[member.ledger]

    def _slice(
        self,
        driver: tuple[tuple[str, str], ...],
        uuid: str,
        looks: Sequence[tuple[_Seat, CardGrant, Claim | None]],
        now_ns: int,
        *,
        asking: bool,
    ) -> bool:
        """Correct for the turns that processes take on a card; whether any do."""
        limited = [seat for seat, _, claim in looks if claim is not None]
        turns = bool(limited) and sum(seat.at_work(now_ns) for seat, _, _ in looks) > 1
        answer = None
        if len(looks) > 1 and any(seat.at_work(now_ns) for seat, _, _ in looks):
            utilisation = self._drivers.get(driver) or Utilisation(dict(driver))
            self._drivers[driver] = utilisation
            utilisation.prepare(now_ns)
        if turns:
            utilisation = self._drivers.get(driver) or Utilisation(dict(driver))
            self._drivers[driver] = utilisation
            answer = utilisation.look(uuid, now_ns)
            if asking:
                utilisation.ask(uuid, now_ns)
        hungry = [seat for seat in limited if seat.starved(now_ns)] if turns else []
        rates_ppm = tuple(seat.grant.in_force(seat.index, now_ns).rate_ppm for seat in hungry)
        guesses = dict(zip(map(id, hungry), guess(rates_ppm), strict=True))
        for seat in limited:
            in_force = seat.grant.in_force(seat.index, now_ns).slice_ppm
            if turns:
                seat.count(in_force, now_ns)
                if answer:
                    seat.hear(answer)
            else:
                seat.be_alone(now_ns - self._counted_ns)
            wanted = seat.correction(guesses.get(id(seat), PPM), answer, now_ns) if turns else PPM
            if wanted != in_force:
                seat.grant.correct_slice(seat.index, wanted if wanted < PPM else 0)
        return turns

    def _report(self, error: Exception) -> None:
        """Say what is wrong, once."""
        text = str(error) if isinstance(error, VcudaError) else f"{type(error).__name__}: {error}"
        if text not in self._said:
            self._said.add(text)
            self._say(f"core shares are not adjusted: {text}; each share has what is guaranteed")


def _inode(path: Path) -> int:
    """Which file lies at a path; 0: none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _divide(looks: Sequence[tuple[_Seat, CardGrant, Claim | None]], now_ns: int) -> int:
    """Put one card's shares in force; after how many ns to look again."""
    at_work = sum(seat.at_work(now_ns) for seat, _, _ in looks)
    limited = [(seat, granted, claim) for seat, granted, claim in looks if claim is not None]
    awards = allocate([claim for _, _, claim in limited])
    busy = False
    for (seat, granted, claim), award in zip(limited, awards, strict=True):
        seat.put_in_force(award.rate_ppm, granted, now_ns)
        busy = busy or (claim.promise.elastic and claim.demand_ppm > 0)
    if busy:
        return LOOK_NS
    # Nothing depends on the others. But somebody may come to take turns, or a share must be confirmed.
    waited_for = (at_work and len(looks) > 1) or any(seat.confirmed_ns for seat, _, _ in limited)
    return COUNT_NS if waited_for else REST_NS

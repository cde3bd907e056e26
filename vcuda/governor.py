"""The loop that puts shares in force: looks at ledgers, asks the arbiter, writes grants.

Looks often only while a share works whose part depends on what others do; else once a second. When it ends,
or hangs, what it has put in force lasts for a second, and then each share has its guarantee.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Event

from vcuda.arbiter import Award, Claim, allocate
from vcuda.errors import GrantError, LedgerError, VcudaError
from vcuda.grant import CardGrant, LiveGrant
from vcuda.seat import LEARN_NS, Member, Seat
from vcuda.slices import Slices
from vcuda.utilisation import Utilisation
from vcuda.watched import Watched

__all__ = ["Governor", "Member"]

LOOK_NS = 22_000_000
"""While a share works whose part depends on the others, or processes take turns on a card."""
SPARE_NS = 88_000_000
"""While they take turns of which few are reported."""
COME_NS = 66_000_000
"""While one works, and another may come to take turns."""
COUNT_NS = 200_000_000
"""While a share may begin whose part depends on the others, or several that would take turns."""
REST_NS = 1_000_000_000
"""Else, and after a fault."""
CROWD = 3
"""Shares on a card that are looked at so often; for more of them, less often in proportion,"""
SLOWEST_NS = 66_000_000
"""but so often all the same: each of them has less to report, and what is lent is to be back in 100 ms."""
_REPORTS = 5.0
"""So many intervals at a look lose none."""

_Driver = tuple[tuple[str, str], ...]
_Card = tuple[_Driver, str]
_Looks = Sequence[tuple[Seat, CardGrant, Claim | None]]


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
        self._ledgers: dict[Path, Watched] = {}
        self._inodes: dict[Path, int] = {}
        self._cards: dict[_Card, list[Seat]] = {}
        self._drivers: dict[_Driver, Utilisation] = {}
        self._said: set[str] = set()
        self._numbers = count()
        self._slices: dict[_Card, Slices] = {}
        self._awards: dict[_Card, tuple[list[Claim], list[Award]]] = {}
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
        asking = now_ns - self._asked_ns >= LEARN_NS
        for (driver, uuid), seats in self._cards.items():
            looks = [(seat, *seen) for seat in seats if (seen := self._look(seat, now_ns)) is not None]
            next_ns = self._divide(driver, uuid, looks, now_ns)
            next_ns = min(next_ns, self._slice(driver, uuid, looks, now_ns, asking=asking))
            pause_ns = min(pause_ns, max(next_ns, _pace(len(looks))))
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

    def _look(self, seat: Seat, now_ns: int) -> tuple[CardGrant, Claim | None] | None:
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
                    seat = Seat(
                        number=next(self._numbers),
                        member=member,
                        grant=grant,
                        ledger=ledger,
                        index=index,
                        uuid=uuid,
                    )
                self._cards.setdefault((driver, uuid), []).append(seat)
        used = {driver for driver, _ in self._cards}
        for driver in [driver for driver in self._drivers if driver not in used]:
            self._drivers.pop(driver).close()
        self._slices = {card: slices for card, slices in self._slices.items() if card in self._cards}
        self._awards.clear()

    def _opened(self, member: Member) -> tuple[LiveGrant, Watched]:
        if member.grant not in self._grants:
            self._inodes[member.grant] = _inode(member.grant)
            self._grants[member.grant] = LiveGrant(member.grant, writable=True)
        if member.ledger not in self._ledgers:
            self._inodes[member.ledger] = _inode(member.ledger)
            self._ledgers[member.ledger] = Watched(member.ledger)
        return self._grants[member.grant], self._ledgers[member.ledger]

    def _divide(self, driver: _Driver, uuid: str, looks: _Looks, now_ns: int) -> int:
        """Put one card's shares in force; after how many ns to look again."""
        limited = [(seat, granted, claim) for seat, granted, claim in looks if claim is not None]
        claims = [claim for _, _, claim in limited]
        known = self._awards.get((driver, uuid))
        awards = known[1] if known and known[0] == claims else allocate(claims)
        self._awards[driver, uuid] = claims, awards
        busy = False
        for (seat, granted, claim), award in zip(limited, awards, strict=True):
            seat.put_in_force(award.rate_ppm, granted, now_ns)
            busy = busy or (claim.promise.elastic and claim.demand_ppm > 0)
        if busy:
            return LOOK_NS
        # Nothing depends on the others. But an elastic share may come, or a share must be confirmed.
        waited_for = any(seat.confirmed_ns or claim.promise.elastic for seat, _, claim in limited)
        return COUNT_NS if waited_for else REST_NS

    def _slice(self, driver: _Driver, uuid: str, looks: _Looks, now_ns: int, *, asking: bool) -> int:
        """Correct for the turns that processes take on a card; after how many ns to look again."""
        seats = [seat for seat, _, _ in looks]
        lately = [seat for seat in seats if seat.lately(now_ns)]
        slices = self._slices.setdefault((driver, uuid), Slices())
        slices.correct(seats, now_ns)
        if len(seats) < 2 or not any(seat.limited for seat in seats):
            return REST_NS
        if not lately:
            return COUNT_NS
        utilisation = self._drivers.get(driver) or Utilisation(dict(driver))
        self._drivers[driver] = utilisation
        utilisation.prepare(now_ns)
        if len(lately) < 2 or not any(seat.limited for seat in lately):
            for seat in seats:
                seat.be_alone()
            return COME_NS
        if asking:
            self._learn(utilisation, uuid, [seat for seat in seats if seat.limited], now_ns)
        most = max(seat.reports_per_ns for seat in lately)
        return max(LOOK_NS, min(SPARE_NS, int(_REPORTS / max(most, 1e-9))))

    def _learn(self, utilisation: Utilisation, uuid: str, seats: Sequence[Seat], now_ns: int) -> None:
        """Hear what the driver has counted, and ask again."""
        answer = utilisation.look(uuid, now_ns)
        for seat in seats:
            seat.pids.update(seat.member.pids())
            if answer:
                seat.hear(answer)
        utilisation.ask(uuid, now_ns)

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


def _pace(shares: int) -> int:
    """How often so many shares of a card are looked at, at most."""
    return min(SLOWEST_NS, LOOK_NS * max(CROWD, shares) // CROWD)

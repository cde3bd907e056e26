"""The correction for time slicing on one card: who is at work there together, and what each truly has."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from vcuda.seat import Seat
from vcuda.slicing import Among, guess, part_had
from vcuda.turns import Key, Span, Turns
from vcuda.units import PPM

BEHIND_NS = 44_000_000
"""The turns are played so late: work is reported when it has ended, and somebody looks."""


@dataclass(slots=True)
class _Past:
    """What was seen, and put in force, at a look."""

    now_ns: int
    working: Among
    slices_ppm: dict[int, int]


@dataclass
class Slices:
    """What is known of one card."""

    turns: Turns = field(default_factory=Turns)
    _past: list[_Past] = field(default_factory=list[_Past])

    def correct(self, seats: Sequence[Seat], now_ns: int) -> None:
        """Take in what these have just seen, and put the corrections in force."""
        working = frozenset(seat.number for seat in seats if seat.at_work(now_ns))
        began_ns = self.turns.at_ns
        played = self._play(seats, now_ns)
        if self._past and 0 < began_ns < self.turns.at_ns:
            for seat in seats:
                if seat.limited:
                    self._learn(seat, played.get(seat.number, (0.0, 0.0)), self.turns.at_ns - began_ns)
        slices_ppm: dict[int, int] = {}
        for seat in seats:
            if seat.limited:
                among = working | {seat.number}
                wanted = seat.slicing.slice_ppm(among, partial(_guessed, seat, among, seats, now_ns))
                seat.correct(wanted, now_ns)
                slices_ppm[seat.number] = wanted
        self._past.append(_Past(now_ns, working, slices_ppm))
        while len(self._past) > 2 and self._past[1].now_ns <= self.turns.at_ns:
            del self._past[0]

    def _play(self, seats: Sequence[Seat], now_ns: int) -> dict[int, tuple[float, float]]:
        """What each has had, and measured, since the turns were played before."""
        pending: dict[Key, Span] = {}
        for seat in seats:
            for slot, span in seat.spans:
                self.turns.report((seat.number, slot), span)
            pending.update({(seat.number, slot): span for slot, span in seat.pending().items()})
        played = self.turns.advance(now_ns - BEHIND_NS, pending)
        if all(seat.seen for seat in seats):
            return {number: (had.had_ns, had.worked_ns) for number, had in played.items()}
        # Too much is missed to know who was at work together. Then it is as if they met by chance.
        parts = {seat.number: seat.part for seat in seats if seat.part > 0}
        return {
            seat.number: (
                seat.grown_ns * part_had([part for each, part in parts.items() if each != seat.number]),
                seat.grown_ns,
            )
            for seat in seats
        }

    def _learn(self, seat: Seat, had: tuple[float, float], passed_ns: int) -> None:
        at_ns = self.turns.at_ns
        counted = next((past for past in reversed(self._past) if past.now_ns <= at_ns), self._past[0])
        then = next((past for past in self._past if past.now_ns >= at_ns), self._past[-1])
        among = then.working | {seat.number}
        if had[1] or seat.number in then.working:  # of who rests, nothing is to be learned
            seat.slicing.play(
                among,
                had_ns=had[0],
                worked_ns=had[1],
                passed_ns=passed_ns,
                slice_ppm=counted.slices_ppm.get(seat.number, PPM),
            )
        seat.estimate(among, at_ns)


def _guessed(seat: Seat, among: Among, seats: Sequence[Seat], now_ns: int) -> int:
    """As if all who are at work had enough of it."""
    together = [each for each in seats if each.number in among]
    rates = tuple(
        each.grant.in_force(each.index, now_ns).rate_ppm if each.limited else PPM for each in together
    )
    return guess(rates)[together.index(seat)]

"""How much of what a share measures beside neighbours it truly has. Pure.

Processes take turns on a card. The time between two events of a process holds the turns of its neighbours
too, so a ledger would count too much, and the share would get too little. Each measured time is therefore
multiplied by a ratio:

    alone: 1, at once.
    beside others: what the turns, played again (turns.py), say of the last third of a second; at first what
        they said when the same shares were last at work together, or a guess.

That is as good as the turns are known. The driver's own count of each process's time is true, but late and
coarse; from it a factor is learned for each set of shares that work together. And what was counted wrongly
all the same is made good soon: so much more or less is counted in the next moments.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from vcuda.units import PPM

LEAST_PPM = 50_000
MEMORY_NS = 300_000_000
"""What the turns said so long ago counts a third of what they say now."""
ENOUGH_NS = 8_000_000
"""Of measured time: with less, nothing is known of the ratio."""
REPAY_NS = 200_000_000
"""In about such a time an error is made good,"""
REPAY_MOST = 0.1
"""by no more than this part of the card's time."""
CARRIED_MOST_NS = 60_000_000
"""No more is ever made good that way: more than that is no error of time slicing."""
TOLD_MEMORY_NS = 10_000_000_000
"""The driver's count: so long ago it counts a third of now."""
TOLD_PRIOR_NS = 150_000_000
"""In the beginning so much counts as if it had been told, just as the turns say."""
FACTOR_MOST = 4.0
SLOW_NS = 4_000_000_000
"""In about such a time, what the driver counts more or less than was estimated is made good,"""
SLOW_MOST = 0.01
"""by no more than this part of the card's time: nobody's share of a second is to be off for it."""
SLOW_CARRIED_MOST_NS = 500_000_000
SETS = 64
"""Of so many sets of neighbours is remembered what was learned."""
_ROUNDS = 40
"""Until a guess is at rest."""
_MEET_MORE = 1.05
"""By so much; on a card that is all given out, it also brings the guess to where everybody always meets."""

Among = frozenset[int]
"""Shares that are at work together."""


@dataclass
class _Known:
    """What is known of a share among certain others. All of these fade with time."""

    had_ns: float = 0.0
    """By the turns."""
    worked_ns: float = 0.0
    passed_ns: float = 0.0
    told_ns: float = TOLD_PRIOR_NS
    """By the driver."""
    played_ns: float = TOLD_PRIOR_NS
    """By the turns, in the time of which the driver told."""

    @property
    def factor(self) -> float:
        """True time, by that of the turns."""
        return max(1 / FACTOR_MOST, min(FACTOR_MOST, self.told_ns / max(1.0, self.played_ns)))


@dataclass
class Slicing:
    """What is known of one share, and what it still owes or is owed."""

    carried_ns: float = 0.0
    """Truly had and not counted; negative: counted and not had."""
    slow_ns: float = 0.0
    """The same, by the driver's count; it is carried over little by little."""
    estimated_ns: float = 0.0
    """Had since the beginning, as far as is known at once."""
    had_ns: float = 0.0
    """The same by the turns alone."""
    _known: dict[Among, _Known] = field(default_factory=dict[Among, _Known])

    def play(
        self, among: Among, *, had_ns: float, worked_ns: float, passed_ns: float, slice_ppm: int
    ) -> None:
        """Take in what the turns say of the last `passed_ns`, which were counted with `slice_ppm`.

        `among` says who has been at work in that time, the share itself included.
        """
        alone = len(among) < 2
        known = _Known() if alone else self._of(among)
        estimated_ns = had_ns if alone else had_ns * known.factor
        self.had_ns += had_ns
        self.estimated_ns += estimated_ns
        self._carry(estimated_ns - worked_ns * slice_ppm / PPM)
        if alone:  # nothing is corrected now, and what is old is not made good later
            self.carried_ns *= math.exp(-passed_ns / (2 * REPAY_NS))
            self.slow_ns *= math.exp(-passed_ns / SLOW_NS)
            return
        slow_ns = max(-SLOW_MOST, min(SLOW_MOST, self.slow_ns / SLOW_NS)) * passed_ns
        self.slow_ns -= slow_ns
        self._carry(slow_ns)
        keep = math.exp(-passed_ns / MEMORY_NS)
        known.had_ns = known.had_ns * keep + had_ns
        known.worked_ns = known.worked_ns * keep + worked_ns
        known.passed_ns = known.passed_ns * keep + passed_ns

    def hear(
        self, among: Among | None, *, told_ns: float, estimated_ns: float, had_ns: float, passed_ns: float
    ) -> None:
        """Take in what the driver tells of some time, in which so much was estimated, and by the turns alone.

        `among` is None where it was not the same shares all the time, or is not known.
        """
        slow_ns = self.slow_ns + told_ns - estimated_ns
        self.slow_ns = max(-SLOW_CARRIED_MOST_NS, min(SLOW_CARRIED_MOST_NS, slow_ns))
        if among is None or len(among) < 2:
            return
        if had_ns <= 0:
            return
        known = self._of(among)
        keep = math.exp(-passed_ns / TOLD_MEMORY_NS)
        known.told_ns = known.told_ns * keep + max(0.0, told_ns)
        known.played_ns = known.played_ns * keep + had_ns

    def slice_ppm(self, among: Among, guessed_ppm: Callable[[], int]) -> int:
        """The correction for what comes next, when these are at work; PPM is none."""
        if len(among) < 2:
            return PPM
        known = self._of(among)
        if known.worked_ns < ENOUGH_NS or known.passed_ns <= 0:
            return max(LEAST_PPM, min(PPM, guessed_ppm()))
        ratio = known.had_ns / known.worked_ns
        repaid = max(-REPAY_MOST, min(REPAY_MOST, self.carried_ns / REPAY_NS))
        used = max(REPAY_MOST / 2, known.had_ns / known.passed_ns)
        wanted = PPM * ratio * known.factor * (1 + max(-0.5, min(1.0, repaid / used)))
        return round(max(LEAST_PPM, min(PPM, wanted)))

    def _carry(self, more_ns: float) -> None:
        self.carried_ns = max(-CARRIED_MOST_NS, min(CARRIED_MOST_NS, self.carried_ns + more_ns))

    def _of(self, among: Among) -> _Known:
        known = self._known.pop(among, None) or _Known()
        self._known[among] = known  # the last one used is the last to be forgotten
        if len(self._known) > SETS:
            del self._known[next(iter(self._known))]
        return known


@lru_cache(maxsize=64)
def guess(rates_ppm: tuple[int, ...]) -> list[int]:
    """The corrections to begin with for shares that all have enough work, before anything is known of them.

    As if each were at work at random, as often as it takes to have its share, and whoever is at work together
    took turns evenly. Those that wait for their balance meet somewhat more often than that.
    """
    shares = [rate_ppm / PPM * _MEET_MORE for rate_ppm in rates_ppm]
    ratios = [1.0] * len(shares)
    for _ in range(_ROUNDS):
        at_work = [min(1.0, share / ratio) for share, ratio in zip(shares, ratios, strict=True)]
        ratios = [part_had(at_work[:index] + at_work[index + 1 :]) for index in range(len(at_work))]
    return [round(max(LEAST_PPM, min(PPM, ratio * PPM))) for ratio in ratios]


def part_had(others: Sequence[float]) -> float:
    """What one has of its turns, if each of the others is at work for such a part of the time."""
    chances = [1.0]  # that none, one, two... of them are
    for part in others:
        chances = [
            (chances[count] if count < len(chances) else 0.0) * (1 - part)
            + (chances[count - 1] * part if count else 0.0)
            for count in range(len(chances) + 1)
        ]
    return sum(chance / (1 + count) for count, chance in enumerate(chances))

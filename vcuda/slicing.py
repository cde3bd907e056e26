"""How much of what a share measures beside neighbours it truly has. Pure.

Processes take turns on a card. The time between two events of a process holds the slices of its neighbours
too, so a ledger would count too much, and the share would get too little. The driver's own count of each
process's time is true, but late and coarse. So each measured time is multiplied by a ratio that is learned
from the two, and what has gone wrong so far is carried forward and made good: in the long run the ledger
counts what the driver counts, though the ratio of the moment is never quite known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from vcuda.units import PPM

LEAST_PPM = 50_000
MEMORY_NS = 2_000_000_000
"""What was seen so long ago counts a third of what is seen now."""
REPAY_NS = 4_000_000_000
"""In about such a time an error is made good,"""
REPAY_MOST = 0.01
"""by no more than this part of the card's time: nobody's share of a second is to be off for it."""
CARRIED_MOST_NS = 500_000_000
"""No more is ever made good. More than that was never an error of time slicing."""
_ENOUGH_NS = 20_000_000
"""Of measured time: with less, nothing is known of the ratio."""
_ROUNDS = 40
"""Until a guess is at rest."""
_MEET_MORE = 1.05
"""By so much; on a card that is all given out, it also brings the guess to where everybody always meets."""


@dataclass(frozen=True, kw_only=True)
class Slicing:
    """What is known of one share."""

    true_ns: float = 0.0
    """By the driver's count; the older the less. So are the next three."""
    measured_ns: float = 0.0
    """By the share's own clock, neighbours' slices included."""
    counted_ns: float = 0.0
    """In its ledger: measured, times the correction in force."""
    passed_ns: float = 0.0
    """Of real time."""
    carried_ns: float = 0.0
    """Truly had and never counted, since the beginning; negative: the share is owed it."""

    @property
    def known(self) -> bool:
        """Whether enough was seen to go by."""
        return self.measured_ns >= _ENOUGH_NS

    @property
    def slice_ppm(self) -> int:
        """The correction for what comes next, beside neighbours; PPM is none."""
        if not self.known:
            return PPM
        ratio = self.true_ns / self.measured_ns
        repaid = max(-REPAY_MOST, min(REPAY_MOST, self.carried_ns / REPAY_NS))
        used = self.counted_ns / self.passed_ns
        wanted = PPM * ratio * (1 + repaid / max(used, REPAY_MOST))
        return round(max(LEAST_PPM, min(PPM, wanted)))


def learn(
    known: Slicing, *, true_ns: float, measured_ns: float, counted_ns: float, passed_ns: float
) -> Slicing:
    """Take in what happened in the last `passed_ns`, beside neighbours."""
    if passed_ns <= 0:
        return known
    keep = math.exp(-passed_ns / MEMORY_NS)
    carried = known.carried_ns + true_ns - counted_ns
    return Slicing(
        true_ns=known.true_ns * keep + max(0.0, true_ns),
        measured_ns=known.measured_ns * keep + max(0.0, measured_ns),
        counted_ns=known.counted_ns * keep + max(0.0, counted_ns),
        passed_ns=known.passed_ns * keep + passed_ns,
        carried_ns=max(-CARRIED_MOST_NS, min(CARRIED_MOST_NS, carried)),
    )


def forget(known: Slicing, *, passed_ns: float) -> Slicing:
    """Let time pass in which the share was alone: then nothing is to be corrected, nor long remembered.

    The ratio stays as it was, the best guess for when a neighbour comes back.
    """
    keep = math.exp(-max(0.0, passed_ns) / MEMORY_NS)
    return Slicing(
        true_ns=known.true_ns,
        measured_ns=known.measured_ns,
        counted_ns=known.counted_ns,
        passed_ns=known.passed_ns,
        carried_ns=known.carried_ns * keep,
    )


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
        ratios = [_part_had(at_work[:index] + at_work[index + 1 :]) for index in range(len(at_work))]
    return [round(max(LEAST_PPM, min(PPM, ratio * PPM))) for ratio in ratios]


def _part_had(others: Sequence[float]) -> float:
    """What one has of its turns, if each of the others is at work for such a part of the time."""
    chances = [1.0]  # that none, one, two... of them are
    for part in others:
        chances = [
            (chances[count] if count < len(chances) else 0.0) * (1 - part)
            + (chances[count - 1] * part if count else 0.0)
            for count in range(len(chances) + 1)
        ]
    return sum(chance / (1 + count) for count, chance in enumerate(chances))

"""The correction for time slicing: a simulated share whose clock is stretched by its neighbours."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.slicing import (
    CARRIED_MOST_NS,
    LEAST_PPM,
    REPAY_MOST,
    REPAY_NS,
    SETS,
    SLOW_MOST,
    Slicing,
    guess,
)
from vcuda.units import PPM

SECOND, MS = 1_000_000_000, 1_000_000
LOOK_NS = 22 * MS
BEHIND = 3
"""Looks after which the turns are known."""
PAIR, ALONE = frozenset({1, 2}), frozenset({1})


@dataclass
class Stretched:
    """A share with enough work: its limiter holds the ledger to the share, however much truly runs."""

    share: float
    ratio: Callable[[float], float]
    """True of measured time, at an instant in s; 1 where it is alone."""
    turns_err: float = 1.0
    """What the turns say, by what is true."""
    told: bool = False
    known: Slicing = field(default_factory=Slicing)
    true_ns: list[float] = field(default_factory=list[float])
    """At each look."""
    slices: list[int] = field(default_factory=list[int])
    _measured: list[float] = field(default_factory=list[float])
    _heard: int = 0
    _estimated_then: float = 0.0

    def run(self, seconds: float) -> None:
        chance = random.Random(7)
        for _ in range(round(seconds * SECOND / LOOK_NS)):
            at = len(self.true_ns)
            slice_ppm = self.known.slice_ppm(self._among(at), lambda: 600_000)
            measured = min(LOOK_NS, self.share * LOOK_NS * PPM / slice_ppm)
            self.slices.append(slice_ppm)
            self._measured.append(measured)
            self.true_ns.append(measured * self.ratio(at * LOOK_NS / SECOND))
            if at >= BEHIND:
                then = at - BEHIND
                error = self.turns_err if self._among(then) == PAIR else 1.0
                self.known.play(
                    self._among(then),
                    had_ns=self.true_ns[then] * error,
                    worked_ns=self._measured[then],
                    passed_ns=LOOK_NS,
                    slice_ppm=self.slices[then],
                )
            if self.told and at - self._heard >= 23 + BEHIND:
                first, last = self._heard, at - BEHIND + 1
                told = sum(self.true_ns[first:last]) + chance.uniform(-1, 1) * 0.01 * LOOK_NS * (last - first)
                self.known.hear(
                    PAIR,
                    told_ns=told,
                    estimated_ns=self.known.estimated_ns - self._estimated_then,
                    had_ns=self.turns_err * sum(self.true_ns[first:last]),
                    passed_ns=LOOK_NS * (last - first),
                )
                self._heard, self._estimated_then = last, self.known.estimated_ns

    def _among(self, at: int) -> frozenset[int]:
        return PAIR if self.ratio(at * LOOK_NS / SECOND) < 1 else ALONE

    def error_points(self, since_s: float, until_s: float) -> float:
        """By how much of the card the mean is off, in percent."""
        looks = self.true_ns[round(since_s * SECOND / LOOK_NS) : round(until_s * SECOND / LOOK_NS)]
        return 100 * (sum(looks) / (len(looks) * LOOK_NS) - self.share)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
@pytest.mark.parametrize("ratio", [0.95, 0.75, 0.57, 0.45])
def test_every_second_is_within_two_points_and_the_mean_within_half_a_point(
    share: float, ratio: float
) -> None:
    stretched = Stretched(share, lambda _: ratio)
    stretched.run(12)
    seconds = [stretched.error_points(at / 10, at / 10 + 1) for at in range(3, 110)]
    assert max(map(abs, seconds)) < 2
    assert abs(stretched.error_points(1, 12)) < 0.1


def test_ratio_that_changes_all_the_time_is_followed() -> None:
    trembling = random.Random(3)
    steps = [trembling.uniform(0.5, 0.7) for _ in range(1000)]
    stretched = Stretched(0.3, lambda at: steps[int(at * 5)])
    stretched.run(30)
    assert max(abs(stretched.error_points(at / 10, at / 10 + 1)) for at in range(10, 285)) < 2
    assert abs(stretched.error_points(1, 30)) < 0.1


def test_alone_all_of_it_is_counted_at_once_and_nothing_is_made_good() -> None:
    stretched = Stretched(0.4, lambda at: 0.6 if at < 5 or at >= 9 else 1.0)
    stretched.run(14)
    alone = [slice_ppm for at, slice_ppm in enumerate(stretched.slices) if 5 <= at * LOOK_NS / SECOND < 9]
    assert set(alone) == {PPM}
    assert stretched.error_points(5, 9) == pytest.approx(0, abs=1e-9)
    # What was learned is there again.
    back = stretched.slices[round(9 * SECOND / LOOK_NS) + 1]
    assert back == pytest.approx(600_000, rel=0.02)
    assert max(abs(stretched.error_points(at / 10, at / 10 + 1)) for at in range(80, 129)) < 2


def test_error_of_one_moment_is_made_good_within_a_second() -> None:
    stretched = Stretched(0.3, lambda at: 0.9 if 3 <= at < 3.1 else 0.6)
    stretched.run(6)
    assert stretched.error_points(3, 3.1) > 10
    assert abs(stretched.error_points(3, 4)) < 0.3
    assert max(abs(stretched.error_points(at / 100, at / 100 + 1)) for at in range(200, 400)) < 2


@pytest.mark.parametrize("error", [0.8, 1.25])
def test_driver_tells_by_how_much_the_turns_are_wrong(error: float) -> None:
    stretched = Stretched(0.3, lambda _: 0.6, turns_err=error, told=True)
    stretched.run(40)
    assert abs(stretched.error_points(5, 40)) < 1
    assert abs(stretched.error_points(20, 40)) < 0.5
    assert max(abs(stretched.error_points(at, at + 1)) for at in range(10, 39)) < 2


def known(ratio: float, *, used: float = 0.3) -> Slicing:
    slicing = Slicing()
    for _ in range(50):
        slicing.play(
            PAIR,
            had_ns=used * LOOK_NS,
            worked_ns=used * LOOK_NS / ratio,
            passed_ns=LOOK_NS,
            slice_ppm=round(ratio * PPM),
        )
    return slicing


def test_nobody_gets_or_loses_more_than_a_tenth_of_the_card_for_what_was() -> None:
    usual, owes, owed = known(0.5), known(0.5), known(0.5)
    owes.play(PAIR, had_ns=1e12, worked_ns=0, passed_ns=1, slice_ppm=PPM)
    owed.play(PAIR, had_ns=0, worked_ns=1e12, passed_ns=1, slice_ppm=PPM)
    assert (owes.carried_ns, owed.carried_ns) == (CARRIED_MOST_NS, -CARRIED_MOST_NS)
    assert CARRIED_MOST_NS / REPAY_NS > REPAY_MOST
    for slicing, carried in ((owes, CARRIED_MOST_NS), (owed, -CARRIED_MOST_NS)):
        usual.carried_ns = carried
        assert usual.slice_ppm(PAIR, lambda: PPM) == pytest.approx(
            500_000 * (1 + (REPAY_MOST if carried > 0 else -REPAY_MOST) / 0.3), rel=0.001
        )
        assert slicing.carried_ns == carried


def test_drivers_count_moves_nobody_by_more_than_a_point() -> None:
    slicing = known(0.5)
    slicing.hear(None, told_ns=1e12, estimated_ns=0, had_ns=0, passed_ns=SECOND)
    before = slicing.carried_ns
    slicing.play(PAIR, had_ns=0.3 * LOOK_NS, worked_ns=0.6 * LOOK_NS, passed_ns=LOOK_NS, slice_ppm=PPM // 2)
    assert slicing.carried_ns - before == pytest.approx(SLOW_MOST * LOOK_NS)


def test_correction_stays_within_its_bounds() -> None:
    none_had, all_had = known(0.001), known(1.0)
    all_had.carried_ns = CARRIED_MOST_NS
    none_had.carried_ns = -CARRIED_MOST_NS
    assert (none_had.slice_ppm(PAIR, lambda: PPM), all_had.slice_ppm(PAIR, lambda: PPM)) == (LEAST_PPM, PPM)
    assert Slicing().slice_ppm(PAIR, lambda: 0) == LEAST_PPM


def test_guess_holds_until_something_is_known_of_these_very_neighbours() -> None:
    slicing = known(0.5)
    assert slicing.slice_ppm(PAIR, lambda: 700_000) == 500_000
    assert slicing.slice_ppm(PAIR | {3}, lambda: 700_000) == 700_000
    assert slicing.slice_ppm(ALONE, lambda: 700_000) == PPM


def test_sets_of_neighbours_that_did_not_come_back_are_forgotten() -> None:
    slicing = known(0.5)
    for number in range(SETS):
        slicing.slice_ppm(frozenset({1, 100 + number}), lambda: 700_000)
    assert slicing.slice_ppm(PAIR, lambda: 700_000) == 700_000


def test_guess_for_one_that_is_alone_corrects_nothing() -> None:
    assert guess(()) == []
    assert guess((400_000,)) == [PPM]


def test_guess_for_two_is_where_their_meetings_are_consistent() -> None:
    one, other = (ratio / PPM for ratio in guess((400_000, 300_000)))
    # Each is at work for so long that it has its share, and loses half of the time in which the other is.
    assert one == pytest.approx(1 - 0.3 * 1.05 / other / 2, abs=1e-4)
    assert other == pytest.approx(1 - 0.4 * 1.05 / one / 2, abs=1e-4)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_guess_on_a_card_that_is_all_given_out_is_that_all_always_take_turns(count: int) -> None:
    assert guess((PPM // count,) * count) == pytest.approx([PPM / count] * count, rel=0.02)


@given(st.lists(st.integers(1, PPM), min_size=1, max_size=10))
def test_guess_stays_within_bounds_and_more_neighbours_never_mean_less_correction(rates: list[int]) -> None:
    alone, beside = guess(tuple(rates)), guess((*rates, 100_000))
    assert all(LEAST_PPM <= each <= PPM for each in beside)
    assert all(more <= less + 10 for more, less in zip(beside, alone, strict=False))

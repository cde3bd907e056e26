"""The correction for time slicing: a simulated share whose clock is stretched by its neighbours."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.slicing import LEAST_PPM, REPAY_MOST, Slicing, forget, guess, learn
from vcuda.units import PPM

SECOND = 1_000_000_000
STEP_NS = SECOND // 2
SAMPLE_NS = SECOND // 6


@dataclass
class Stretched:
    """A share with enough work: its limiter holds the ledger to the share, however much truly runs."""

    share: float
    ratio: Callable[[float], float]
    """True of measured time, at an instant in s."""
    kernel_ns: int = 1
    known: Slicing = field(default_factory=Slicing)
    true_ns: list[float] = field(default_factory=list[float])
    """In each step."""
    _counted_ns: float = 0.0
    _random: random.Random = field(default_factory=lambda: random.Random(7))

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * SECOND / STEP_NS)):
            now = len(self.true_ns) * STEP_NS
            slice_ppm = self.known.slice_ppm
            # A kernel is counted when it has ended.
            upto = (self.share * (now + STEP_NS)) // self.kernel_ns * self.kernel_ns
            counted, self._counted_ns = upto - self._counted_ns, upto
            measured = counted * PPM / slice_ppm
            true = min(float(STEP_NS), measured * self.ratio(now / SECOND))
            self.true_ns.append(true)
            self.known = learn(
                self.known,
                true_ns=self._told(true),
                measured_ns=measured,
                counted_ns=counted,
                passed_ns=STEP_NS,
            )

    def _told(self, true_ns: float) -> float:
        """As the driver tells it: in samples of 1/6 s, of whole percents."""
        told = 0.0
        for _ in range(STEP_NS // SAMPLE_NS):
            part = true_ns / STEP_NS + self._random.uniform(-0.02, 0.02)
            told += round(100 * max(0.0, part)) / 100 * STEP_NS / (STEP_NS // SAMPLE_NS)
        return told

    def error_points(self, since_s: float, until_s: float) -> float:
        """By how much of the card the mean is off, in percent."""
        steps = self.true_ns[round(since_s * SECOND / STEP_NS) : round(until_s * SECOND / STEP_NS)]
        return 100 * (sum(steps) / (len(steps) * STEP_NS) - self.share)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
@pytest.mark.parametrize("ratio", [0.95, 0.75, 0.57, 0.45])
def test_mean_over_20_s_is_the_share(share: float, ratio: float) -> None:
    stretched = Stretched(share, lambda _: ratio)
    stretched.run(60)
    assert abs(stretched.error_points(0, 20)) < 0.5
    assert abs(stretched.error_points(20, 40)) < 0.3
    assert abs(stretched.error_points(40, 60)) < 0.3


@pytest.mark.parametrize("share", [0.1, 0.3, 0.4])
def test_each_second_is_within_two_points_once_the_ratio_is_known(share: float) -> None:
    stretched = Stretched(share, lambda _: 0.6)
    stretched.run(40)
    assert max(abs(stretched.error_points(at, at + 1)) for at in range(10, 39)) < 2


def test_ratio_that_changes_all_the_time_is_followed() -> None:
    trembling = random.Random(3)
    stretched = Stretched(0.3, lambda _: trembling.uniform(0.5, 0.7))
    stretched.run(60)
    assert abs(stretched.error_points(20, 40)) < 0.5
    assert abs(stretched.error_points(40, 60)) < 0.5


def test_long_kernels_that_are_counted_late_do_not_matter_in_the_long_run() -> None:
    stretched = Stretched(0.3, lambda _: 0.6, kernel_ns=200_000_000)
    stretched.run(80)
    assert abs(stretched.error_points(0, 80)) < 0.5


def test_error_of_one_moment_is_made_good_later() -> None:
    stretched = Stretched(0.3, lambda at: 0.9 if 20 <= at < 22 else 0.6)
    stretched.run(60)
    at_once, in_the_end = stretched.error_points(20, 22), stretched.error_points(20, 60)
    assert at_once > 5
    assert abs(in_the_end) < 0.25


def test_nobody_gets_or_loses_more_than_one_point_for_what_was() -> None:
    """The greatest debt there is moves the correction by that much and no further."""
    usual = learn(Slicing(), true_ns=60e9, measured_ns=100e9, counted_ns=60e9, passed_ns=200e9)
    owed = learn(usual, true_ns=0, measured_ns=0, counted_ns=1e12, passed_ns=1)
    had = learn(usual, true_ns=1e12, measured_ns=0, counted_ns=0, passed_ns=1)
    assert usual.slice_ppm == 600_000
    assert owed.carried_ns == -had.carried_ns == -500_000_000
    used = usual.counted_ns / usual.passed_ns
    owed_again = Slicing(**{**vars(usual), "carried_ns": owed.carried_ns})
    assert owed_again.slice_ppm == pytest.approx(600_000 * (1 - REPAY_MOST / used), abs=1)


def test_correction_stays_within_its_bounds() -> None:
    none_had = learn(Slicing(), true_ns=0, measured_ns=9e9, counted_ns=9e9, passed_ns=10e9)
    more_had = learn(Slicing(), true_ns=9e9, measured_ns=1e9, counted_ns=1e9, passed_ns=10e9)
    assert (none_had.slice_ppm, more_had.slice_ppm) == (LEAST_PPM, PPM)


def test_nothing_is_corrected_before_anything_is_known() -> None:
    assert Slicing().slice_ppm == PPM
    assert learn(Slicing(), true_ns=1, measured_ns=1, counted_ns=1, passed_ns=0) == Slicing()


def test_alone_the_debt_is_forgotten_and_the_ratio_kept() -> None:
    known = learn(Slicing(), true_ns=0.3e9, measured_ns=0.6e9, counted_ns=0.5e9, passed_ns=1e9)
    later = forget(known, passed_ns=20e9)
    assert abs(later.carried_ns) < 0.001 * abs(known.carried_ns)
    assert later.slice_ppm == pytest.approx(500_000, rel=0.01)


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

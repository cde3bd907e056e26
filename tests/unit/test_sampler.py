"""Adding up the driver's samples: by the interval that each is of, none missed, none counted twice."""

import random

import pytest

from vcuda.sampler import LONGEST_US, MOST_PROCESSES, Used

INTERVAL_US = 166_667
START_US = 1_000_000_000_000


def played(percents: list[dict[int, int]], looks: list[float], *, period_us: int = INTERVAL_US) -> Used:
    """A driver that tells of the last whole interval alone, asked at these instants (in intervals)."""
    used = Used()
    for look in looks:
        asked_us = START_US + int(look * period_us)
        last = int(look) - 1
        told = percents[last] if 0 <= last < len(percents) else {}
        end_us = START_US + (last + 1) * period_us
        samples = [(pid, end_us, percent) for pid, percent in told.items() if percent]
        used.add([sample for sample in samples if sample[1] > used.until_us], asked_us)
    return used


def half_intervals(count: int) -> list[float]:
    """Two looks in each, from when the first has ended."""
    return [1.3 + step / 2 for step in range(2 * count)]


def test_each_interval_counts_once_however_often_it_is_asked_for() -> None:
    used = played([{1: 40, 2: 30}] * 30, half_intervals(30))
    # The first interval is the one that tells where intervals begin.
    assert used.used_us == pytest.approx({1: 29 * INTERVAL_US * 0.4, 2: 29 * INTERVAL_US * 0.3})
    assert used.until_us == START_US + 30 * INTERVAL_US
    assert used.interval_us == INTERVAL_US


def test_interval_that_was_missed_is_taken_to_have_been_like_the_next() -> None:
    looks = [look for look in half_intervals(31) if int(look) not in (10, 11, 20)]
    used = played([{1: 40}] * 30, looks)
    assert used.used_us == pytest.approx({1: 29 * INTERVAL_US * 0.4})


def test_quiet_intervals_count_nothing() -> None:
    percents = [{1: 50}] * 6 + [{}] * 10 + [{1: 50}] * 6
    used = played(percents, half_intervals(23))
    assert used.used_us == pytest.approx({1: 11 * INTERVAL_US * 0.5})


def test_who_is_not_in_an_interval_has_not_used_the_card_in_it() -> None:
    percents = [{1: 50, 2: 50}, {1: 50, 2: 50}, {1: 100}, {1: 100}, {1: 50, 2: 50}]
    used = played(percents, half_intervals(6))
    assert used.used_us == pytest.approx({1: 3 * INTERVAL_US, 2: INTERVAL_US})


def test_driver_that_samples_once_a_second_is_not_taken_to_be_quiet_in_between() -> None:
    second_us = 1_000_000
    looks = [1.3 + step * 0.08 for step in range(125)]
    used = played([{1: 60}] * 10, looks, period_us=second_us)
    assert used.used_us == pytest.approx({1: 9 * second_us * 0.6})


def test_driver_that_tells_several_intervals_at_once_is_heard_in_full() -> None:
    used = Used()
    used.add([(1, START_US, 10)], START_US)
    used.add(
        [
            (1, START_US + 3 * INTERVAL_US, 30),
            (2, START_US + INTERVAL_US + 50, 40),
            (1, START_US + INTERVAL_US, 10),
            (2, START_US + 3 * INTERVAL_US, 60),
            (1, START_US + 2 * INTERVAL_US, 20),
        ],
        START_US + 3 * INTERVAL_US,
    )
    assert used.used_us == pytest.approx({1: 0.6 * INTERVAL_US, 2: INTERVAL_US}, rel=1e-3)


def test_end_of_an_interval_that_is_told_with_a_tremble_is_the_same_interval() -> None:
    used = Used()
    used.add([(1, START_US, 50)], START_US)
    for end_us in (START_US + INTERVAL_US, START_US + INTERVAL_US + 3, START_US + INTERVAL_US - 2):
        used.add([(1, end_us, 50)], end_us)
    assert used.used_us == pytest.approx({1: INTERVAL_US / 2}, rel=1e-3)
    assert used.interval_us == INTERVAL_US


def test_long_silence_of_the_sampler_counts_for_so_much_at_most() -> None:
    used = Used()
    used.add([(1, START_US, 100)], START_US)
    used.add([(1, START_US + 3600_000_000, 100)], START_US + 3600_000_000)
    assert used.used_us == {1: LONGEST_US}


def test_processes_that_are_gone_are_forgotten_in_the_end() -> None:
    used = Used()
    for step in range(2 * MOST_PROCESSES):
        at_us = START_US + step * INTERVAL_US
        used.add([(step, at_us, 50), (7, at_us, 50)], at_us)
    assert len(used.used_us) <= MOST_PROCESSES + 2
    assert used.used_us[7] == pytest.approx((2 * MOST_PROCESSES - 1) * INTERVAL_US / 2, rel=0.01)


def test_whole_percents_even_out() -> None:
    uniform = random.Random(5)
    truth = [uniform.uniform(0.25, 0.35) for _ in range(120)]
    used = played([{1: round(part * 100)} for part in truth], half_intervals(121))
    assert used.used_us[1] / INTERVAL_US == pytest.approx(sum(truth[1:]), abs=0.12)

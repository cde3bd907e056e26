"""Who gets which share of a card: the order of the promises, by example, and when a share wants what."""

import pytest

from vcuda.arbiter import (
    HIGH,
    IDLE_NS,
    LOW,
    NORMAL,
    STARVED_NS,
    USE_NS,
    Claim,
    Memory,
    Promise,
    Sight,
    allocate,
    judge,
)

SECOND = 1_000_000_000
START = 1_000 * SECOND


def claim(guarantee: float, ceiling: float, *, wants: float | None = None, priority: int = NORMAL) -> Claim:
    """A claim in percent; `wants` None for all that it can get."""
    promise = Promise(
        guarantee_ppm=round(guarantee * 10_000), ceiling_ppm=round(ceiling * 10_000), priority=priority
    )
    return Claim(promise=promise, demand_ppm=promise.ceiling_ppm if wants is None else round(wants * 10_000))


@pytest.mark.parametrize(
    ("claims", "rates"),
    [
        ([claim(30, 60)], [60]),
        ([claim(30, 30)], [30]),
        ([claim(30, 60), claim(40, 40, wants=0)], [60, 40]),
        ([claim(30, 60), claim(40, 40)], [60, 40]),
        ([claim(30, 60), claim(70, 70)], [30, 70]),
        ([claim(30, 100), claim(20, 100), claim(50, 50, wants=0)], [60, 40, 50]),
        ([claim(30, 40), claim(20, 100), claim(50, 50, wants=0)], [40, 60, 50]),
        ([claim(30, 100), claim(50, 50, wants=10)], [90, 50]),
        ([claim(30, 100, priority=HIGH), claim(50, 100)], [50, 50]),
        ([claim(30, 60, priority=HIGH), claim(30, 100)], [60, 40]),
        ([claim(30, 100, priority=HIGH), claim(50, 100, priority=LOW)], [99, 1]),
        ([claim(30, 30), claim(50, 100, priority=LOW)], [30, 70]),
        ([claim(30, 100), claim(50, 100, priority=LOW)], [50, 50]),
        ([claim(90, 100), claim(0.5, 100, priority=LOW)], [99.5, 0.5]),
        ([claim(30, 100, priority=HIGH, wants=10), claim(50, 100, priority=LOW)], [30, 90]),
        ([claim(30, 100, priority=HIGH), claim(50, 100, wants=0, priority=LOW)], [100, 1]),
        ([claim(80, 80), claim(80, 80)], [50, 50]),
        ([claim(30, 60, wants=10), claim(20, 100, wants=10)], [60, 40]),
    ],
    ids=[
        "alone, up to the ceiling",
        "without a ceiling, the guarantee",
        "what another leaves idle; who is idle has its guarantee if it starts",
        "what nobody has been promised",
        "nothing beyond the guarantee where all is wanted",
        "in proportion to the guarantees",
        "what one cannot take goes to the other",
        "what another does not use of its guarantee, which it has all the same",
        "high first, once all have what was guaranteed",
        "high up to its ceiling, then normal",
        "low gives way to high, down to its floor",
        "low gets what is left",
        "low has its guarantee before normal has more than its own",
        "the floor of a tiny low share is its guarantee",
        "high that does not want it leaves it to low",
        "low that is idle may not disturb when it starts",
        "guarantees that do not fit are cut in proportion",
        "what nobody wants is at hand for who works, once all have what was guaranteed",
    ],
)
def test_shares_in_force(claims: list[Claim], rates: list[float]) -> None:
    assert [award.rate_ppm for award in allocate(claims)] == pytest.approx(
        [rate * 10_000 for rate in rates], abs=2
    )


def sight(
    now_ns: int, *, active_ns: int = 0, starved_ns: int = 0, balance_ns: int = 0, gpu_ns: int = 0
) -> Sight:
    return Sight(
        now_ns=now_ns, active_ns=active_ns, starved_ns=starved_ns, balance_ns=balance_ns, gpu_ns=gpu_ns
    )


PROMISE = Promise(guarantee_ppm=300_000, ceiling_ppm=600_000)


def test_share_that_has_never_worked_is_idle() -> None:
    assert judge(Memory(), sight(START), PROMISE).demand_ppm == 0


def test_share_that_wakes_up_wants_its_guarantee_at_once() -> None:
    assert judge(Memory(), sight(START, active_ns=START - 1), PROMISE).demand_ppm == 300_000


def test_share_that_waits_wants_its_ceiling_for_a_while() -> None:
    memory = judge(Memory(), sight(START, active_ns=START, starved_ns=START + SECOND), PROMISE)
    assert memory.demand_ppm == 600_000
    later = START + STARVED_NS - 1
    assert judge(memory, sight(later, starved_ns=START), PROMISE).demand_ppm == 600_000
    assert judge(memory, sight(later + 1, starved_ns=START), PROMISE).demand_ppm == 0


def test_share_that_stops_is_idle_after_a_moment() -> None:
    memory = judge(Memory(), sight(START, active_ns=START), PROMISE)
    assert judge(memory, sight(START + IDLE_NS - 1, active_ns=START), PROMISE).demand_ppm > 0
    assert judge(memory, sight(START + IDLE_NS, active_ns=START), PROMISE) == Memory()


@pytest.mark.parametrize("starved_ns", [START + 200 * SECOND, 2**64 - 1])
def test_what_no_shim_can_have_written_is_not_believed(starved_ns: int) -> None:
    seen = sight(START, starved_ns=starved_ns, active_ns=2**63, balance_ns=-(2**62))
    assert judge(Memory(), seen, PROMISE) == Memory()


def watch(use: list[float], *, starved_until: float = 0) -> list[int]:
    """What a share wants that uses these parts of the card, each for 1/10 s; looked at as often."""
    memory, gpu_ns, wanted = Memory(), 0.0, []
    for step, part in enumerate(use):
        now = START + step * SECOND // 10
        starved = now if step / 10 < starved_until else 0
        memory = judge(memory, sight(now, active_ns=now, starved_ns=starved, gpu_ns=int(gpu_ns)), PROMISE)
        gpu_ns += part * SECOND / 10
        wanted.append(memory.demand_ppm)
    return wanted


def test_share_that_does_not_wait_wants_what_it_uses_and_some_more() -> None:
    wanted = watch([0.1] * 30)
    assert wanted[: USE_NS * 10 // SECOND] == [300_000] * 10
    assert 145_000 <= wanted[-1] <= 165_000


def test_share_that_was_given_more_and_waits_no_longer_keeps_it() -> None:
    wanted = watch([0.5] * 40, starved_until=1.5)
    assert wanted[:15] == [600_000] * 15
    assert set(wanted) == {600_000}


def test_share_that_waited_only_at_first_keeps_what_it_was_given_until_its_use_is_known() -> None:
    assert watch([0.5] * 9, starved_until=0.2) == [600_000] * 9


def test_demand_comes_to_rest_where_use_trembles() -> None:
    trembling = [0.1 + (0.004 if step * 7 % 5 < 2 else -0.004) for step in range(100)]
    wanted = watch(trembling)[20:]
    assert len(set(wanted)) == 1


def test_demand_falls_and_rises_with_use() -> None:
    wanted = watch([0.5] * 20 + [0.1] * 20 + [0.4] * 20, starved_until=1.5)
    assert wanted[15] == 600_000
    assert wanted[38] <= 145_000 + 60_000
    assert wanted[59] >= 400_000 * 1.25


def test_deep_debt_keeps_the_guarantee_and_a_small_one_does_not() -> None:
    points = ((START - SECOND, 0),)
    memory = Memory(demand_ppm=40_000, points=points)
    deep = judge(memory, sight(START, balance_ns=-SECOND), PROMISE)
    small = judge(memory, sight(START, balance_ns=-1_000_000), PROMISE)
    assert (deep.demand_ppm, small.demand_ppm) == (300_000, 40_000)

"""What docs/explanation/limiter.md derives, on the shim's own bucket and plan, with a simulated clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.property.limiter_model import (
    AHEAD,
    BEGIN,
    BURST,
    DEBT,
    LEAST,
    MS,
    PPM,
    SOON,
    Job,
    Model,
    S,
    Scene,
    admitted,
    signed,
    widest_overuse,
)
from vcuda._abi import ffi, lib

SHARES = st.sampled_from([1, 10_000, 100_000, 300_000, 500_000, 800_000, 999_999]) | st.integers(1, PPM - 1)
LENGTHS = st.sampled_from([20_000, 200_000, 2 * MS, 20 * MS, 200 * MS]) | st.integers(1, 100 * MS)
WORDS = st.integers(0, 2**64 - 1)
"""Noise."""


@st.composite
def jobs(draw: st.DrawFn, *, exact: bool = False) -> Job:
    true = draw(LENGTHS)
    guess = true if exact else draw(st.just(true) | st.integers(true // 100, 100 * true) | st.just(MS))
    return Job(
        true_ns=true,
        paid_ns=guess,
        pause_ns=draw(st.just(0) | st.integers(0, 50 * MS)),
        measured_after_ns=draw(st.just(0) | st.integers(0, 100 * MS)),
        waits_for_end=draw(st.booleans()),
        oversleeps_ns=draw(st.just(0) | st.integers(0, MS)),
        old_clock_ns=draw(st.just(0) | st.integers(0, 10 * MS)),
    )


def programs(*, exact: bool = False) -> st.SearchStrategy[list[list[Job]]]:
    return st.lists(st.lists(jobs(exact=exact), min_size=1, max_size=12), min_size=1, max_size=4)


def balance(bucket: Any) -> int:
    return lib.vcuda_bucket_balance(bucket)


# ---- never more ----


@settings(max_examples=400, deadline=None)
@given(programs(), SHARES)
def test_no_window_has_more_than_share_and_burst_and_one_launch_and_what_was_not_known(
    work: list[list[Job]], share: int
) -> None:
    model = Model(Scene(work, share)).run()
    assert widest_overuse(model) <= 0
    assert model.bucket.resets == 0


@settings(max_examples=200, deadline=None)
@given(programs(exact=True), SHARES)
def test_where_costs_are_known_nothing_but_burst_and_one_launch_is_added(
    work: list[list[Job]], share: int
) -> None:
    prompt = [[replace(job, oversleeps_ns=0, old_clock_ns=0) for job in program] for program in work]
    model = Model(Scene(prompt, share)).run()
    ran = admitted(model)
    for first, begin in enumerate(ran):
        used = 0
        for last in ran[first:]:
            used += last.job.true_ns
            longest = max(each.job.true_ns for each in ran)
            window = last.end_ns - begin.start_ns
            assert used <= share * (window + SOON + LEAST) // PPM + 1 + BURST + longest


@settings(max_examples=200, deadline=None)
@given(programs(), SHARES, st.lists(st.tuples(st.integers(0, 300 * MS), st.integers(0, 3)), max_size=4))
def test_killed_processes_leave_the_others_no_more_than_that(
    work: list[list[Job]], share: int, kills: list[tuple[int, int]]
) -> None:
    model = Model(Scene(work, share, kills=kills)).run()
    assert widest_overuse(model) <= 0
    assert model.bucket.resets == 0


def test_a_model_that_forgets_to_pay_is_caught() -> None:
    job = Job(true_ns=20 * MS, paid_ns=20 * MS)
    assert widest_overuse(Model(Scene([[job] * 10], 300_000)).run()) <= 0
    free = Model(Scene([[replace(job, paid_ns=0, measured_after_ns=10**12)] * 10], 300_000)).run()
    for launch in free.launches:  # as if it had been paid for
        launch.job, launch.charged_ns = job, job.true_ns
    assert widest_overuse(free) > 100 * MS


# ---- never less ----


@settings(max_examples=100, deadline=None)
@given(SHARES, st.integers(1, 3), LENGTHS, st.integers(50, 200))
def test_who_has_enough_to_do_gets_the_share(share: int, processes: int, length: int, launches: int) -> None:
    """All that came in but a burst was used when the last launch was admitted."""
    work = [[Job(true_ns=length, paid_ns=length) for _ in range(launches)] for _ in range(processes)]
    model = Model(Scene(work, share)).run()
    last = max(launch.admitted_ns or 0 for launch in model.launches)
    before = sum(launch.job.true_ns for launch in model.launches if (launch.admitted_ns or 0) < last)
    income = share * (last - BEGIN) // PPM
    assert before >= min(income, processes * (launches - 1) * length) - BURST - processes * length


# ---- waits end ----


@settings(max_examples=300, deadline=None)
@given(programs(), SHARES)
def test_a_launch_waits_for_what_is_ahead_of_it_and_no_longer(work: list[list[Job]], share: int) -> None:
    model = Model(Scene(work, share)).run()
    assert len(model.launches) == sum(map(len, work))
    for launch in model.launches:
        assert launch.admitted_ns is not None
        more = [ns for at, ns in model.raised if launch.asked_ns <= at <= launch.admitted_ns]
        # Each sleep may begin with time that was not written down yet, and end late.
        slack = LEAST + 2 * PPM // share + launch.job.oversleeps_ns + launch.job.old_clock_ns
        allowed = (launch.behind_ns + sum(more)) * PPM // share + 1 + (launch.sleeps + 1) * slack
        assert launch.admitted_ns - launch.asked_ns <= allowed


@settings(max_examples=200, deadline=None)
@given(programs(exact=True), SHARES)
def test_a_launch_sleeps_once(work: list[list[Job]], share: int) -> None:
    """Where nothing is corrected upwards meanwhile, and each reads the clock when it needs it.

    Of the tiniest shares not even a nanosecond may have come in within what a sleep is too short for.
    """
    prompt = [[replace(job, old_clock_ns=0) for job in program] for program in work]
    model = Model(Scene(prompt, share)).run()
    most = 1 if 2 * PPM // share <= SOON - LEAST else 2
    assert all(launch.sleeps <= most for launch in model.launches)


@settings(max_examples=100, deadline=None)
@given(programs(exact=True), SHARES)
def test_tickets_are_served_in_order(work: list[list[Job]], share: int) -> None:
    prompt = [[replace(job, oversleeps_ns=0, old_clock_ns=0) for job in program] for program in work]
    model = Model(Scene(prompt, share)).run()
    latest = 0
    for launch in model.launches:  # in the order of their tickets
        assert launch.admitted_ns is not None
        assert launch.admitted_ns >= latest - SOON - LEAST - 2 * PPM // share
        latest = max(latest, launch.admitted_ns)


# ---- the share changes ----


@settings(max_examples=200, deadline=None)
@given(SHARES, SHARES, st.integers(1, 900), LENGTHS)
def test_who_waits_meets_a_new_share_at_once(old: int, new: int, after_permille: int, length: int) -> None:
    """The wait is as long as if each share had held for its time, to the rounding of either."""
    full = (length - BURST) * PPM // old  # until the second launch may go, were nothing changed
    if full <= 0:
        return
    after = full * after_permille // 1000
    work = [[Job(length, length), Job(MS, MS)]]
    model = Model(Scene(work, old, changes=[(after, new)])).run()
    second = model.launches[1]
    assert second.admitted_ns is not None
    seen_at = old if after <= AHEAD else min(old, new)
    left = (length - BURST) - seen_at * after // PPM
    expected = after + left * PPM // new
    slack = LEAST + 3 * PPM // new + 3
    assert abs(second.admitted_ns - BEGIN - expected) <= slack


# ---- the clock ----


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-(10**13), 10**13) | st.integers(-AHEAD, AHEAD) | st.integers(-MS, MS), max_size=30),
    SHARES,
)
def test_a_clock_that_jumps_brings_time_once_and_each_jump_back_at_most_its_own_length(
    jumps: list[int], share: int
) -> None:
    bucket = ffi.new("struct vcuda_bucket *")
    lib.vcuda_bucket_refill(bucket, BEGIN, share)
    lib.vcuda_bucket_correct(bucket, DEBT)
    before, now, forward = balance(bucket), BEGIN, 0
    for jump in jumps:
        now = max(now + jump, 0)
        forward += max(jump, 0)
        lib.vcuda_bucket_refill(bucket, now, share)
        # Not in the past of who looks next, nor so far ahead of it that it would wait for long.
        assert bucket.refill_ns <= now + AHEAD
    assert before <= balance(bucket) <= min(before + share * forward // PPM + 1, BURST)
    later = now + AHEAD + 10 * MS
    lib.vcuda_bucket_refill(bucket, later, share)
    assert later - bucket.refill_ns <= LEAST + PPM // share + 1


# ---- noise in the ledger ----

BUCKETS = st.builds(
    lambda supply, demand, since, rate, resets: {
        "supply_ns": supply,
        "demand_ns": demand,
        "refill_ns": since,
        "rate_ppm": rate,
        "resets": resets,
    },
    WORDS,
    WORDS,
    WORDS | st.integers(BEGIN - 10 * S, BEGIN + 10 * S),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
) | st.builds(
    # Nearly true: both counters near each other, or near where they wrap.
    lambda demand, by, since, rate: {
        "supply_ns": (demand + by) % 2**64,
        "demand_ns": demand,
        "refill_ns": since,
        "rate_ppm": rate,
        "resets": 0,
    },
    WORDS | st.integers(0, 10) | st.integers(2**64 - 10, 2**64 - 1),
    st.integers(-3 * DEBT, 3 * DEBT) | st.integers(-2 * BURST, 2 * BURST),
    st.integers(BEGIN - 2 * AHEAD, BEGIN + 2 * AHEAD) | st.integers(0, BEGIN),
    st.integers(0, 2 * PPM),
)


@settings(max_examples=600, deadline=None)
@given(BUCKETS, SHARES)
def test_noise_is_put_right_and_counted(words: dict[str, int], share: int) -> None:
    bucket = ffi.new("struct vcuda_bucket *", words)
    found = signed(words["supply_ns"] - words["demand_ns"])
    lib.vcuda_bucket_refill(bucket, BEGIN, share)
    wrong = (not -2 * DEBT <= found <= BURST) + (words["refill_ns"] > BEGIN + AHEAD)
    assert (bucket.resets - words["resets"]) % 2**32 == wrong
    assert -2 * DEBT <= balance(bucket) <= BURST
    assert bucket.refill_ns <= BEGIN + AHEAD
    # Whatever it was, a launch that asks now goes after a finite time. Noise in the share may cost a first
    # sleep, noise in the clock a second.
    ticket, now = lib.vcuda_bucket_take(bucket, MS), BEGIN
    longest = (2 * DEBT + BURST) * PPM // share + 1
    for _ in range(4):
        wait = lib.vcuda_bucket_wait_at_ns(bucket, ticket, share)
        assert wait <= longest
        now += wait + AHEAD
        lib.vcuda_bucket_refill(bucket, now, share)
    assert lib.vcuda_bucket_wait_at_ns(bucket, ticket, share) == 0
    assert now <= BEGIN + 2 * longest + 4 * AHEAD


@settings(max_examples=200, deadline=None)
@given(BUCKETS, WORDS, SHARES)
def test_a_ticket_from_before_the_noise_is_reached_in_the_end(
    words: dict[str, int], ticket: int, share: int
) -> None:
    """Even where nobody else asks, and the bucket is full."""
    bucket, now = ffi.new("struct vcuda_bucket *", words), BEGIN
    for _ in range(5):
        lib.vcuda_bucket_refill(bucket, now, share)
        wait = lib.vcuda_bucket_wait_at_ns(bucket, ticket, share)
        now += wait + AHEAD
    assert wait == 0
    assert now <= BEGIN + 5 * AHEAD + 2 * ((2 * DEBT + BURST) * PPM // share + 1)


@settings(max_examples=200, deadline=None)
@given(programs(exact=True), SHARES, st.integers(0, 300 * MS), st.binary(min_size=32, max_size=32))
def test_noise_gives_what_comes_after_it_no_more_than_the_bound(
    work: list[list[Job]], share: int, at: int, noise: bytes
) -> None:
    """One overwriting, at any instant: of what asks afterwards, no window has more than ever."""

    def write(bucket: Any) -> None:
        ffi.buffer(bucket)[:] = noise

    prompt = [[replace(job, oversleeps_ns=0, old_clock_ns=0) for job in program] for program in work]
    model = Model(Scene(prompt, share, noise=(at, write))).run()
    assert all(launch.admitted_ns is not None for launch in model.launches)
    after = [launch for launch in model.launches if launch.asked_ns > BEGIN + at]
    for first, begin in enumerate(after):
        paid = 0
        for last in after[first:]:
            window = (last.admitted_ns or 0) - (begin.admitted_ns or 0)
            assert paid <= share * (window + SOON + LEAST) // PPM + 1 + BURST + begin.job.paid_ns
            paid += last.job.paid_ns


@pytest.mark.parametrize("share", [0, PPM + 1, 2**32 - 1])
def test_a_share_that_cannot_be_is_brought_into_range(share: int) -> None:
    bucket = ffi.new("struct vcuda_bucket *")
    lib.vcuda_bucket_refill(bucket, BEGIN, share)
    assert bucket.rate_ppm == (1 if share == 0 else PPM)


# ---- the plan ----


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 2 * MS), st.integers(1, 2**32 - 1), st.integers(0, MS)),
        min_size=1,
        max_size=60,
    )
)
def test_what_launches_add_to_the_plan_is_the_union_of_where_they_are_planned(
    launches: list[tuple[int, int, int, int]],
) -> None:
    plan, now, added = ffi.new("struct vcuda_plan *"), BEGIN, 0
    spans: list[tuple[int, int]] = []
    ends: dict[int, int] = {}
    for stream, length, weight, pause in launches:
        now += pause
        name = ffi.cast("void *", 4096 * stream)
        before = plan.until_ns
        step = lib.vcuda_plan_look(plan, name, now, length, weight)
        step_pointer = ffi.new("struct vcuda_step *", step)
        lib.vcuda_plan_do(plan, name, step_pointer, weight)
        assert 0 <= step.adds_ns <= length
        assert step.end_ns - length >= max(now, ends.get(stream, 0))  # in order
        if weight >= lib.VCUDA_WEIGHT_FULL:
            assert step.end_ns - length >= before  # beside nobody
        ends[stream] = step.end_ns
        added += step.adds_ns
        spans.append((step.end_ns - length, step.end_ns))
        assert plan.until_ns == max(end for _, end in spans)
    covered, reached = 0, 0
    for begin, end in sorted(spans):
        covered += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    assert added == covered

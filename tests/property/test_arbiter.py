"""The arbiter, for any shares: what holds of every division of a card's time."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from vcuda.arbiter import HIGH, LOW, NORMAL, Award, Claim, Promise, allocate, fill
from vcuda.units import PPM

ROUNDED = 32
"""ppm that whole numbers may be off by."""


@st.composite
def promises(draw: st.DrawFn, most: int = PPM) -> Promise:
    guarantee = draw(st.integers(1, max(1, most)))
    return Promise(
        guarantee_ppm=guarantee,
        ceiling_ppm=draw(st.just(guarantee) | st.integers(guarantee, PPM)),
        priority=draw(st.sampled_from([LOW, NORMAL, HIGH])),
    )


@st.composite
def claims(draw: st.DrawFn, most: int = PPM) -> Claim:
    promise = draw(promises(most))
    demand = draw(st.sampled_from([0, promise.ceiling_ppm]) | st.integers(1, promise.ceiling_ppm))
    return Claim(promise=promise, demand_ppm=demand)


@st.composite
def cards(draw: st.DrawFn) -> list[Claim]:
    """Shares whose guarantees fit on the card together, as placement sees to."""
    left, found = PPM, list[Claim]()
    for _ in range(draw(st.integers(1, 10))):
        if left < 1:
            break
        found.append(draw(claims(left)))
        left -= found[-1].promise.guarantee_ppm
    return found


def held(card: list[Claim]) -> list[int]:
    return [award.held_ppm for award in allocate(card)]


def wanted(claim: Claim) -> int:
    return min(claim.demand_ppm, claim.promise.ceiling_ppm)


def unmet(claim: Claim, award: Award) -> bool:
    return award.held_ppm + ROUNDED < wanted(claim)


@given(cards())
def test_never_more_than_the_card(card: list[Claim]) -> None:
    assert sum(held(card)) <= PPM


@given(st.lists(claims(), min_size=1, max_size=10))
def test_more_was_promised_than_there_is_and_only_floors_go_beyond(card: list[Claim]) -> None:
    floors = sum(
        claim.promise.floor_ppm for claim in card if claim.promise.priority == LOW and claim.demand_ppm
    )
    assert sum(held(card)) <= PPM + floors


@given(st.lists(claims(), min_size=1, max_size=10))
def test_rates_are_within_what_the_shim_believes(card: list[Claim]) -> None:
    for claim, award in zip(card, allocate(card), strict=True):
        assert 1 <= award.rate_ppm <= claim.promise.ceiling_ppm
        assert 0 <= award.held_ppm <= award.rate_ppm


@given(cards())
def test_guarantee_of_high_and_normal_is_always_in_force(card: list[Claim]) -> None:
    for claim, award in zip(card, allocate(card), strict=True):
        if claim.promise.priority != LOW:
            assert award.rate_ppm + 1 >= claim.promise.guarantee_ppm


@given(st.lists(claims(), min_size=1, max_size=10))
def test_low_always_progresses(card: list[Claim]) -> None:
    for claim, award in zip(card, allocate(card), strict=True):
        if claim.promise.priority == LOW:
            assert award.rate_ppm >= min(10_000, claim.promise.guarantee_ppm)


@given(cards())
def test_rates_of_those_who_want_all_and_what_is_kept_for_the_others_fit(card: list[Claim]) -> None:
    awards = allocate(card)
    assert (
        sum(
            award.rate_ppm if unmet(claim, award) else award.held_ppm
            for claim, award in zip(card, awards, strict=True)
        )
        <= PPM
    )


@given(cards())
def test_nothing_is_left_while_anybody_wants_it(card: list[Claim]) -> None:
    awards = allocate(card)
    if any(unmet(claim, award) for claim, award in zip(card, awards, strict=True)):
        assert sum(award.held_ppm for award in awards) >= PPM - ROUNDED


@given(cards())
def test_order_of_the_promises(card: list[Claim]) -> None:
    pairs = list(zip(card, allocate(card), strict=True))
    high_unmet = any(unmet(c, a) for c, a in pairs if c.promise.priority == HIGH)
    low_short = any(
        a.held_ppm + ROUNDED < min(c.demand_ppm, c.promise.guarantee_ppm)
        for c, a in pairs
        if c.promise.priority == LOW
    )
    normal_unmet = any(unmet(c, a) for c, a in pairs if c.promise.priority == NORMAL)
    for claim, award in pairs:
        promise, beyond = claim.promise, award.held_ppm - claim.promise.guarantee_ppm
        if promise.priority == LOW and claim.demand_ppm:
            assert not high_unmet or award.held_ppm <= promise.floor_ppm + ROUNDED
            assert not normal_unmet or beyond <= ROUNDED
        if promise.priority == NORMAL and claim.demand_ppm:
            assert not (high_unmet or low_short) or beyond <= ROUNDED


@given(cards())
def test_idle_time_is_given_in_proportion_to_the_guarantees(card: list[Claim]) -> None:
    """Of two of one priority that want more than they get, neither has more for its guarantee."""
    pairs = list(zip(card, allocate(card), strict=True))
    for priority in (LOW, NORMAL, HIGH):
        hungry = [
            (claim.promise.guarantee_ppm, award.held_ppm)
            for claim, award in pairs
            if claim.promise.priority == priority
            and unmet(claim, award)
            and award.held_ppm >= claim.promise.guarantee_ppm
        ]
        for one_guarantee, one_held in hungry:
            for other_guarantee, other_held in hungry:
                assert abs(one_held * other_guarantee - other_held * one_guarantee) <= ROUNDED * max(
                    one_guarantee, other_guarantee
                )


@given(cards(), st.data())
def test_who_wants_more_never_gets_less_and_nobody_else_gets_more(
    card: list[Claim], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(card) - 1))
    more = data.draw(st.integers(card[index].demand_ppm, card[index].promise.ceiling_ppm))
    after = [*card]
    after[index] = replace(card[index], demand_ppm=more)
    for each, (before_ppm, after_ppm) in enumerate(zip(held(card), held(after), strict=True)):
        if each == index:
            assert after_ppm >= before_ppm - ROUNDED
        else:
            assert after_ppm <= before_ppm + ROUNDED


@given(cards(), st.data())
def test_who_is_idle_takes_nothing_from_anybody(card: list[Claim], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(card)))
    idle = Claim(promise=data.draw(promises()), demand_ppm=0)
    with_idle = held([*card[:index], idle, *card[index:]])
    assert with_idle.pop(index) == 0
    assert with_idle == held(card)


@given(cards(), st.randoms(use_true_random=False))
def test_order_in_which_shares_are_listed_does_not_matter(card: list[Claim], random: object) -> None:
    order = list(range(len(card)))
    random.shuffle(order)  # type: ignore[attr-defined]
    before, after = held(card), held([card[index] for index in order])
    assert all(abs(after[place] - before[index]) <= ROUNDED for place, index in enumerate(order))


@given(
    st.floats(0, 1e6),
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(1, 1e6)), max_size=10),
)
def test_fill_gives_out_all_that_is_wanted_and_no_more(
    amount: float, wishes: list[tuple[float, float]]
) -> None:
    wants, weights = [want for want, _ in wishes], [weight for _, weight in wishes]
    parts = fill(amount, wants, weights)
    assert all(-1e-3 <= part <= want + 1e-9 for part, want in zip(parts, wants, strict=True))
    assert abs(sum(parts) - min(amount, sum(wants))) < 1e-2

"""Which card a share goes to, and what a refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.errors import RefusedError
from vcuda.placement import CardRoom, Placement, Request, check_change, place
from vcuda.units import PPM

GIB = 2**30
USABLE = 16 * GIB


def card(index: int, *, free: int = USABLE, ppm: int = PPM, shares: int = 0, whole: bool = False) -> CardRoom:
    return CardRoom(
        index=index,
        uuid=f"GPU-{index:08x}-0000",
        name="V100",
        usable_bytes=USABLE,
        free_bytes=free,
        free_ppm=ppm,
        shares=shares,
        whole=whole,
    )


EMPTY = card(0)
HALF = card(1, free=8 * GIB, ppm=500_000, shares=1)
NEARLY_FULL = card(2, free=GIB, ppm=100_000, shares=3)
ASK_FOR_A_PART = "ask for a part with --memory, or see 'vcuda cards'"
WHOLE = card(3, free=0, ppm=0, shares=1, whole=True)


@pytest.mark.parametrize(
    ("cards", "request_", "index", "memory_bytes", "core_ppm", "whole"),
    [
        ([EMPTY, HALF, NEARLY_FULL], Request(memory_bytes=GIB), 2, GIB, PPM, False),
        ([EMPTY, HALF, NEARLY_FULL], Request(memory_bytes=2 * GIB), 1, 2 * GIB, PPM, False),
        ([EMPTY, HALF, NEARLY_FULL], Request(memory_bytes=9 * GIB), 0, 9 * GIB, PPM, False),
        ([EMPTY, HALF], Request(memory_bytes=GIB, core_ppm=600_000), 0, GIB, 600_000, False),
        ([EMPTY, HALF, NEARLY_FULL], Request(), 0, USABLE, PPM, True),
        ([EMPTY, HALF], Request(core_ppm=300_000), 1, 8 * GIB, 300_000, False),
        ([EMPTY, card(1)], Request(memory_bytes=GIB), 0, GIB, PPM, False),
        ([EMPTY, card(1)], Request(memory_bytes=GIB, card="1"), 1, GIB, PPM, False),
        ([EMPTY, HALF], Request(memory_bytes=GIB, card="gpu-00000000"), 0, GIB, PPM, False),
        ([WHOLE, EMPTY], Request(memory_bytes=GIB), 0, GIB, PPM, False),
    ],
    ids=[
        "the fullest card that has room",
        "the next when that is too full",
        "the empty one when no other will do",
        "cores count too",
        "a whole card is one without shares",
        "cores alone take all memory that is free",
        "the lowest index among equals",
        "the card that was named by index",
        "the card that was named by the beginning of its UUID, in any case",
        "never a card that is taken whole",
    ],
)
def test_share_goes_to(
    cards: list[CardRoom], request_: Request, index: int, memory_bytes: int, core_ppm: int, whole: bool
) -> None:
    placement = place(cards, request_)
    chosen = next(each for each in cards if each.index == index)
    assert placement == Placement(
        card=chosen,
        memory_bytes=memory_bytes,
        core_ppm=core_ppm,
        core_max_ppm=core_ppm,
        priority=0,
        whole=whole,
    )


def test_ceiling_and_priority_are_passed_on_and_take_no_room() -> None:
    request = Request(core_ppm=500_000, core_max_ppm=PPM, priority=-1)
    placement = place([HALF], request)
    assert (placement.core_ppm, placement.core_max_ppm, placement.priority) == (500_000, PPM, -1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"core_ppm": 500_000, "core_max_ppm": 200_000},
            "a ceiling of 20% is below the share of 50%; raise --cores-max or lower --cores",
        ),
        (
            {"core_max_ppm": 200_000},
            "a ceiling of 20% without a share; give one with --cores",
        ),
        ({"priority": 1}, "a priority is that of a core share; give one with --cores"),
        (
            {"memory_bytes": GIB, "priority": -1},
            "a priority is that of a core share; give one with --cores",
        ),
    ],
    ids=str,
)
def test_request_that_contradicts_itself_says_what_to_do(fields: dict[str, int], message: str) -> None:
    with pytest.raises(RefusedError) as error:
        Request(**fields)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("taken", "had", "asked", "free"),
    [
        (500_000, 300_000, 800_000, None),
        (500_000, 300_000, 800_001, "80%"),
        (PPM, 300_000, 300_001, "30%"),
        (PPM, 300_000, 1, None),
        (1_200_000, 300_000, 300_000, None),
        (1_200_000, 300_000, 300_001, "10%"),
        (300_000, 0, 700_000, None),
    ],
)
def test_change_fits_or_says_what_can_be_had(taken: int, had: int, asked: int, free: str | None) -> None:
    if free is None:
        check_change("V100", taken_ppm=taken, had_ppm=had, asked_ppm=asked)
        return
    with pytest.raises(RefusedError, match=f"{free} can be had on V100; see 'vcuda ps'"):
        check_change("V100", taken_ppm=taken, had_ppm=had, asked_ppm=asked)


@pytest.mark.parametrize(
    ("cards", "request_", "message"),
    [
        ([], Request(memory_bytes=1), "there is no card; see 'vcuda doctor'"),
        (
            [HALF, NEARLY_FULL],
            Request(memory_bytes=20 * GIB),
            "20GiB asked, 8GiB free on card 1 (V100); see 'vcuda cards'",
        ),
        (
            [HALF, NEARLY_FULL],
            Request(memory_bytes=GIB, core_ppm=600_000),
            "60% of cores asked, 50% free on card 1 (V100); see 'vcuda cards'",
        ),
        (
            [HALF],
            Request(),
            "a whole card asked, card 1 (V100) has 1 share; " + ASK_FOR_A_PART,
        ),
        (
            [HALF, NEARLY_FULL],
            Request(),
            "a whole card asked, no card is without shares: card 1 (V100) has 1 share; " + ASK_FOR_A_PART,
        ),
        (
            [WHOLE],
            Request(memory_bytes=GIB),
            "1GiB asked, card 3 (V100) is taken whole by one share; see 'vcuda ps'",
        ),
        (
            [WHOLE, NEARLY_FULL],
            Request(memory_bytes=2 * GIB),
            "2GiB asked, 1GiB free on card 2 (V100); see 'vcuda cards'",
        ),
        (
            [card(0, free=0, shares=2)],
            Request(core_ppm=1),
            "memory asked, 0B free on card 0 (V100); see 'vcuda cards'",
        ),
        (
            [EMPTY, HALF],
            Request(memory_bytes=1, card="7"),
            "card '7': no such card; this machine has 0 (GPU-00000000-0000), 1 (GPU-00000001-0000)",
        ),
        (
            [EMPTY, HALF],
            Request(memory_bytes=1, card="GPU-0000000"),
            "card 'GPU-0000000': fits 2 cards; this machine has 0 (GPU-00000000-0000), 1 (GPU-00000001-0000)",
        ),
    ],
)
def test_refusal_says_what_is_free_where(cards: list[CardRoom], request_: Request, message: str) -> None:
    with pytest.raises(RefusedError) as error:
        place(cards, request_)
    assert str(error.value) == message


@st.composite
def machines(draw: st.DrawFn) -> list[CardRoom]:
    rooms: list[CardRoom] = []
    for index in range(draw(st.integers(0, 6))):
        shares = draw(st.integers(0, 4))
        whole = shares == 1 and draw(st.booleans())
        rooms.append(
            card(
                index,
                free=0 if whole else USABLE if shares == 0 else draw(st.integers(0, USABLE)),
                ppm=0 if whole else PPM if shares == 0 else draw(st.integers(0, PPM)),
                shares=shares,
                whole=whole,
            )
        )
    return rooms


REQUESTS = st.builds(
    Request,
    memory_bytes=st.none() | st.integers(1, 2 * USABLE),
    core_ppm=st.none() | st.integers(1, PPM),
)


@given(machines(), REQUESTS)
def test_share_never_gets_what_is_not_free(cards: list[CardRoom], request_: Request) -> None:
    try:
        placement = place(cards, request_)
    except RefusedError as error:
        assert "\n" not in str(error)
        return
    assert 0 < placement.memory_bytes <= placement.card.free_bytes
    assert not placement.card.whole
    assert request_.core_ppm is None or request_.core_ppm <= placement.card.free_ppm
    assert not placement.whole or placement.card.shares == 0


@given(machines(), REQUESTS)
def test_share_is_refused_only_where_no_card_has_room(cards: list[CardRoom], request_: Request) -> None:
    def has_room(each: CardRoom) -> bool:
        if request_.whole:
            return each.shares == 0
        memory = request_.memory_bytes or 1
        return not each.whole and memory <= each.free_bytes and (request_.core_ppm or 0) <= each.free_ppm

    try:
        place(cards, request_)
        placed = True
    except RefusedError:
        placed = False
    assert placed == any(has_room(each) for each in cards)

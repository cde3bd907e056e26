"""Turns played again from the intervals of those who took them: against a card that really gives turns."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda.turns import LONGEST_GAP_NS, TURN_NS, Had, Key, Span, Turns

MS, US, SECOND = 1_000_000, 1_000, 1_000_000_000
START = 1_000 * SECOND


@dataclass
class Card:
    """Processes take turns of `turn_ns`; each works for a while, pauses, and works again."""

    turn_ns: int = TURN_NS
    step_ns: int = 50 * US
    had: dict[Key, int] = field(default_factory=dict[Key, int])
    """True time."""
    spans: list[tuple[Key, Span]] = field(default_factory=list[tuple[Key, Span]])
    """What each would report, in the order of their ends."""
    now_ns: int = START

    def run(self, works: dict[Key, list[tuple[int, int]]], for_ns: int) -> None:
        """`works`: pauses, and GPU times of what follows."""
        queues = {key: list(work) for key, work in works.items()}
        idle = {key: queue[0][0] for key, queue in queues.items()}
        left, began = dict.fromkeys(works, 0), dict.fromkeys(works, 0)
        turn: Key | None = None
        ends = 0
        end_ns = self.now_ns + for_ns
        while self.now_ns < end_ns:
            for key, queue in queues.items():
                if not left[key] and queue and idle[key] <= 0:
                    left[key], began[key] = queue.pop(0)[1], self.now_ns
            working = [key for key in works if left[key]]
            if working and (turn not in working or self.now_ns >= ends):
                later = [key for key in sorted(working) if turn is None or key > turn]
                turn, ends = (later or sorted(working))[0], self.now_ns + self.turn_ns
            self.now_ns += self.step_ns
            for key in works:
                if not left[key]:
                    idle[key] -= self.step_ns
            if working and turn is not None:
                left[turn] -= self.step_ns
                self.had[turn] = self.had.get(turn, 0) + self.step_ns
                if not left[turn]:
                    self.spans.append((turn, (began[turn], self.now_ns)))
                    idle[turn] = queues[turn][0][0] if queues[turn] else end_ns


def played(spans: list[tuple[Key, Span]], until_ns: int, look_ns: int = 22 * MS) -> dict[int, Had]:
    """All of it, a look after the other; each span is reported when it has ended."""
    turns, had = Turns(), dict[int, Had]()
    rest = sorted(spans, key=lambda each: each[1][1])
    turns.advance(START, {})
    for now_ns in range(START + look_ns, until_ns + 3 * look_ns, look_ns):
        while rest and rest[0][1][1] <= now_ns:
            turns.report(*rest.pop(0))
        for share, more in turns.advance(now_ns - 2 * look_ns, {}).items():
            all_of_it = had.setdefault(share, Had())
            all_of_it.had_ns += more.had_ns
            all_of_it.worked_ns += more.worked_ns
    return had


def pieces(length_ms: int) -> list[Span]:
    """Work without a gap, reported every 20 ms."""
    return [(START + at * MS, START + (at + 20) * MS) for at in range(0, length_ms, 20)]


A, B = (0, 0), (1, 0)


def test_who_is_alone_has_all_that_it_measures() -> None:
    had = played(
        [(A, (START + MS, START + 50 * MS)), (A, (START + 60 * MS, START + 61 * MS))], START + SECOND
    )
    assert had == {0: Had(had_ns=50 * MS, worked_ns=50 * MS)}


def test_two_that_are_always_at_work_have_half_each() -> None:
    spans = [(key, each) for key in (A, B) for each in pieces(400)]
    assert played(spans, START + SECOND) == {
        number: Had(had_ns=200 * MS, worked_ns=400 * MS) for number in (0, 1)
    }


def test_who_comes_waits_for_the_turn_to_end_and_then_has_its_own() -> None:
    # B has the card, and keeps it for the rest of its turn; A's one turn is enough for it.
    spans = [(B, (START, START + 9 * MS)), (A, (START + 3 * MS, START + 6 * MS))]
    assert played(spans, START + SECOND) == {
        0: Had(had_ns=2 * MS, worked_ns=3 * MS),
        1: Had(had_ns=7 * MS, worked_ns=9 * MS),
    }


def test_end_puts_right_whose_turn_it_was() -> None:
    # With turns of 2 ms, B would have the card at 3 ms. But A's work ends then, so it was A's.
    spans = [(A, (START, START + 3 * MS)), (B, (START, START + 6 * MS))]
    had = played(spans, START + SECOND)
    assert had[0].had_ns + had[1].had_ns == 6 * MS
    assert had[1].had_ns >= 3 * MS + MS - 1


def test_processes_of_one_share_have_what_they_have_together_and_measure_it_once() -> None:
    spans = [((0, slot), each) for slot in range(3) for each in pieces(100)]
    assert played(spans, START + SECOND) == {0: Had(had_ns=100 * MS, worked_ns=100 * MS)}


def test_work_that_goes_on_counts_before_it_is_reported_and_not_again() -> None:
    turns = Turns()
    turns.advance(START, {})
    turns.report(A, (START, START + 20 * MS))
    pending = {B: (START, START + 300 * MS)}
    assert turns.advance(START + 20 * MS, pending) == {
        0: Had(had_ns=10 * MS, worked_ns=20 * MS),
        1: Had(had_ns=10 * MS, worked_ns=20 * MS),
    }
    turns.report(B, (START, START + 30 * MS))
    assert turns.advance(START + 40 * MS, {}) == {1: Had(had_ns=10 * MS, worked_ns=10 * MS)}


def test_what_was_not_looked_at_for_long_is_not_played() -> None:
    turns = Turns()
    turns.advance(START, {})
    turns.report(A, (START, START + 2 * LONGEST_GAP_NS))
    assert turns.advance(START + LONGEST_GAP_NS + 1, {}) == {}
    assert turns.advance(START + LONGEST_GAP_NS + MS + 1, {}) == {0: Had(had_ns=MS, worked_ns=MS)}
    assert turns.advance(START, {}) == {}


@pytest.mark.parametrize("turn_ms", [1, 2, 3])
@pytest.mark.parametrize(
    "lengths_ms", [(2, 2), (2, 2, 2), (1, 5), (20, 1), (3, 7, 11), (2, 2, 2, 2, 2)], ids=str
)
def test_shares_are_found_from_intervals_alone(lengths_ms: tuple[int, ...], turn_ms: int) -> None:
    """Within one point of the card where turns are as long as expected, within five where they are not."""
    chance = random.Random(7)
    pause_ms = 2.2 * sum(lengths_ms) / len(lengths_ms)
    works = {
        (number, 0): [
            (int(chance.uniform(0, pause_ms * len(lengths_ms)) * 20) * 50 * US, length * MS)
            for _ in range(5000)
        ]
        for number, length in enumerate(lengths_ms)
    }
    card = Card(turn_ns=turn_ms * MS)
    card.run(works, 3 * SECOND)
    had = played(card.spans, card.now_ns)
    allowed = 1 if turn_ms == 2 else 5
    assert sum(each.worked_ns for each in had.values()) > 1.05 * sum(card.had.values())
    for number in range(len(lengths_ms)):
        error = (had[number].had_ns - card.had[number, 0]) / card.now_ns
        assert abs(100 * error * card.now_ns / (3 * SECOND)) < allowed


spans = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 3), st.integers(0, 1)),
        st.tuples(st.integers(0, 400), st.integers(1, 120)),
    ),
    max_size=40,
)


@given(spans)
def test_together_they_have_the_time_in_which_anybody_worked_and_nobody_more_than_its_own(
    given_spans: list[tuple[Key, tuple[int, int]]],
) -> None:
    reported = [
        (key, (START + from_ms * MS, START + (from_ms + length) * MS))
        for key, (from_ms, length) in given_spans
    ]
    had = played(reported, START + SECOND)
    busy = {ms for _, (from_ms, length) in given_spans for ms in range(from_ms, from_ms + length)}
    assert sum(each.had_ns for each in had.values()) <= len(busy) * MS + 1
    for each in had.values():
        assert 0 <= each.had_ns <= each.worked_ns
    if all(length <= 44 for _, (_, length) in given_spans):  # so that nothing is reported too late
        assert sum(each.had_ns for each in had.values()) == pytest.approx(len(busy) * MS)

"""Who had the card while several processes were at work: their turns, played again. Pure.

A process's own clock tells from when to when it was at work, and that holds the turns of others. All such
intervals together tell who had the card when. Whose work ends has the turn just then, so each end puts right
what was wrong before.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

TURN_NS = 2_000_000
"""As drivers have it, if nobody changed it. What a wrong length makes of the outcome is learned elsewhere."""
LONGEST_GAP_NS = 1_000_000_000
"""What happened in a longer time without looking is not played."""

Key = tuple[int, int]
"""A share, and one of its processes."""
Span = tuple[int, int]
"""From when to when, CLOCK_MONOTONIC ns."""


@dataclass
class Had:
    """What a share had of some time."""

    had_ns: float = 0.0
    """The card was its own."""
    worked_ns: float = 0.0
    """By its own clock: it had work on the card."""


@dataclass
class Turns:
    """The turns on one card, up to an instant."""

    at_ns: int = 0
    _spans: dict[Key, list[Span]] = field(default_factory=dict[Key, list[Span]])
    """Reported, and not played to the end."""
    _turn: Key | None = None
    _turn_ends_ns: int = 0

    def report(self, key: Key, span: Span) -> None:
        """A process was at work. Of what is played already nothing is changed."""
        if max(span[0], self.at_ns) < span[1]:
            self._spans.setdefault(key, []).append(span)

    def advance(self, until_ns: int, pending: Mapping[Key, Span]) -> dict[int, Had]:
        """Play on, with the reported work and what is taken to go on; what each share had of that time."""
        began_ns = self.at_ns
        if until_ns <= began_ns:
            return {}
        self.at_ns = until_ns
        events = self._events(began_ns, until_ns, pending)
        if began_ns == 0 or until_ns - began_ns > LONGEST_GAP_NS:
            self._turn = None
            return {}
        had: dict[int, Had] = {}
        working: list[Key] = []
        now_ns = began_ns
        for at_ns, kind, key in events:
            if at_ns > now_ns:
                self._play(now_ns, at_ns, working, had)
                now_ns = at_ns
            if kind == _BEGINS:
                working.append(key)
                if self._turn is None:
                    self._give(key, now_ns)
                continue
            working.remove(key)
            if kind == _ENDS or self._turn == key:  # it has had the turn
                self._give(_after(key, working), now_ns)
        if until_ns > now_ns:
            self._play(now_ns, until_ns, working, had)
        if self._turn not in working:
            self._turn = None
        return had

    def _events(
        self, began_ns: int, until_ns: int, pending: Mapping[Key, Span]
    ) -> list[tuple[int, int, Key]]:
        """Who begins and who ends when, in order; forgets what is over by then."""
        events: list[tuple[int, int, Key]] = []
        for key in {*self._spans, *pending}:
            merged: list[list[int]] = []
            spans = sorted(self._spans.get(key, ()))
            for from_ns, to_ns, kind in (
                *((*span, _ENDS) for span in spans),
                *([(*pending[key], _STOPS)] if key in pending else []),
            ):
                low, high = max(from_ns, began_ns), min(to_ns, until_ns)
                if low >= high:
                    continue
                kind = kind if to_ns <= until_ns else _STOPS
                if merged and low <= merged[-1][1]:
                    if high > merged[-1][1]:
                        merged[-1][1:] = [high, kind]
                else:
                    merged.append([low, high, kind])
            for low, high, kind in merged:
                events.append((low, _BEGINS, key))
                if high < until_ns or kind == _ENDS:
                    events.append((high, kind, key))
            kept = [span for span in spans if span[1] > until_ns]
            if kept:
                self._spans[key] = kept
            else:
                self._spans.pop(key, None)
        return sorted(events)

    def _give(self, key: Key | None, now_ns: int) -> None:
        self._turn, self._turn_ends_ns = key, now_ns + TURN_NS

    def _play(self, from_ns: int, to_ns: int, working: list[Key], had: dict[int, Had]) -> None:
        """Who works works on until then."""
        if not working:
            return
        if self._turn not in working:
            self._give(working[0], from_ns)
        for share in {share for share, _ in working}:
            had.setdefault(share, Had()).worked_ns += to_ns - from_ns
        if len(working) == 1:
            had[working[0][0]].had_ns += to_ns - from_ns
            if self._turn_ends_ns < to_ns:  # nobody else wanted it
                self._turn_ends_ns += -(-(to_ns - self._turn_ends_ns) // TURN_NS) * TURN_NS
            return
        now_ns = from_ns
        while now_ns < to_ns:
            assert self._turn is not None
            if self._turn_ends_ns <= now_ns:
                self._give(_after(self._turn, working), now_ns)
                continue
            next_ns = min(to_ns, self._turn_ends_ns)
            had[self._turn[0]].had_ns += next_ns - now_ns
            now_ns = next_ns


_ENDS, _STOPS, _BEGINS = 0, 1, 2
"""In this order at the same instant."""


def _after(key: Key, working: list[Key]) -> Key | None:
    """Whose turn comes next; None: nobody is at work."""
    later = [other for other in working if other > key]
    return min(later or working, default=None)

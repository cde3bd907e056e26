"""The loop closed: shares on a card that gives turns, with limiters that believe what the governor says."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.test_governor import MS, SECOND, START, UUID, Machine, Share
from vcuda import governor as governors
from vcuda.units import PPM
from vcuda.utilisation import Answer

TURN_NS = 2 * MS
STEP_NS = 100_000
BURST_NS = 10 * MS


@dataclass
class Load:
    """A share whose process always has a next kernel while `wants`, and launches it as its balance allows."""

    share: Share
    length_ns: int
    wants: Callable[[int], bool]
    """At so many ns after the start."""
    balance_ns: float = 0.0
    left_ns: int = 0
    """Of the kernel on the card."""
    began_ns: int = 0
    paid_ns: float = 0.0
    had_ns: int = 0
    rate_ppm: int = 0
    slice_ppm: int = PPM
    curve: list[int] = field(default_factory=list[int])
    """True time so far, each step."""

    def refresh(self, now_ns: int) -> None:
        """What the governor has put in force."""
        self.rate_ppm, self.slice_ppm = self.share.rate(now_ns), self.share.field("slice_ppm") or PPM

    def launch(self, now_ns: int) -> None:
        self.balance_ns = min(BURST_NS, self.balance_ns + STEP_NS * self.rate_ppm / PPM)
        card, slot = self.share.card, self.share.slot
        if self.left_ns or not self.wants(now_ns - START):
            return
        if self.balance_ns < 0:
            card.starved_ns = now_ns + round(-self.balance_ns * PPM / self.rate_ppm)
            return
        self.left_ns, self.began_ns, self.paid_ns = self.length_ns, now_ns, float(self.length_ns)
        self.balance_ns -= self.paid_ns
        card.active_ns = slot.active_ns = now_ns
        slot.owed_ns += self.length_ns
        slot.launches += 1

    def end(self, now_ns: int) -> None:
        """It measures from the launch to the end; turns of others are in between."""
        measured_ns = now_ns - self.began_ns
        counted_ns = measured_ns * self.slice_ppm / PPM
        self.balance_ns += self.paid_ns - counted_ns
        card, slot = self.share.card, self.share.slot
        slot.gpu_ns += round(counted_ns)
        slot.owed_ns = 0
        entry = card.recent[card.recent_next % 8]
        entry.from_ns, entry.length = self.began_ns, 1 << 40 | measured_ns
        card.recent_next += 1

    def had(self, since_s: float, until_s: float) -> float:
        """Percent of the card."""
        first, last = (round(at * SECOND / STEP_NS) for at in (since_s, until_s))
        return 100 * (self.curve[last - 1] - self.curve[first - 1]) / ((last - first) * STEP_NS)

    def windows(self, since_s: float, until_s: float) -> list[float]:
        """All windows of a second in between, each begun 20 ms after the other."""
        count = round((until_s - since_s - 1) / 0.02)
        return [self.had(since_s + at * 0.02, since_s + at * 0.02 + 1) for at in range(count + 1)]


class Card:
    """Gives turns, and has a driver that counts."""

    now_ns = START
    used_ns: Mapping[int, int] = {}

    def __init__(self, machine: Machine, loads: list[Load]) -> None:
        self._machine, self._loads = machine, loads
        self._turn, self._ends_ns = 0, 0
        self._look_ns = START

    def run(self, seconds: float) -> None:
        end_ns = Card.now_ns + round(seconds * SECOND)
        while Card.now_ns < end_ns:
            if Card.now_ns >= self._look_ns:
                self._look_ns = Card.now_ns + self._machine.governor.step(Card.now_ns)
                for load in self._loads:
                    load.refresh(Card.now_ns)
            for load in self._loads:
                load.launch(Card.now_ns)
            self._step()
        Card.used_ns = {}

    def _step(self) -> None:
        loads, count = self._loads, len(self._loads)
        if not loads[self._turn].left_ns or Card.now_ns >= self._ends_ns:
            later = [(self._turn + step) % count for step in range(1, count + 1)]
            self._turn = next((each for each in later if loads[each].left_ns), self._turn)
            self._ends_ns = Card.now_ns + TURN_NS
        load = loads[self._turn]
        Card.now_ns += STEP_NS
        if load.left_ns:
            load.left_ns -= STEP_NS
            load.had_ns += STEP_NS
            if not load.left_ns:
                load.end(Card.now_ns)
        Card.used_ns = {1000 + number: each.had_ns for number, each in enumerate(loads)}
        for each in loads:
            each.curve.append(each.had_ns)


class Driver:
    """Tells of a while ago, in whole percents of half a second."""

    fault = None
    silent = False
    others = 0
    """Added to all pids: then nobody here has them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._answer: Answer | None = None
        self._told: dict[int, int] = {}
        self._then: tuple[int, dict[int, int]] = (0, {})

    def prepare(self, now_ns: int) -> None:
        pass

    def ask(self, uuid: str, now_ns: int) -> None:
        assert uuid == UUID
        then_ns, then = self._then
        now = dict(Card.used_ns)
        if then_ns and not Driver.silent:
            for pid, used_ns in then.items():
                percent = round(100 * (now[pid] - used_ns) / (now_ns - then_ns))
                self._told[pid] = self._told.get(pid, 0) + percent * (now_ns - then_ns) // 100
            self._answer = Answer(
                until_ns=now_ns - MS,
                used_ns={pid + Driver.others: used_ns for pid, used_ns in self._told.items()},
            )
        self._then = (now_ns, now)

    def look(self, uuid: str, now_ns: int) -> Answer | None:
        return self._answer

    def close(self) -> None:
        pass


@pytest.fixture(params=["told", "untold", "others"])
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Machine]:
    """Of a driver that counts, of one that says nothing, and of one that knows processes by other pids."""
    monkeypatch.setattr(governors, "Utilisation", Driver)
    Driver.silent = request.param == "untold"
    Driver.others = 5000 if request.param == "others" else 0
    Card.now_ns, Card.used_ns = START, {}
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def always(_: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("percents", "lengths_ms"),
    [((40, 30), (2, 2)), ((30, 30, 30), (2, 2, 2)), ((20, 30), (5, 2)), ((40, 30), (20, 2))],
    ids=str,
)
def test_each_has_its_share_in_every_second_and_exactly_in_the_mean(
    percents: tuple[int, ...], lengths_ms: tuple[int, ...], machine: Machine
) -> None:
    loads = [
        Load(machine.share(f"share{number}", percent, percent), length * MS, always)
        for number, (percent, length) in enumerate(zip(percents, lengths_ms, strict=True))
    ]
    Card(machine, loads).run(8)
    for load, percent in zip(loads, percents, strict=True):
        # The bound of the limiter, and two points for what is not known at once.
        bound = 2 + load.length_ns / SECOND * 100
        assert max(abs(each - percent) for each in load.windows(1, 8)) < bound
        assert load.had(1, 8) == pytest.approx(percent, abs=0.7)


def test_pause_and_return_of_a_neighbour_are_met_at_once(machine: Machine) -> None:
    busy = Load(machine.share("busy", 40, 70), 2 * MS, always)
    pauses = Load(machine.share("pauses", 60, 60), 2 * MS, lambda at: not 3 * SECOND <= at < 6 * SECOND)
    Card(machine, [busy, pauses]).run(9)
    # All of the card is given out: what one has for a moment too much, the other lacks.
    assert max(abs(each - 40) for each in busy.windows(1, 3)) < 3.5
    assert max(busy.windows(3.3, 6)) < 72
    assert busy.had(4, 6) == pytest.approx(70, abs=0.5)
    assert pauses.had(6.1, 6.6) > 60 - 5
    assert max(abs(each - 40) for each in busy.windows(6.3, 9)) < 3.5
    assert busy.had(6.3, 9) == pytest.approx(40, abs=1)


def test_nothing_is_corrected_alone_and_from_the_next_look_on_it_is_again(machine: Machine) -> None:
    one = Load(machine.share("one", 40, 40), 2 * MS, always)
    other = Load(machine.share("other", 30, 30), 3 * MS, lambda at: at < 2 * SECOND or at > 3 * SECOND)
    card = Card(machine, [one, other])
    card.run(2)
    before_ppm = one.slice_ppm
    assert before_ppm < 950_000
    card.run(0.2)
    assert (one.slice_ppm, one.share.field("slice_ppm")) == (PPM, 0)
    card.run(0.79)
    assert one.slice_ppm == PPM
    card.run(0.1)
    assert one.slice_ppm == pytest.approx(before_ppm, rel=0.2)


def test_idle_neighbour_that_waits_for_nothing_corrects_nobody(machine: Machine) -> None:
    one = Load(machine.share("one", 40, 40), 2 * MS, always)
    other = Load(machine.share("other", 40, 40), 2 * MS, lambda at: at < 1)
    card = Card(machine, [one, other])
    card.run(1)
    assert one.slice_ppm == PPM
    assert one.had(0.2, 1) == pytest.approx(40, abs=1.5)


@pytest.mark.parametrize("word", [2**64 - 1, 2**63, 2**40 - 1, 1])
def test_noise_in_a_ledger_harms_no_neighbour(word: int, machine: Machine) -> None:
    sound = Load(machine.share("sound", 40, 40), 2 * MS, always)
    liar = machine.share("liar", 40, 40)
    card = Card(machine, [sound])
    for _ in range(60):
        for name in ("owed_ns", "held_ns", "active_ns", "launches", "gpu_ns"):
            setattr(liar.slot, name, word)
        for entry in liar.card.recent:
            entry.from_ns, entry.length = word, word * 3 % 2**64
        liar.card.recent_next = liar.card.active_ns = liar.card.starved_ns = word
        card.run(0.03)
    assert machine.said == []
    assert sound.slice_ppm == PPM
    assert sound.had(0.3, 1.8) == pytest.approx(40, abs=1)

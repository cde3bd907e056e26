"""The governor step by step, on files of its own and a clock of the test's."""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from vcuda import governor as governors
from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda._abi import ffi, lib
from vcuda.governor import COME_NS, COUNT_NS, LOOK_NS, REST_NS, Governor, Member
from vcuda.grant import CardGrant, Grant, LiveGrant
from vcuda.units import PPM

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
MS, SECOND = 1_000_000, 1_000_000_000
START = 1_000 * SECOND


class Share:
    """A share's files, and its one process, which is ourselves."""

    def __init__(self, directory: Path, name: str, pid: int, **card: Any) -> None:
        path = directory / name
        path.mkdir()
        self.grant, self.ledger = path / "grant", path / "ledger"
        grants.write(self.grant, Grant(name=name, cards=(CardGrant(uuid=UUID, memory_bytes=2**30, **card),)))
        ledgers.create(self.ledger)
        self._map = ffi.new("struct vcuda_ledger_map *")
        assert lib.vcuda_ledger_attach(self._map, os.fsencode(self.ledger)) == lib.VCUDA_LEDGER_OK
        self.card = self._map.header.cards[0]
        self.slot = lib.vcuda_ledger_slot(self._map, 0).cards[0]
        self.member = Member(grant=self.grant, ledger=self.ledger, pids=lambda: {pid})

    def work(self, now_ns: int, *, waits: bool = False) -> None:
        """It pays for work now, and with `waits` would for more."""
        self.card.active_ns = self.slot.active_ns = now_ns
        self.slot.launches += 1
        if waits:
            self.card.starved_ns = now_ns + 5 * MS

    def rate(self, now_ns: int) -> int:
        with LiveGrant(self.grant) as live:
            return live.in_force(0, now_ns).rate_ppm

    def field(self, name: str) -> int:
        return getattr(ffi.from_buffer("struct vcuda_grant *", self.grant.read_bytes()).cards[0], name)

    def close(self) -> None:
        lib.vcuda_ledger_close(self._map)


class Machine:
    """Shares of one card, and who governs them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.shares: list[Share] = []
        self.said: list[str] = []
        self.governor = Governor(
            lambda: [share.member for share in self.shares],
            version=lambda: len(self.shares),
            say=self.said.append,
        )

    def share(self, name: str, core: int, most: int, priority: int = 0, **card: Any) -> Share:
        """A share of so many percent."""
        made = Share(
            self._directory,
            name,
            1000 + len(self.shares),
            core_ppm=core * 10_000,
            core_max_ppm=most * 10_000,
            priority=priority,
            **card,
        )
        self.shares.append(made)
        return made

    def close(self) -> None:
        self.governor.close()
        for share in self.shares:
            share.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_nothing_is_written_and_little_is_looked_at_where_nobody_works(machine: Machine) -> None:
    shares = [machine.share("a", 30, 60), machine.share("b", 20, 100, priority=-1)]
    before = [share.grant.read_bytes() for share in shares]
    # Often enough that a share that begins has what others leave idle soon.
    assert [machine.governor.step(START + step * SECOND) for step in range(3)] == [COUNT_NS] * 3
    assert [share.grant.read_bytes() for share in shares] == before


def test_share_without_a_ceiling_of_its_own_is_not_watched_closely(machine: Machine) -> None:
    share = machine.share("a", 30, 30)
    share.work(START, waits=True)
    assert machine.governor.step(START) == REST_NS
    machine.share("b", 30, 30)  # with whom it may take turns
    assert machine.governor.step(START) == COME_NS
    assert share.field("rate_ns") == 0


def test_idle_time_is_lent_and_is_back_with_its_owner_within_100_ms(machine: Machine) -> None:
    taker, owner = machine.share("taker", 30, 100), machine.share("owner", 70, 70)
    now = START
    taker.work(now, waits=True)
    assert machine.governor.step(now) == LOOK_NS
    assert (taker.rate(now), owner.rate(now)) == (PPM, 700_000)
    owner.work(now + 1)
    now += LOOK_NS
    assert now - START < 100 * MS
    machine.governor.step(now)
    assert (taker.rate(now), owner.rate(now)) == (300_000, 700_000)


def test_low_yields_to_high_at_the_next_look_and_keeps_its_floor(machine: Machine) -> None:
    low, high = machine.share("low", 60, 100, priority=-1), machine.share("high", 30, 100, priority=1)
    low.work(START, waits=True)
    machine.governor.step(START)
    assert low.rate(START) == PPM
    now = START + LOOK_NS
    high.work(now, waits=True)
    machine.governor.step(now)
    assert (low.rate(now), high.rate(now)) == (10_000, 990_000)


def test_share_in_force_is_confirmed_in_time_and_nobody_is_woken_for_it(machine: Machine) -> None:
    share = machine.share("a", 30, 60)
    share.work(START, waits=True)
    machine.governor.step(START)
    changes, confirmed = share.field("changes"), {share.field("rate_ns")}
    for step in range(1, 100):
        now = START + step * LOOK_NS
        share.work(now, waits=True)
        machine.governor.step(now)
        assert share.rate(now) == 600_000
        confirmed.add(share.field("rate_ns"))
    assert share.field("changes") == changes
    ordered = sorted(confirmed)
    assert max(after - before for before, after in pairwise(ordered)) <= 300 * MS
    assert len(ordered) <= 100 * LOOK_NS // (150 * MS)


def test_guarantee_is_in_force_again_when_work_ends(machine: Machine) -> None:
    share = machine.share("a", 30, 60)
    share.work(START, waits=True)
    machine.governor.step(START)
    later = START + 600 * MS
    assert machine.governor.step(later) == COUNT_NS
    assert share.rate(later) == share.rate(later + 10 * SECOND) == 300_000


def test_many_shares_cost_no_more_and_idle_time_is_back_within_100_ms_all_the_same(machine: Machine) -> None:
    shares = [machine.share(f"share{number}", 10, 100) for number in range(10)]
    for share in shares[:9]:
        share.work(START, waits=True)
    pause_ns = machine.governor.step(START)
    assert 3 * LOOK_NS <= pause_ns < 100 * MS - LOOK_NS
    assert shares[0].rate(START) > 110_000
    now = START + pause_ns
    for share in shares:
        share.work(now, waits=True)
    machine.governor.step(now)
    assert {share.rate(now) for share in shares} == {100_000}


def test_what_was_granted_anew_holds_at_the_next_look(machine: Machine) -> None:
    share = machine.share("a", 30, 60)
    share.work(START, waits=True)
    machine.governor.step(START)
    grants.change(share.grant, core_ppm=500_000, core_max_ppm=900_000)
    now = START + LOOK_NS
    share.work(now, waits=True)
    machine.governor.step(now)
    assert share.rate(now) == 900_000


def test_whole_and_unlimited_shares_are_left_alone(machine: Machine) -> None:
    shares = [machine.share("whole", 100, 100, whole=True), machine.share("memory", 100, 100)]
    before = [share.grant.read_bytes() for share in shares]
    for step in range(5):
        for share in shares:
            share.work(START + step * COUNT_NS, waits=True)
        machine.governor.step(START + step * COUNT_NS)
    assert [share.grant.read_bytes() for share in shares] == before


def test_share_that_comes_later_is_seen(machine: Machine) -> None:
    first = machine.share("first", 30, 100)
    first.work(START, waits=True)
    machine.governor.step(START)
    second = machine.share("second", 20, 100)
    now = START + LOOK_NS
    for share in (first, second):
        share.work(now, waits=True)
    machine.governor.step(now)
    assert (first.rate(now), second.rate(now)) == (600_000, 400_000)


def test_ledger_that_its_users_cut_short_harms_nobody_else(machine: Machine) -> None:
    broken, sound = machine.share("broken", 30, 100), machine.share("sound", 20, 100)
    machine.governor.step(START)
    os.truncate(broken.ledger, 4096)
    for step in range(1, 4):
        now = START + step * LOOK_NS
        sound.work(now, waits=True)
        machine.governor.step(now)
        assert sound.rate(now) == PPM
    fault = f"ledger {broken.ledger}: has been cut short"
    assert machine.said == [f"core shares are not adjusted: {fault}; each share has what is guaranteed"]


@pytest.mark.parametrize("word", [2**64 - 1, 2**63, 1])
def test_no_content_of_a_ledger_gives_more_than_the_ceiling_or_takes_from_others(
    word: int, machine: Machine
) -> None:
    liar, other = machine.share("liar", 30, 50), machine.share("other", 40, 100)
    for step in range(60):
        now = START + step * LOOK_NS
        for name in ("active_ns", "starved_ns", "ended_gpu_ns"):
            setattr(liar.card, name, word)
        for name in ("supply_ns", "demand_ns", "refill_ns"):
            setattr(liar.card.bucket, name, word * 3 % 2**64)
        other.work(now, waits=True)
        machine.governor.step(now)
        assert liar.rate(now) <= 500_000
        assert other.rate(now) >= 500_000
    assert machine.said == []


def test_file_that_takes_the_place_of_another_is_the_one_that_is_governed(machine: Machine) -> None:
    share = machine.share("a", 30, 60)
    machine.governor.step(START)
    (card,) = grants.read(share.grant).cards
    grants.write(share.grant, Grant(name="again", cards=(card,)))
    machine.share("b", 10, 10)
    share.work(START + SECOND, waits=True)
    machine.governor.step(START + SECOND)
    assert share.rate(START + SECOND) == 600_000


def test_fault_is_told_once_and_never_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(governors, "REST_NS", MS)
    said, stop = list[str](), Event()
    tries = 0

    def members() -> list[Member]:
        nonlocal tries
        tries += 1
        if tries == 3:
            stop.set()
        raise RuntimeError("no such thing")

    watchdog = Timer(30, stop.set)
    watchdog.start()
    Governor(members, version=lambda: 0, say=said.append).run(stop)
    watchdog.cancel()
    assert tries == 3
    assert said == [
        "core shares are not adjusted: RuntimeError: no such thing; each share has what is guaranteed"
    ]

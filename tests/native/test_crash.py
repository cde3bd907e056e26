"""Processes of one share are killed at random instants: what they held comes back, nothing else is lost."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    MIB,
    card_uuids,
    context_bytes,
    driver_used,
    ledger_used,
    machine_state,
    make_share,
    shim_environment,
    simulator_environment,
)
from vcuda.ledger import Ledger

RACERS = 12
EACH_MIB = 64
LONGEST_SECONDS = 0.02
"""Between two kills: long enough for the newest to be anywhere between its start and its thousandth call."""


class Racers:
    """So many racers, of which any may be killed and replaced."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        self._seed = 0
        self.running = [self._start() for _ in range(RACERS)]

    def _start(self) -> subprocess.Popen[str]:
        self._seed += 1
        return subprocess.Popen(
            [str(BUILD / "clients" / "racer"), str(self._seed), str(EACH_MIB), "0"],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def replace(self, index: int) -> None:
        victim = self.running[index]
        victim.send_signal(signal.SIGKILL)
        _, errors = victim.communicate()
        assert victim.returncode == -signal.SIGKILL, errors
        self.running[index] = self._start()

    def quiet(self, context: int) -> dict[int, int]:
        """Stop all between two calls; what each then holds, its context included, by pid."""
        for racer in self.running:
            assert racer.stdin is not None
            racer.stdin.write("q")
            racer.stdin.flush()
        held = {}
        for racer in self.running:
            assert racer.stdout is not None
            contexts, size = map(int, racer.stdout.readline().split())
            held[racer.pid] = contexts * context + size
        return held

    def go_on(self) -> None:
        for racer in self.running:
            assert racer.stdin is not None
            racer.stdin.write("g")
            racer.stdin.flush()

    def end(self) -> None:
        for racer in self.running:
            racer.kill()
            racer.communicate()


@pytest.fixture
def kills(soak: bool) -> int:
    return 10_000 if soak else 500


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    return simulator_environment(tmp_path, "V100-SXM2-16GB")


@pytest.fixture
def share(tmp_path: Path, machine: dict[str, str]) -> Path:
    context = context_bytes(machine)
    # Room for all contexts, and half of what the racers want: they meet the limit all the time.
    limit = RACERS * (context + EACH_MIB * MIB // 2)
    return make_share(tmp_path, card_uuids(machine)[0], limit, context_bytes=context)


@pytest.fixture
def racers(machine: dict[str, str], share: Path) -> Iterator[Racers]:
    racers = Racers(shim_environment(machine, share))
    yield racers
    racers.end()


@pytest.mark.timeout(1800)
def test_killed_processes_give_everything_back_and_take_nothing_along(
    machine: dict[str, str], share: Path, racers: Racers, kills: int
) -> None:
    context = context_bytes(machine)
    limit = RACERS * (context + EACH_MIB * MIB // 2)
    chance = random.Random(20_26)
    for kill in range(kills):
        time.sleep(chance.random() * LONGEST_SECONDS)
        racers.replace(chance.randrange(RACERS))
        if kill % 100 == 99:
            compare(machine, share, racers, context)
            racers.go_on()
    compare(machine, share, racers, context)
    # Until the driver has taken back what the dead one had, the two may overlap (explanation/trust.md).
    assert machine_state(machine)["cards"][0]["peak"] <= limit + context + EACH_MIB * MIB
    racers.end()
    with Ledger(share / "ledger", writable=True) as ledger:
        ledger.reclaim()
        assert ledger.living() == []
    assert ledger_used(share) == 0
    assert driver_used(machine) == {}


def compare(machine: dict[str, str], share: Path, racers: Racers, context: int) -> None:
    """Bytes in the ledger equal bytes held, of each living process; no slot is lost."""
    expected = racers.quiet(context)
    with Ledger(share / "ledger", writable=True) as ledger:
        ledger.reclaim()
        processes = ledger.read().processes
        assert {process.pid: process.cards[0].used_bytes for process in processes} == expected
        assert ledger.used_bytes(0) == sum(expected.values())
        assert max(ledger.living()) < 4 * RACERS
    assert driver_used(machine) == {pid: size for pid, size in expected.items() if size}

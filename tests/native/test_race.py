"""Many processes of one share allocate at once: the driver's own count is the judge.

The driver keeps the most that was ever held together, under its lock: what is true of that figure was true
at every instant.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    MIB,
    card_uuids,
    context_bytes,
    ledger_used,
    machine_state,
    make_share,
    shim_environment,
    simulator_environment,
)
from vcuda.ledger import Ledger

PROCESSES = 64
CARD = "A100-SXM4-80GB"
EACH_MIB = 64
"""What a process may hold besides its context."""


def race(env: dict[str, str], rounds: int) -> int:
    """Let all loose at once; how often they were refused, together."""
    racers = [
        subprocess.Popen(
            [str(BUILD / "clients" / "racer"), str(seed), str(EACH_MIB), str(rounds)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(PROCESSES)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("g")
            racer.stdin.flush()
        outputs = [_output(racer) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert [racer.returncode for racer in racers] == [0] * PROCESSES
    return sum(int(output.removeprefix("refused ")) for output in outputs)


def _output(racer: subprocess.Popen[str]) -> str:
    """What it prints until it ends; its standard input stays open until then."""
    assert racer.stdout is not None
    output = racer.stdout.read()
    racer.wait(timeout=120)
    return output


@pytest.fixture
def rounds(soak: bool) -> int:
    return 150_000 if soak else 20_000


def share_of(tmp_path: Path, memory_bytes: int) -> tuple[dict[str, str], Path, int]:
    machine = simulator_environment(tmp_path, CARD)
    context = context_bytes(machine)
    limit = PROCESSES * context + memory_bytes
    share = make_share(tmp_path, card_uuids(machine)[0], limit, context_bytes=context)
    return machine, share, limit


def test_race_for_too_little_never_exceeds_the_limit(tmp_path: Path, rounds: int) -> None:
    machine, share, limit = share_of(tmp_path, PROCESSES * EACH_MIB * MIB // 4)
    assert race(shim_environment(machine, share), rounds) > 0
    state = machine_state(machine)["cards"][0]
    assert limit - 16 * MIB <= state["peak"] <= limit
    assert state["used"] == 0
    with Ledger(share / "ledger", writable=True) as ledger:
        ledger.reclaim()
    assert ledger_used(share) == 0


def test_race_for_what_fits_refuses_nobody(tmp_path: Path, rounds: int) -> None:
    machine, share, limit = share_of(tmp_path, PROCESSES * EACH_MIB * MIB)
    assert race(shim_environment(machine, share), rounds) == 0
    state = machine_state(machine)["cards"][0]
    assert state["peak"] <= limit
    with Ledger(share / "ledger", writable=True) as ledger:
        ledger.reclaim()
        [ended] = ledger.read().ended
    assert ended.refused == 0
    assert ledger_used(share) == 0

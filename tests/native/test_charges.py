"""Each way to take memory of a card: what the ledger charges is what the driver says is used, to the byte.

The program is native/tests/clients/charges.c; the truth is the simulated driver's own count, which
knows nothing of ledgers. Expected bytes by kind are beside context and module, which have rows of their own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    GIB,
    MIB,
    card_uuids,
    context_bytes,
    driver_used,
    make_share,
    shim_environment,
    simulator_environment,
)
from vcuda.ledger import Kind, Ledger

LINEAR, MANAGED, ARRAY, VMM = Kind.LINEAR, Kind.MANAGED, Kind.ARRAY, Kind.VMM
POOL, GRAPH, CONTEXT, MODULE = Kind.POOL, Kind.GRAPH, Kind.CONTEXT, Kind.MODULE
NOTHING: Mapping[Kind, int] = {}

SCENARIOS: dict[str, list[tuple[str, Mapping[Kind, int]]]] = {
    "linear": [
        ("two small ones in one page", {LINEAR: 2 * MIB}),
        ("three MiB in two pages", {LINEAR: 6 * MIB}),
        ("eight MiB in four pages", {LINEAR: 14 * MIB}),
        ("one small one freed", {LINEAR: 14 * MIB}),
        ("the other one too", {LINEAR: 12 * MIB}),
        ("all freed", NOTHING),
    ],
    "pitch": [("1000 bytes by 5000 rows", {LINEAR: 6 * MIB}), ("freed", NOTHING)],
    "managed": [("ten MiB", {MANAGED: 10 * MIB}), ("freed", NOTHING)],
    "array": [
        ("two small ones in one page", {ARRAY: 2 * MIB}),
        ("four MiB in two pages", {ARRAY: 6 * MIB}),
        ("destroyed", NOTHING),
    ],
    "mipmap": [("1024 x 1024 with all its levels", {ARRAY: 6 * MIB}), ("destroyed", NOTHING)],
    "vmm": [
        ("created", {VMM: 4 * MIB}),
        ("mapped", {VMM: 4 * MIB}),
        ("released while mapped", {VMM: 4 * MIB}),
        ("unmapped", NOTHING),
        ("unmapped before it is released", {VMM: 4 * MIB}),
        ("released", NOTHING),
        ("mapped twice, retained; one of each gone", {VMM: 4 * MIB}),
        ("retained still", {VMM: 4 * MIB}),
        ("the last reference gone", NOTHING),
        ("addresses alone", NOTHING),
        ("four side by side", {VMM: 8 * MIB}),
        ("unmapped by one call", NOTHING),
    ],
    "pool": [
        ("before", NOTHING),
        ("the default pool has grown", {POOL: 32 * MIB}),
        ("and again", {POOL: 96 * MIB}),
        ("freed, and trimmed at the synchronisation", NOTHING),
        ("freed, and kept below the threshold", {POOL: 32 * MIB}),
        ("trimmed by hand", NOTHING),
        ("a pool of one's own", {POOL: 32 * MIB}),
        ("destroyed with an allocation alive", {POOL: 32 * MIB}),
        ("which is then freed", NOTHING),
    ],
    "graph": [
        ("launched", {GRAPH: 6 * MIB}),
        ("launched again", {GRAPH: 6 * MIB}),
        ("destroyed and trimmed", NOTHING),
    ],
    "capture": [
        ("captured", NOTHING),
        ("launched", {GRAPH: 6 * MIB}),
        ("destroyed and trimmed", NOTHING),
    ],
    "module": [
        ("a module", {MODULE: 2 * MIB}),
        ("a second one in the same page", {MODULE: 2 * MIB}),
        ("one unloaded", {MODULE: 2 * MIB}),
        ("both unloaded", NOTHING),
    ],
    "host": [("pinned, registered, and created on the host", NOTHING), ("freed", NOTHING)],
}


class Client:
    """A client that stops after each step."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def until(self, step: str) -> None:
        assert self._process.stdout is not None
        got = self._process.stdout.readline().strip()
        assert got == step, f"{got!r} where {step!r} was expected; status {self._process.poll()}"

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> int:
        return self._process.wait(timeout=60)


@contextmanager
def client(env: Mapping[str, str], name: str, *arguments: str, cwd: Path | None = None) -> Iterator[Client]:
    process = subprocess.Popen(
        [str(BUILD / "clients" / name), *arguments],
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )
    try:
        yield Client(process)
    finally:
        process.kill()
        process.communicate()


class Share:
    """A share on a machine of its own, and both views of what is used in it."""

    def __init__(self, tmp_path: Path, cards: str = "V100-SXM2-16GB", limit: int = 4 * GIB) -> None:
        self.machine = simulator_environment(tmp_path, cards)
        self.uuid = card_uuids(self.machine)[0]
        self.context = context_bytes(self.machine)
        self.directory = make_share(tmp_path, self.uuid, limit, context_bytes=self.context)
        self.env = shim_environment(self.machine, self.directory)

    def reclaim(self) -> int:
        """Take back what dead processes left, as the next one in need would."""
        with Ledger(self.directory / "ledger", writable=True) as ledger:
            return ledger.reclaim()

    def by_kind(self, pid: int) -> dict[Kind, int]:
        with Ledger(self.directory / "ledger") as ledger:
            [use] = [process.cards[0] for process in ledger.read().processes if process.pid == pid]
        assert sum(use.bytes_by_kind.values()) == use.used_bytes
        return {kind: size for kind, size in use.bytes_by_kind.items() if size}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ledger_charges_what_the_driver_counts(scenario: str, tmp_path: Path) -> None:
    share = Share(tmp_path)
    with client(share.env, "charges", scenario) as program:
        for step, kinds in [("context", NOTHING), *SCENARIOS[scenario]]:
            program.until(step)
            expected = {CONTEXT: share.context, **kinds}
            assert share.by_kind(program.pid) == expected, step
            assert driver_used(share.machine) == {program.pid: sum(expected.values())}, step
            program.go_on()
        assert program.end() == 0


def test_contexts_are_charged_and_take_along_what_was_made_in_them(tmp_path: Path) -> None:
    share = Share(tmp_path)
    one = share.context
    steps = [
        ("context", {CONTEXT: one}),
        ("a second context", {CONTEXT: 2 * one}),
        ("with memory in it", {CONTEXT: 2 * one, LINEAR: 4 * MIB}),
        ("destroyed, and its memory with it", {CONTEXT: one}),
        ("the primary one reset", {}),
    ]
    with client(share.env, "charges", "contexts") as program:
        for step, expected in steps:
            program.until(step)
            assert share.by_kind(program.pid) == expected, step
            assert sum(driver_used(share.machine).values()) == sum(expected.values()), step
            program.go_on()
        assert program.end() == 0


def test_same_program_takes_the_same_without_the_shim(tmp_path: Path) -> None:
    # Else the tests above would show no more than that shim and simulator agree on something odd.
    share = Share(tmp_path)
    for scenario, steps in SCENARIOS.items():
        with client(share.machine, "charges", scenario) as program:
            for step, kinds in [("context", NOTHING), *steps]:
                program.until(step)
                expected = share.context + sum(kinds.values())
                assert driver_used(share.machine) == {program.pid: expected}, (scenario, step)
                program.go_on()
            assert program.end() == 0

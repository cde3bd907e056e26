"""What the ledger says of launches and GPU time, compared with what the simulated card itself has counted."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import BUILD, GIB, card_uuids, machine_state, make_share, shim_environment
from vcuda.ledger import CardUse, Ledger

CLIENTS = BUILD / "clients"
PERCENT = 1.0
"""How far GPU time may be off: what is not measured is charged at the mean of what was."""
NEARLY_ALL = 990_000
"""A share that is limited, and so measured finely, but holds none of these programs up for long."""
COARSE_PERCENT = 4.0
"""The same where nothing is limited: a handful of measurements stand for everything."""

SCENARIOS = [
    "waited_for",
    "queued",
    "different",
    "small",
    "side_by_side",
    "one_at_a_time",
    "graphs",
    "cooperative",
    "per_thread",
    "shared_stream",
    "legacy",
    "with_copies",
]

Simulated = Callable[..., dict[str, str]]


@dataclass(frozen=True)
class Outcome:
    """What was counted of one program, by itself, in the ledger, and by the card."""

    taken: int
    use: CardUse
    busy_ns: int

    @property
    def percent_off(self) -> float:
        return 100 * (self.use.gpu_ns - self.busy_ns) / self.busy_ns


@contextmanager
def working(env: Mapping[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    """A client that waits for a line once its work is done; ended at the latest when the block is left."""
    with subprocess.Popen(
        [str(CLIENTS / command[0]), *command[1:]],
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def look(tmp_path: Path, env: Mapping[str, str], scenario: str, **card: object) -> Outcome:
    """Run a scenario under a share, and read both counts while the process is there."""
    directory = make_share(tmp_path, card_uuids(env)[0], 8 * GIB, **card)
    with working(shim_environment(env, directory), "launch_work", scenario) as process:
        assert process.stdout
        taken = int(process.stdout.readline())
        with Ledger(directory / "ledger", writable=True) as ledger:
            (entry,) = ledger.read().processes
        (counted,) = machine_state(env)["cards"][0]["processes"]
    return Outcome(taken, entry.cards[0], counted["busy_ns"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gpu_time_is_the_cards(scenario: str, tmp_path: Path, simulated: Simulated) -> None:
    outcome = look(tmp_path, simulated(), scenario, core_ppm=NEARLY_ALL, core_max_ppm=NEARLY_ALL)
    assert outcome.use.launches == outcome.taken
    assert abs(outcome.percent_off) <= PERCENT, outcome


@pytest.mark.parametrize("scenario", ["waited_for", "queued", "small", "side_by_side"])
def test_gpu_time_that_is_not_limited_is_measured_less_often(
    scenario: str, tmp_path: Path, simulated: Simulated
) -> None:
    outcome = look(tmp_path, simulated(), scenario)
    assert outcome.use.launches == outcome.taken
    assert abs(outcome.percent_off) <= COARSE_PERCENT, outcome


@pytest.mark.parametrize("scenario", ["each_way", "refused_and_captured"])
def test_launches_are_those_the_driver_took(scenario: str, tmp_path: Path, simulated: Simulated) -> None:
    outcome = look(tmp_path, simulated(), scenario)
    assert outcome.use.launches == outcome.taken


@pytest.mark.parametrize("scenario", ["waited_for", "queued"])
def test_whole_card_is_metered_too(scenario: str, tmp_path: Path, simulated: Simulated) -> None:
    outcome = look(tmp_path, simulated(), scenario, whole=True)
    assert outcome.use.launches == outcome.taken
    assert abs(outcome.percent_off) <= COARSE_PERCENT, outcome


def test_program_that_never_waits_is_accounted_when_it_ends(tmp_path: Path, simulated: Simulated) -> None:
    env = simulated()
    directory = make_share(tmp_path, card_uuids(env)[0], 8 * GIB)
    with working(shim_environment(env, directory), "launch_work", "left_alone") as process:
        assert process.stdout
        taken = int(process.stdout.readline())
        (counted,) = machine_state(env)["cards"][0]["processes"]
        process.communicate("end\n", timeout=60)
    with Ledger(directory / "ledger", writable=True) as ledger:
        ledger.reclaim()
        ended = ledger.read().ended[0]
    assert ended.launches == taken
    assert abs(ended.gpu_ns - counted["busy_ns"]) <= COARSE_PERCENT / 100 * counted["busy_ns"]


def lines_of(env: Mapping[str, str], client: str) -> list[str]:
    """What a client prints; it has to come to its end, in silence on stderr."""
    done = subprocess.run(
        [str(CLIENTS / client)], env=dict(env), capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_captures_are_as_they_are_without_the_shim(tmp_path: Path, simulated: Simulated) -> None:
    env = simulated()
    directory = make_share(tmp_path, card_uuids(env)[0], 8 * GIB)
    assert lines_of(shim_environment(env, directory), "launch_capture") == lines_of(env, "launch_capture")


@pytest.mark.parametrize("whole", [False, True])
def test_metering_waits_for_no_work(whole: bool, tmp_path: Path, simulated: Simulated) -> None:
    env = simulated()
    directory = make_share(tmp_path, card_uuids(env)[0], 8 * GIB, whole=whole)
    assert lines_of(shim_environment(env, directory), "launch_progress") == [
        "waits for a value",
        "a full queue",
        "a host function",
    ]

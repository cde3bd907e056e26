"""Shares that depend on one another, governed by real `vcuda run`s: lent time, changes, and who governs."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.support import BUILD, MODEL, SIMULATOR, Commands, eventually
from vcuda.grant import LiveGrant
from vcuda.units import PPM
from vcuda.utilisation import Utilisation

HOLD = str(BUILD / "clients" / "hold")
WAIT_SECONDS = 30


class Share:
    """A share in which one process keeps the card at work without a gap, or only holds it."""

    def __init__(self, user: Commands, name: str, *options: str, busy: bool = True) -> None:
        program = [HOLD, "16", *(["busy"] if busy else [])]
        self.name = name
        self.run = user.start("--memory", "1GiB", "--name", name, *options, "--", *program)
        assert self.run.stdout is not None
        assert self.run.stdout.readline() == f"holding {16 << 20}\n"
        (self.directory,) = [
            path.parent
            for path in user.runtime.glob("shares/*/share.json")
            if json.loads(path.read_text())["name"] == name
        ]

    @property
    def rate(self) -> int:
        with LiveGrant(self.directory / "grant") as live:
            return live.in_force(0, time.monotonic_ns()).rate_ppm

    @property
    def slice(self) -> int:
        with LiveGrant(self.directory / "grant") as live:
            return live.in_force(0, time.monotonic_ns()).slice_ppm

    def end(self) -> int:
        self.run.communicate(timeout=WAIT_SECONDS)
        return self.run.returncode


def machine(user: Commands) -> dict[str, str]:
    """The environment of the simulated machine that `vcuda run` has made."""
    return {
        **user.env,
        "LD_LIBRARY_PATH": str(SIMULATOR),
        "SIMGPU_DIR": str(user.runtime / "sim" / MODEL),
    }


def driver_says(env: dict[str, str]) -> dict[int, dict[str, Any]]:
    return {each["pid"]: each for each in support.machine_state(env)["cards"][0]["processes"]}


def test_idle_time_is_lent_in_proportion_and_given_back(user: Commands) -> None:
    owner = Share(user, "owner", "--cores", "40", busy=False)
    one = Share(user, "one", "--cores", "30", "--cores-max", "80")
    other = Share(user, "other", "--cores", "20", "--cores-max", "60")
    assert eventually(lambda: (one.rate, other.rate) == (600_000, 400_000))
    owner.end()
    owner = Share(user, "owner", "--cores", "40")
    assert eventually(lambda: (one.rate, other.rate) == (360_000, 240_000))
    assert owner.rate == 400_000
    assert [share.end() for share in (one, other)] == [0, 0]
    assert eventually(lambda: owner.rate == 400_000)
    assert owner.end() == 0
    assert user.left() == []


def test_low_yields_to_high_and_goes_on(user: Commands) -> None:
    low = Share(user, "low", "--cores", "50", "--cores-max", "100", "--priority", "low")
    assert eventually(lambda: low.rate == PPM)
    high = Share(user, "high", "--cores", "30", "--cores-max", "100", "--priority", "high")
    assert eventually(lambda: (low.rate, high.rate) == (10_000, 990_000))
    pid = user.shares()[0]["processes"][0]["pid"]
    before = driver_says(machine(user))[pid]["kernels"]
    assert eventually(lambda: driver_says(machine(user))[pid]["kernels"] > before)
    high.end()
    assert eventually(lambda: low.rate == PPM)
    low.end()


def test_share_is_changed_under_its_program(user: Commands) -> None:
    share = Share(user, "mine", "--cores", "10")
    env = machine(user)
    (pid,) = driver_says(env)

    def used_of(seconds: float) -> float:
        """The part of the card's own time, so that a slow machine makes no difference."""
        began, before = time.monotonic(), driver_says(env)[pid]["busy_ns"]
        time.sleep(seconds)
        after, ended = driver_says(env)[pid]["busy_ns"], time.monotonic()
        return (after - before) / (ended - began) / 1e9

    assert used_of(2) < 0.2
    assert user.vcuda("set", "mine", "--cores", "80").returncode == 0
    assert share.rate == 800_000
    assert eventually(lambda: used_of(1) > 0.5)
    assert user.vcuda("set", "mine", "--cores", "10").returncode == 0
    assert eventually(lambda: used_of(1) < 0.2)
    share.end()


def test_another_run_governs_when_the_one_that_did_is_killed(user: Commands) -> None:
    first = Share(user, "first", "--cores", "10", busy=False)
    second = Share(user, "second", "--cores", "30", "--cores-max", "60")
    assert eventually(lambda: second.rate == 600_000)
    first.run.send_signal(signal.SIGKILL)
    first.run.wait()
    killed_ns = time.monotonic_ns()

    def confirmed_since() -> bool:
        from vcuda._abi import ffi

        content = (second.directory / "grant").read_bytes()
        return ffi.from_buffer("struct vcuda_grant *", content).cards[0].rate_ns > killed_ns

    assert eventually(confirmed_since)
    assert second.rate == 600_000
    assert second.end() == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_run_that_governs_ends_as_its_program_does(name: str, user: Commands) -> None:
    shares = [Share(user, each, "--cores", "30", "--cores-max", "100") for each in ("one", "other")]
    assert eventually(lambda: [share.rate for share in shares] == [500_000, 500_000])
    for share in shares:
        share.run.send_signal(signal.Signals[name])
        assert share.run.wait(WAIT_SECONDS) == -signal.Signals[name]
    assert user.left() == []


def test_sampler_ends_with_the_run_that_started_it(user: Commands) -> None:
    shares = [Share(user, each, "--cores", "30") for each in ("one", "other")]
    assert eventually(lambda: samplers(shares[0].run))
    (sampler,) = samplers(shares[0].run)
    shares[0].run.kill()
    shares[0].run.wait()
    assert eventually(lambda: not Path(f"/proc/{sampler}").exists())
    shares[1].end()


def samplers(run: subprocess.Popen[str]) -> list[int]:
    """The processes that watch a driver, by the command that started them."""
    children = [path.read_text().split() for path in Path(f"/proc/{run.pid}/task").glob("*/children")]
    pids = [int(pid) for each in children for pid in each]
    return [pid for pid in pids if b"sampler.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_turns_that_processes_take_are_found_by_the_drivers_count(user: Commands) -> None:
    one, other = (Share(user, name, "--cores", "40") for name in ("one", "other"))
    assert eventually(lambda: max(one.slice, other.slice) < 950_000)
    other.end()
    assert eventually(lambda: one.slice == PPM)
    one.end()


def test_counts_of_the_sampler_are_those_of_the_card(user: Commands) -> None:
    shares = [Share(user, "one", "--cores", "40"), Share(user, "other", "--cores", "20")]
    env = machine(user)
    uuid = user.cards()[0]["uuid"]
    utilisation = Utilisation({name: env[name] for name in ("LD_LIBRARY_PATH", "SIMGPU_DIR")})
    try:
        first = heard(utilisation, uuid, after_ns=0)
        began = driver_says(env)
        last = heard(utilisation, uuid, after_ns=first.until_ns + 3_000_000_000)
        now = driver_says(env)
    finally:
        utilisation.close()
    seconds = (last.until_ns - first.until_ns) / 1e9
    for pid, before in began.items():
        counted = (last.used_ns.get(pid, 0) - first.used_ns.get(pid, 0)) / 1e9
        had = (now[pid]["busy_ns"] - before["busy_ns"]) / 1e9
        # Both are of some 3 s, but neither begins nor ends exactly where the other does.
        assert abs(counted - had) < 0.6, (counted, had, seconds)
    for share in shares:
        share.end()


def heard(utilisation: Utilisation, uuid: str, *, after_ns: int) -> Any:
    """The first answer about a card that reaches beyond an instant."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        now_ns = time.monotonic_ns()
        utilisation.ask(uuid, now_ns)
        time.sleep(0.2)
        answer = utilisation.look(uuid, now_ns)
        if answer is not None and answer.until_ns > after_ns:
            return answer
    raise AssertionError(utilisation.fault)


def test_card_that_the_driver_does_not_know_is_a_fault_and_no_more(user: Commands) -> None:
    share = Share(user, "one", "--cores", "40", busy=False)
    env = machine(user)
    utilisation = Utilisation({name: env[name] for name in ("LD_LIBRARY_PATH", "SIMGPU_DIR")})
    utilisation.ask("GPU-nowhere", time.monotonic_ns())
    try:
        assert eventually(lambda: utilisation.look("GPU-nowhere", time.monotonic_ns()) or utilisation.fault)
        assert utilisation.fault
    finally:
        utilisation.close()
    share.end()

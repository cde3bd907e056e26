"""The simulated machine from outside: the table of cards, versions, simgpu-stat, and processes that end."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import support
from tests.support import CARD_USER, GIB, MIB, PAGE_BYTES, ROOT, SIMULATOR

TABLE = ROOT / "native" / "simgpu" / "cards.csv"
CARDS = list(csv.DictReader(line for line in TABLE.read_text().splitlines() if not line.startswith("#")))

ASK = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
total, value, version = ctypes.c_size_t(), ctypes.c_int(), ctypes.c_int()
name = ctypes.create_string_buffer(100)
assert cuda.cuInit(0) == 0
assert cuda.cuDeviceGetName(name, 100, 0) == 0
assert cuda.cuDeviceTotalMem_v2(ctypes.byref(total), 0) == 0
assert cuda.cuDriverGetVersion(ctypes.byref(version)) == 0
numbers = []
for attribute in (16, 75, 76, 13):
    assert cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, 0) == 0
    numbers.append(value.value)
print(json.dumps([name.value.decode(), total.value, *numbers, version.value]))
"""


def ask(env: dict[str, str]) -> list[str | int]:
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("row", CARDS, ids=lambda row: row["card"])
def test_every_card_of_the_table_is_made_as_the_table_says(
    row: dict[str, str], simulated: Callable[..., dict[str, str]]
) -> None:
    env = simulated(row["card"].lower())
    name, total, sms, major, minor, clock_khz, _ = ask(env)
    assert (name, f"{major}.{minor}") == (row["nvml_name"], row["compute_capability"])
    assert total == (int(row["memory_mib"]) - int(row["reserved_mib"])) * MIB
    assert row["sm_count"] in ("?", str(sms))
    assert row["max_sm_mhz"] in ("?", str(int(clock_khz) // 1000))
    assert int(row["reserved_mib"]) % 2 == int(row["context_mib"]) % 2 == 0


def test_aliases_lead_to_one_card_each() -> None:
    names = [
        name.lower() for row in CARDS for name in (row["card"], *filter(None, row["aliases"].split("|")))
    ]
    assert len(names) == len(set(names))
    assert {"v100-16gb", "t4", "a30", "a100-80gb", "a100-40gb", "h100", "h200", "b200"} <= set(names)


@pytest.mark.parametrize(
    ("variables", "driver", "cuda"),
    [
        ({}, "575.57.08", 12090),
        ({"SIMGPU_CUDA": "13000"}, "580.65.06", 13000),
        ({"SIMGPU_CUDA": "11040"}, "470.256.02", 11040),
        ({"SIMGPU_DRIVER": "535.261.03"}, "535.261.03", 12020),
        ({"SIMGPU_DRIVER": "550.99", "SIMGPU_CUDA": "12050"}, "550.99", 12050),
    ],
    ids=lambda value: str(value),
)
def test_driver_and_cuda_version_go_together_unless_both_are_said(
    variables: dict[str, str], driver: str, cuda: int, simulated: Callable[..., dict[str, str]]
) -> None:
    env = simulated(**variables)
    state = support.machine_state(env)
    assert (state["driver"], state["cuda"]) == (driver, cuda)
    assert ask(env)[-1] == cuda


def hold(env: dict[str, str], size_bytes: int, *before: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", CARD_USER, str(size_bytes)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_stat_counts_each_process_and_forgets_the_dead(simulated: Callable[..., dict[str, str]]) -> None:
    env = simulated("V100-SXM2-16GB,T4")
    context = int(CARDS[0]["context_mib"]) * MIB
    with hold(env, GIB) as one, hold(env, 100) as other:
        lines = [process.stdout.readline().split() for process in (one, other) if process.stdout]
        assert [line[1] for line in lines] == ["0", "0"]
        assert support.driver_used(env) == {one.pid: context + GIB, other.pid: context + PAGE_BYTES}
        one.kill()
        one.wait()
        card = support.machine_state(env)["cards"][0]
        assert [process["pid"] for process in card["processes"]] == [other.pid]
        assert (card["used"], card["peak"]) == (context + PAGE_BYTES, 2 * context + GIB + PAGE_BYTES)
        other.kill()
    state = support.machine_state(env)
    assert [(card["used"], card["processes"]) for card in state["cards"]] == [(0, []), (0, [])]
    assert len({card["uuid"] for card in state["cards"]}) == 2
    assert all(re.fullmatch(r"GPU(-[0-9a-f]{4,12}){5}", card["uuid"]) for card in state["cards"])


def test_a_machine_made_anew_in_its_directory_has_the_same_cards(
    simulated: Callable[..., dict[str, str]],
) -> None:
    env = simulated("T4,T4")
    before = [card["uuid"] for card in support.machine_state(env)["cards"]]
    (Path(env["SIMGPU_DIR"]) / "machine").unlink()
    assert [card["uuid"] for card in support.machine_state(env)["cards"]] == before


def test_processes_of_other_pid_namespaces_are_seen_alive_and_dead(
    simulated: Callable[..., dict[str, str]],
) -> None:
    unshare = shutil.which("unshare")
    into = [unshare or "", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not unshare or subprocess.run([*into, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to make a pid namespace here")
    env = simulated()
    with hold(env, GIB, *into) as one, hold(env, 2 * GIB, *into) as other:
        pids = [int(process.stdout.readline().split()[0]) for process in (one, other) if process.stdout]
        assert pids[0] == pids[1]  # the first processes of their namespaces
        processes = support.machine_state(env)["cards"][0]["processes"]
        context = int(CARDS[0]["context_mib"]) * MIB
        assert sorted(process["used"] for process in processes) == [context + GIB, context + 2 * GIB]
        one.kill()
        one.wait()
        assert support.eventually(lambda: len(support.machine_state(env)["cards"][0]["processes"]) == 1)
        other.kill()


def test_stat_says_why_there_is_no_machine(simulated: Callable[..., dict[str, str]]) -> None:
    env = simulated("V100-SXM2-16GB,Z9000")
    done = subprocess.run([SIMULATOR / "simgpu-stat"], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"simgpu-stat: SIMGPU_CARDS names a card that cards.csv lacks ({env['SIMGPU_DIR']})\n"
    )

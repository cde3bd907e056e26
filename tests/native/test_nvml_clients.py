"""NVML's clients, unmodified, on a simulated card and in a share of it: gpustat, nvitop, nvidia-smi."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests import support
from tests.native.nvidia_driver import RealDriver, Unavailable, real_driver
from tests.native.nvml_tools import Env, GrantDir, Simulated, holding, python, run, shared
from tests.support import GIB, MIB


@pytest.fixture(scope="module")
def real() -> RealDriver:
    try:
        return real_driver()
    except Unavailable as error:
        pytest.skip(f"NVIDIA's own nvidia-smi cannot be had: {error}")


def test_gpustat_shows_the_card_and_in_a_share_the_share(simulated: Simulated, grant_dir: GrantDir) -> None:
    pytest.importorskip("gpustat")

    def gpustat(env: Env) -> dict[str, Any]:
        told = json.loads(run(env, sys.executable, "-m", "gpustat", "--json"))["gpus"]
        return told[0]

    env = simulated()
    inside, _ = shared(env, grant_dir, 4 * GIB)
    with holding(env, 2048) as neighbour, holding(inside, 1024) as own:
        used = support.driver_used(env)
        card, share = gpustat(env), gpustat(inside)
        assert card["name"] == share["name"] == "Tesla V100-SXM2-16GB"
        assert (card["memory.total"], share["memory.total"]) == (16384, 4096)
        assert share["memory.used"] == used[own.pid] // MIB
        assert card["memory.used"] == (used[own.pid] + used[neighbour.pid]) // MIB
        assert {one["pid"]: one["gpu_memory_usage"] for one in share["processes"]} == {
            own.pid: used[own.pid] // MIB
        }
        assert {one["pid"] for one in card["processes"]} == {own.pid, neighbour.pid}


def test_nvitop_shows_the_card_and_in_a_share_the_share(simulated: Simulated, grant_dir: GrantDir) -> None:
    pytest.importorskip("nvitop")
    script = """
import json
from nvitop import Device
device = Device.all()[0]
print(json.dumps({
    "total": device.memory_total(), "used": device.memory_used(), "free": device.memory_free(),
    "processes": {pid: one.gpu_memory() for pid, one in device.processes().items()},
}))
"""
    env = simulated()
    inside, _ = shared(env, grant_dir, 4 * GIB)
    with holding(env, 2048) as neighbour, holding(inside, 1024) as own:
        used = support.driver_used(env)
        card, share = python(env, script), python(inside, script)
        assert share == {
            "total": 4 * GIB,
            "used": used[own.pid],
            "free": 4 * GIB - used[own.pid],
            "processes": {str(own.pid): used[own.pid]},
        }
        assert card["total"] == 16 * GIB
        assert card["used"] == sum(used.values())
        assert set(card["processes"]) == {str(own.pid), str(neighbour.pid)}
        table = run(inside, sys.executable, "-m", "nvitop", "--once", "--no-unicode")
        assert "/ 4096MiB" in table
        assert str(own.pid) in table
        assert str(neighbour.pid) not in table


@pytest.fixture
def smi(real: RealDriver) -> Callable[..., str]:
    """Run NVIDIA's nvidia-smi."""

    def call(env: Env, *arguments: str, code: int = 0) -> str:
        return run(env, str(real.smi), *arguments, code=code)

    return call


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), skipinitialspace=True))


def test_real_nvidia_smi_shows_the_cards(
    simulated: Simulated, smi: Callable[..., str], real: RealDriver
) -> None:
    env = simulated("V100-SXM2-16GB,A100-SXM4-80GB,T4", SIMGPU_DRIVER=real.version)
    uuids = support.card_uuids(env)
    with holding(env, 1000) as own:
        used = support.driver_used(env)[own.pid] // MIB
        assert smi(env, "-L").splitlines() == [
            f"GPU 0: Tesla V100-SXM2-16GB (UUID: {uuids[0]})",
            f"GPU 1: NVIDIA A100-SXM4-80GB (UUID: {uuids[1]})",
            f"GPU 2: Tesla T4 (UUID: {uuids[2]})",
        ]
        table = smi(env)
        assert f"NVIDIA-SMI {real.version}" in table
        assert f"{used}MiB / 16384MiB" in table
        assert "0MiB / 81920MiB" in table
        asked = "index,name,memory.total,memory.used,driver_version,pstate,power.limit,mig.mode.current"
        told = rows(smi(env, f"--query-gpu={asked}", "--format=csv,nounits"))
        assert [list(row.values()) for row in told] == [
            ["0", "Tesla V100-SXM2-16GB", "16384", str(used), real.version, "P0", "300.00", "[N/A]"],
            ["1", "NVIDIA A100-SXM4-80GB", "81920", "0", real.version, "P0", "400.00", "Disabled"],
            ["2", "Tesla T4", "15360", "0", real.version, "P8", "70.00", "[N/A]"],
        ]
        for card in ("0", "1", "2"):
            page = smi(env, "-q", "-i", card)
            for fault in ("Function Not Found", "Invalid Argument", "Unknown Error", "ERR!"):
                assert fault not in page
        assert smi(env, "nvlink", "-s", "-i", "2") == ""


def test_real_nvidia_smi_in_a_share_shows_the_share(
    simulated: Simulated, grant_dir: GrantDir, smi: Callable[..., str], real: RealDriver
) -> None:
    env = simulated(SIMGPU_DRIVER=real.version)
    inside, _ = shared(env, grant_dir, 4 * GIB)
    with holding(env, 2048), holding(inside, 1024) as own:
        used = support.driver_used(env)[own.pid] // MIB
        assert f"{used}MiB /  4096MiB" in smi(inside)
        told = rows(smi(inside, "--query-gpu=memory.total,memory.used,memory.free", "--format=csv,nounits"))
        assert [list(row.values()) for row in told] == [["4096", str(used), str(4096 - used)]]
        page = smi(inside, "-q", "-d", "MEMORY")
        assert "Total                             : 4096 MiB" in page
        assert "Total                             : 16384 MiB" in page  # BAR1, which is the card's

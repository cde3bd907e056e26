"""What tests of real processes share: a simulated machine of their own, and shares on it.

Everything lives below a test's `tmp_path`, so nothing outlives the test and no two tests meet. The fixtures
in conftest.py wrap these functions; use the functions where a test needs more than one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda.grant import CardGrant, Grant

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "native"
SIMULATOR = BUILD / "sim"
SHIM = BUILD / "libvcuda.so"

MODEL = "V100-SXM2-16GB"
KIB, MIB, GIB = 2**10, 2**20, 2**30
PAGE_BYTES = 2 * MIB
"""Granularity of device memory: to this a limit can be used up, and no further."""

CARD_USER = """
import ctypes, os, sys
cuda = ctypes.CDLL("libcuda.so.1")
free, total, context, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
status = cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
status = status or cuda.cuCtxSetCurrent(context)
status = status or cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(int(sys.argv[1])))
cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
print(os.getpid(), status, free.value, total.value, flush=True)
sys.stdin.readline()
"""
"""A program: `python -c CARD_USER BYTES` takes memory of the first card, prints its pid, the driver's answer,
and what cuMemGetInfo says is free and there, and holds on until its standard input ends."""

_LEADING = ("LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")
"""Variables of the caller that would lead a test's programs elsewhere, with those that begin as ours do."""


def simulator_environment(tmp_path: Path, cards: str = MODEL, **variables: str) -> dict[str, str]:
    """The environment of programs on a simulated machine of these cards, kept in `tmp_path`/simgpu.

    `variables` come on top: SIMGPU_DRIVER="535.261.03".
    """
    directory = tmp_path / "simgpu"
    directory.mkdir(parents=True, exist_ok=True)
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in _LEADING and not name.startswith(("VCUDA_", "SIMGPU_"))
    }
    return {
        **clean,
        "LD_LIBRARY_PATH": str(SIMULATOR),
        "SIMGPU_DIR": str(directory),
        "SIMGPU_CARDS": cards,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        **variables,
    }


def no_driver_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of `vcuda` commands that keep all their files in `tmp_path`, on a machine as it is."""
    env = simulator_environment(tmp_path)
    for name in ("LD_LIBRARY_PATH", "SIMGPU_DIR", "SIMGPU_CARDS"):
        del env[name]
    return {**env, "VCUDA_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT)}


def machine_state(env: Mapping[str, str]) -> dict[str, Any]:
    """What the simulated driver itself counts: simgpu-stat's JSON."""
    return told(env, SIMULATOR / "simgpu-stat")


def told(env: Mapping[str, str], program: Path, *, timeout: float = 20) -> dict[str, Any]:
    """What a program prints as JSON."""
    done = subprocess.run(
        [str(program)], env=dict(env), capture_output=True, text=True, check=True, timeout=timeout
    )
    return json.loads(done.stdout)


def driver_used(env: Mapping[str, str], card: int = 0) -> dict[int, int]:
    """Bytes that each process holds of a card, by pid, as the simulated driver counts them."""
    return {process["pid"]: process["used"] for process in machine_state(env)["cards"][card]["processes"]}


def ask(env: Mapping[str, str], *question: str) -> dict[str, Any]:
    """Put a question to vcuda.probe in a process with this environment."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "vcuda.probe", *question],
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def card_uuids(env: Mapping[str, str]) -> list[str]:
    """The cards' UUIDs as NVML tells them: GPU-..."""
    return [card["uuid"] for card in ask(env, "machine")["cards"]]


def context_bytes(env: Mapping[str, str], card: int = 0) -> int:
    """What one context costs on a card, as the driver tells it."""
    return ask(env, "context", str(card))["context_bytes"]


def make_share(
    tmp_path: Path, uuid: str, memory_bytes: int, *, name: str = "test", slots: int = 0, **card: Any
) -> Path:
    """Make a grant for one card and an empty ledger; the directory that VCUDA_GRANT_DIR names.

    `card` are further fields of vcuda.grant.CardGrant: context_bytes, page_bytes, core_ppm, whole.
    """
    tmp_path.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=tmp_path, prefix="share-"))
    grants.write(
        directory / "grant",
        Grant(name=name, cards=(CardGrant(uuid=uuid, memory_bytes=memory_bytes, **card),)),
    )
    ledgers.create(directory / "ledger", slots=slots)
    return directory


def shim_environment(env: Mapping[str, str], grant_dir: Path | None) -> dict[str, str]:
    """`env` with the shim preloaded in front of what was, under the share in `grant_dir` (None: no grant)."""
    preload = " ".join(filter(None, (str(SHIM), env.get("LD_PRELOAD"))))
    granted = {} if grant_dir is None else {"VCUDA_GRANT_DIR": str(grant_dir)}
    return {**env, "LD_PRELOAD": preload, **granted}


def ledger_used(grant_dir: Path, card: int = 0) -> int:
    """The sum of all charges in a share's ledger."""
    with ledgers.Ledger(grant_dir / "ledger") as ledger:
        return ledger.used_bytes(card)


def need(*programs: str | Path) -> None:
    """Skip the test, with the reason, where something that it needs is not there."""
    for program in programs:
        if not (Path(program).exists() or shutil.which(str(program))):
            pytest.skip(f"{program} is not there")


class Commands:
    """Somebody who types vcuda's commands, with all their files in one directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.runtime = tmp_path / "run"
        self.env = no_driver_environment(tmp_path)
        self._started: list[subprocess.Popen[str]] = []

    def vcuda(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "vcuda", *arguments],
            env={**self.env, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def run(self, *arguments: str, sim: str = MODEL, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.vcuda("run", "--sim", sim, *arguments, **variables)

    def start(self, *arguments: str, sim: str = MODEL, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "vcuda", "run", "--sim", sim, *arguments],
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            **{"stderr": subprocess.DEVNULL, **options},
        )
        self._started.append(process)
        return process

    def shares(self) -> list[dict[str, Any]]:
        return json.loads(self.vcuda("ps", "--json").stdout)["shares"]

    def cards(self, sim: str = MODEL) -> list[dict[str, Any]]:
        return json.loads(self.vcuda("cards", "--json", "--sim", sim).stdout)["cards"]

    def left(self) -> list[str]:
        """Files of shares and simulated machines that are there."""
        return [str(path) for path in self.runtime.glob("s*/*")]

    def close(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def card_user(size_bytes: int) -> list[str]:
    """The command that runs CARD_USER."""
    return [sys.executable, "-c", CARD_USER, str(size_bytes)]


def answer(process: subprocess.Popen[str]) -> tuple[int, int, int, int]:
    """What CARD_USER prints: pid, status, free, total."""
    assert process.stdout is not None
    pid, status, free, total = map(int, process.stdout.readline().split())
    return pid, status, free, total


def eventually(condition: Callable[[], object], *, seconds: float = 30) -> bool:
    """Whether a condition comes to hold within a time that nothing takes unless it is stuck."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False

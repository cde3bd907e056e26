"""NVML tells the pids that processes have where it is asked, and only of those that are seen from there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import support
from tests.native.nvml_tools import HOLD, VIEW, Env, Simulated, holding, view
from vcuda.processes import Pids

MIB = 64


@pytest.fixture(scope="module")
def into() -> list[str]:
    """A command that runs another one in a pid namespace of its own, with its own /proc."""
    unshare = shutil.which("unshare")
    found = [unshare or "", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not unshare or subprocess.run([*found, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to make a pid namespace here")
    return found


@contextmanager
def contained(env: Env, into: list[str]) -> Iterator[int]:
    """A process in a pid namespace of its own that holds memory: its pid here."""
    process = subprocess.Popen(
        [*into, str(HOLD), str(MIB)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline().startswith("holding")
        (child,) = children(process)
        yield child
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(timeout=30) == 0


def children(process: subprocess.Popen[str]) -> list[int]:
    found = Path("/proc", str(process.pid), "task", str(process.pid), "children").read_text(encoding="ascii")
    return [int(pid) for pid in found.split()]


def told(env: Env) -> set[int]:
    lists = view(env)["lists"]
    assert set(lists["compute"]) == set(lists["compute_v2"]) == set(lists["compute_v3"])
    return set(lists["compute_v3"])


def test_processes_of_containers_are_told_by_their_pids_here(simulated: Simulated, into: list[str]) -> None:
    env = simulated()
    with contained(env, into) as one, contained(env, into) as other, holding(env, MIB) as beside:
        inner = [process["pid"] for process in support.machine_state(env)["cards"][0]["processes"]]
        assert sorted(inner)[:2] == [1, 1]  # the first process of each namespace
        assert told(env) == {one, other, beside.pid}
        assert told(env) == {one, other, beside.pid}
    with contained(env, into) as third, holding(env, MIB) as beside:
        assert told(env) == {third, beside.pid}  # in their places, and by the same pid in its namespace


def test_container_is_told_of_its_own_processes_only(simulated: Simulated, into: list[str]) -> None:
    env = simulated()
    script = f"mkfifo $1; {HOLD} {MIB} <$1 >$1.out & exec 3>$1; sleep 1; {sys.executable} {VIEW}; echo $!"
    with contained(env, into), holding(env, MIB), TemporaryDirectory() as directory:
        command = [*into, "sh", "-c", script, "sh", f"{directory}/input"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    report, pid = done.stdout.splitlines()
    assert list(json.loads(report)["lists"]["compute_v3"]) == [pid]


def test_pids_of_namespaces_are_found_here(into: list[str]) -> None:
    process = subprocess.Popen([*into, "sleep", "60"], text=True)
    try:
        assert support.eventually(lambda: children(process))
        (inside,) = children(process)
        namespace, own = (Path("/proc", str(pid), "ns", "pid").stat().st_ino for pid in (inside, os.getpid()))
        assert Pids().here({namespace: {1}, own: {os.getpid()}}) == {inside, os.getpid()}
    finally:
        process.kill()
        process.wait()

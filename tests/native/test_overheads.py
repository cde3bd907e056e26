"""Contexts and modules are charged right under neighbours; a share is silent, and cheap to be in."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.native.ledger_support import SKIPPED
from tests.native.test_charges import Share, client
from tests.support import (
    BUILD,
    GIB,
    MIB,
    ROOT,
    SHIM,
    driver_used,
    ledger_used,
    make_share,
    shim_environment,
    simulator_environment,
)
from vcuda.ledger import Kind, Ledger

NEIGHBOURS = 6
EMPTY_DRIVER = BUILD / "bench" / "empty"
"""Answers at once and makes no system calls: what is counted in front of it is the shim's."""
EMPTY_UUID = "GPU-00000000-0000-0000-0000-000000000001"


def test_contexts_and_modules_are_charged_right_under_neighbours(tmp_path: Path) -> None:
    # Six programs of two shares start at once: a drop in free memory seen from inside is mostly the others'.
    first = Share(tmp_path)
    second = make_share(tmp_path, first.uuid, 4 * GIB, context_bytes=first.context)
    shares = [first.directory, second]
    with ExitStack() as stack:
        programs = [
            stack.enter_context(client(shim_environment(first.machine, shares[i % 2]), "charges", "module"))
            for i in range(NEIGHBOURS)
        ]
        for program in programs:
            program.until("context")
        for program in programs:
            program.go_on()
        for program in programs:
            program.until("a module")
        each = first.context + 2 * MIB
        assert driver_used(first.machine) == {program.pid: each for program in programs}
        for directory in shares:
            with Ledger(directory / "ledger") as ledger:
                uses = [process.cards[0].bytes_by_kind for process in ledger.read().processes]
            assert [(use[Kind.CONTEXT], use[Kind.MODULE]) for use in uses] == [(first.context, 2 * MIB)] * (
                NEIGHBOURS // 2
            )


def test_context_that_does_not_fit_is_refused_as_by_a_full_card(tmp_path: Path) -> None:
    share = Share(tmp_path, limit=64 * MIB)
    assert share.context > 64 * MIB
    done = subprocess.run(
        [str(BUILD / "clients" / "charges"), "linear"],
        env=share.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "CUDA_ERROR_OUT_OF_MEMORY" in done.stderr
    assert sum(driver_used(share.machine).values()) == 0
    assert ledger_used(share.directory) == 0


def test_program_within_its_limits_finds_nothing_on_its_outputs(tmp_path: Path) -> None:
    share = Share(tmp_path)
    steps = "\n" * 64
    for scenario in ("linear", "vmm", "pool", "graph", "contexts", "module"):
        outputs = [
            subprocess.run(
                [str(BUILD / "clients" / "charges"), scenario],
                env=env,
                input=steps,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            for env in (share.machine, share.env)
        ]
        assert outputs[0].stdout == outputs[1].stdout
        assert outputs[0].stderr == outputs[1].stderr == ""


def test_program_that_never_touches_cuda_loads_no_driver(tmp_path: Path) -> None:
    share = Share(tmp_path)
    program = "print([line.split('/')[-1].strip() for line in open('/proc/self/maps') if 'lib' in line])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=share.env, capture_output=True, text=True, check=True, timeout=60
    )
    assert SHIM.name in done.stdout
    assert "libcuda" not in done.stdout
    assert "libnvidia-ml" not in done.stdout
    assert done.stderr == ""
    with Ledger(share.directory / "ledger") as ledger:
        assert ledger.living() == []


def test_whole_card_is_metered_and_not_limited(tmp_path: Path) -> None:
    share = Share(tmp_path)
    whole = make_share(tmp_path, share.uuid, 1 * MIB, whole=True)
    with client(shim_environment(share.machine, whole), "charges", "linear") as program:
        program.until("context")
        program.go_on()
        program.until("two small ones in one page")
        assert driver_used(share.machine) == {program.pid: share.context + 2 * MIB}
        with Ledger(whole / "ledger") as ledger:
            [process] = ledger.read().processes
        assert process.pid == program.pid
        assert process.cards[0].used_bytes == 0
    hooked = _hooked_names(shim_environment(share.machine, whole))
    assert "cuLaunchKernel" in hooked
    assert "cuMemAlloc_v2" not in hooked
    assert "cuMemGetInfo_v2" not in hooked
    assert _hooked_names(share.env) > hooked
    assert _hooked_names(shim_environment(share.machine, None)) == set()


def test_cuinit_makes_few_system_calls(tmp_path: Path) -> None:
    without = _calls_of_cuinit(tmp_path, 1, shim=False)
    calls = _calls_of_cuinit(tmp_path, 1)
    # 27 in all where ledgers usually are; some more on a file system of which it has to be found out whether
    # mappings keep locks. The two files are the grant and the ledger, and nothing of /proc.
    assert calls["all"] - without["all"] <= 40
    assert calls["openat"] <= 3
    assert calls.get("readlink", 0) + calls["readlinkat"] == 0


def test_slots_are_not_tried_one_by_one_when_many_processes_start_at_once(tmp_path: Path) -> None:
    # Those that try one slot after the other make half as many attempts each as there are processes.
    for processes in (20, 200):
        calls = _calls_of_cuinit(tmp_path, processes)
        assert calls["fcntl"] <= 20 * processes, calls
        assert calls["all"] <= 80 * processes, calls


def test_where_a_process_lives_is_known_from_its_first_charge_on(tmp_path: Path) -> None:
    share = Share(tmp_path)
    with client(share.env, "charges", "linear") as program:
        program.until("context")
        with Ledger(share.directory / "ledger") as ledger:
            [process] = ledger.read().processes
    assert process.pid == program.pid
    assert process.comm == "charges"
    assert process.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino
    assert process.start_ticks > 0


def _calls_of_cuinit(tmp_path: Path, processes: int, *, shim: bool = True) -> dict[str, int]:
    """The system calls that so many processes make together, in step, to be initialised in a new share."""
    env = {**simulator_environment(tmp_path), "LD_LIBRARY_PATH": str(EMPTY_DRIVER)}
    if shim:
        env = shim_environment(env, make_share(tmp_path, EMPTY_UUID, 1 * GIB))
    done = subprocess.run(
        [str(BUILD / "clients" / "traced"), str(processes)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def _hooked_names(env: dict[str, str]) -> set[str]:
    """The names that dlsym answers with an address inside the shim."""
    script = ROOT / "tests" / "native" / "hooked_names.py"
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())

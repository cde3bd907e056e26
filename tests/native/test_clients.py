"""Real, unmodified clients in shares of a simulated V100, each through `vcuda run` as a user starts it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import programs
from demo.machine import Machine
from demo.shares import Plan, Share, python, start
from vcuda.ledger import Kind

pytest.importorskip("numba", reason="the demo's packages (requirements/demo.txt) are not installed")

MIB = 2**20
PAGE_BYTES = 2 * MIB
LIMIT = 1536 * MIB
CLIENTS = ["c", "bindings", "numba", "pycuda"]
DATA_KIND = {"c": Kind.LINEAR, "bindings": Kind.VMM, "numba": Kind.LINEAR, "pycuda": Kind.LINEAR}


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine("V100-SXM2-16GB") as machine:
        yield machine


@pytest.fixture(params=CLIENTS)
def share(request: pytest.FixtureRequest, machine: Machine) -> Iterator[Share]:
    name: str = request.param
    if name == "pycuda":
        pytest.importorskip("pycuda", reason="pycuda could not be built here; `make demo` tries to")
    commands = {
        "c": lambda: (str(programs.driver_api()),),
        "bindings": lambda: python("with_bindings.py"),
        "numba": lambda: python("with_numba.py"),
        "pycuda": lambda: python("with_pycuda.py"),
    }
    share = start(Plan(name=name, memory_bytes=LIMIT, command=commands[name]()), machine)
    yield share
    share.kill()


def test_client_lives_inside_its_share(share: Share, machine: Machine) -> None:
    # It sees the share as if it were the card.
    ready = share.answer("ready")
    assert ready["total"] == LIMIT

    # It meets CUDA_ERROR_OUT_OF_MEMORY at its limit, to the page, and its data is intact.
    filled = share.ask("fill", "filled")
    use, driver = machine.uses()[share.plan.name], machine.driver_used()
    overhead = use.by_kind[Kind.CONTEXT.name] + use.by_kind[Kind.MODULE.name]
    assert LIMIT - PAGE_BYTES < use.used_bytes <= LIMIT
    assert use.by_kind[DATA_KIND[share.plan.name].name] == filled["held"] == use.used_bytes - overhead
    assert filled["free"] == LIMIT - use.used_bytes
    assert filled["spoiled"] == 0
    assert use.refused > 0

    # The driver, which knows nothing of ledgers, counts the same bytes.
    assert driver == {ready["pid"]: use.used_bytes}

    # It frees everything, works on and ends; nothing was said on its behalf, and nothing is left.
    freed = share.ask("free", "freed")
    assert freed["again"] is True
    ended = share.ask("end", "ended")
    assert ended["wrong"] == 0
    assert share.end() == 0
    assert share.unexpected() == ""
    assert machine.driver_used() == {}


def test_demo_proves_its_claims_without_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout

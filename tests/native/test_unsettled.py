"""Nobody is refused for the sake of what another reserved for a moment, before it knew what the driver took.

A small allocation is charged a page until its address tells that it went into one that is paid for; one from
a pool is charged the growth of it, until it turns out that it did not grow. The share here is full to the
page with what is kept, so that the moment's excess has no room beside another's request.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    MIB,
    PAGE_BYTES,
    card_uuids,
    context_bytes,
    machine_state,
    make_share,
    shim_environment,
    simulator_environment,
)

ROUNDS = 100_000
POOL_CHUNK = 32 * MIB


def churn(env: dict[str, str], programs: list[list[str]]) -> list[str]:
    """Run all of them at once; what each says of its refusals."""
    running: list[subprocess.Popen[str]] = []
    try:
        for arguments in programs:
            program = [str(BUILD / "clients" / "churn"), *arguments]
            running.append(
                subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert running[-1].stdout is not None
            assert running[-1].stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("g")
            process.stdin.flush()
        return [process.stdout.readline() for process in running if process.stdout is not None]
    finally:
        for process in running:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("programs", "room"),
    [
        pytest.param(
            [["512", str(ROUNDS)], [str(PAGE_BYTES), str(ROUNDS)]],
            2 * PAGE_BYTES,
            id="a small one beside a whole page",
        ),
        pytest.param(
            [["512", str(ROUNDS)], [str(PAGE_BYTES), str(ROUNDS)], [str(2 * PAGE_BYTES), str(ROUNDS)]],
            4 * PAGE_BYTES,
            id="a small one beside two",
        ),
        pytest.param(
            [[str(MIB), str(ROUNDS // 10), "async"], [str(PAGE_BYTES), str(ROUNDS)]],
            POOL_CHUNK + PAGE_BYTES,
            id="a pool beside a page",
        ),
    ],
)
def test_what_fits_in_the_end_is_never_refused(tmp_path: Path, programs: list[list[str]], room: int) -> None:
    machine = simulator_environment(tmp_path)
    context = context_bytes(machine)
    limit = len(programs) * context + room
    share = make_share(tmp_path, card_uuids(machine)[0], limit, context_bytes=context)
    refused = churn(shim_environment(machine, share), programs)
    assert refused == ["refused 0\n"] * len(programs)
    assert machine_state(machine)["cards"][0]["peak"] <= limit

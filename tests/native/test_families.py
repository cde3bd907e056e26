"""fork, vfork, exec and threads around CUDA: each process has its slot, nothing is charged twice or lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.native.test_charges import Share, client
from tests.support import MIB, driver_used, ledger_used

WAYS = {
    "a forked child has no CUDA and takes nothing along": (
        "fork",
        [
            ("parent holds", 1, 4),
            ("child has no CUDA", 1, 4),
            ("child gone", 1, 4),
            ("parent goes on", 1, 6),
            ("parent freed", 1, 0),
        ],
    ),
    "a child forked before cuInit has its own slot": (
        "fork-early",
        [("both hold", 2, 10), ("child killed", 1, 4)],
    ),
    "vfork and exec leave the parent's slot alone": (
        "vfork",
        [("parent holds after vfork and exec", 1, 4), ("parent freed", 1, 0)],
    ),
    "exec ends what the program held, though the pid stays": (
        "exec",
        [("holds", 1, 4), ("a new program of the same pid", 0, 0), ("holds anew", 1, 2)],
    ),
    "threads of one process add up": (
        "threads",
        [("eight threads have allocated and freed", 1, 4), ("freed", 1, 0)],
    ),
}


@pytest.mark.parametrize("promise", WAYS)
def test_family(promise: str, tmp_path: Path) -> None:
    way, steps = WAYS[promise]
    share = Share(tmp_path)
    with client(share.env, "families", way) as program:
        for step, contexts, mebibytes in steps:
            program.until(step)
            expected = contexts * share.context + mebibytes * MIB
            assert sum(driver_used(share.machine).values()) == expected, step
            # The dead are taken back by whoever needs room next; the ledger may count them until then.
            share.reclaim()
            assert ledger_used(share.directory) == expected, step
            program.go_on()
        assert program.end() == 0
    share.reclaim()
    assert ledger_used(share.directory) == 0

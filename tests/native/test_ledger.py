"""The ledger's promises in real processes: each promise of the C programs is a test here.

The programs are native/tests/test_ledger*.c, test_grant.c, test_record.c and test_pages.c. Wrong orders of
the ledger's steps, made by changing its source, are caught by them; that is tested too.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.ledger_support import NATIVE, Variant, build, changed, keep, promises, run

PROGRAMS = (
    "test_ledger",
    "test_ledger_points",
    "test_ledger_threads",
    "test_grant",
    "test_record",
    "test_pages",
)
LEDGER = "native/shim/ledger.c"
SLOTS = "native/shim/ledger_slots.c"
FILE = "native/shim/ledger_file.c"


@pytest.mark.parametrize(
    ("program", "promise"), [(program, promise) for program in PROGRAMS for promise in promises(program)]
)
def test_promise(program: str, promise: str, tmp_path: Path) -> None:
    keep(build(NATIVE / "tests" / f"{program}.c"), promise, tmp_path=tmp_path)


def test_64_processes_never_exceed_the_limit_and_are_refused_nothing_that_fits(
    tmp_path: Path, soak: bool
) -> None:
    race = build(NATIVE / "tests" / "test_ledger_race.c")
    said = keep(race, "60" if soak else "8", "64", tmp_path=tmp_path)
    print(said)


@pytest.mark.timeout(900)
def test_killed_and_stopped_processes_leave_nothing_and_stop_nobody(tmp_path: Path, soak: bool) -> None:
    crash = build(NATIVE / "tests" / "test_ledger_crash.c")
    said = keep(crash, "10000" if soak else "500", tmp_path=tmp_path, timeout=800)
    print(said)


# ---- file systems ----


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Path]:
    """A directory on overlayfs, where what is mapped is another file than the one that was opened."""
    base = tmp_path / "base"
    base.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(base)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        for name in ("lower", "upper", "work", "merged"):
            (base / name).mkdir()
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        mounted = subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(base / "merged")],
            capture_output=True,
            text=True,
            check=False,
        )
        if mounted.returncode:
            pytest.skip(f"there is no overlayfs here: {mounted.stderr.strip()}")
        try:
            yield base / "merged"
        finally:
            subprocess.run(["umount", str(base / "merged")], check=True)
    finally:
        subprocess.run(["umount", str(base)], check=True)


@pytest.mark.parametrize("program", ["test_ledger", "test_ledger_threads"])
def test_promises_hold_on_overlayfs(program: str, overlay: Path) -> None:
    keep(build(NATIVE / "tests" / f"{program}.c"), tmp_path=overlay)


# ---- the tests would notice ----

WRONG = {
    "the fence is raised after the swap of the lock": (
        LEDGER,
        [
            (
                (
                    'fence(map, card, word);\n            POINT("fenced");\n'
                    "            if (swap_if(lock, &word, mine | LOCK_SLEEPERS))\n                return;"
                ),
                (
                    "uint64_t was = word;\n            if (swap_if(lock, &word, mine | LOCK_SLEEPERS)) {\n"
                    '                POINT("fenced");\n                fence(map, card, was);\n'
                    "                return;\n            }"
                ),
            )
        ],
        "test_ledger_points",
        "a_thief_interrupted_lets_neither_its_victim_nor_itself_overcharge",
    ),
    "the fence is read after the lease was taken": (
        LEDGER,
        [
            ("    uint64_t fence_before = fence_of(load(&own->word));\n", ""),
            (
                "    enum attempt result = look(map, request);\n",
                (
                    "    uint64_t fence_before = fence_of(load(&own->word));\n"
                    "    enum attempt result = look(map, request);\n"
                ),
            ),
        ],
        "test_ledger_points",
        "a_holder_that_lost_its_lease_does_not_charge_beside_the_next_one",
    ),
    "the fence is not looked at": (
        LEDGER,
        [
            ("while (fence_of(word) == fence_before && result", "while (result"),
            ("bool lost = fence_of(word) != fence_before;", "bool lost = fence_before == 1;"),
        ],
        "test_ledger_points",
        "a_process_interrupted_before_its_charge_charges_nothing_that_no_longer_fits",
    ),
    "no second sum where nothing was found to take back": (
        LEDGER,
        [
            (
                "            vcuda_ledger_reclaim_card(map, request->card);\n",
                (
                    "            if (!vcuda_ledger_reclaim_card(map, request->card))\n"
                    "                return false;\n"
                ),
            )
        ],
        "test_ledger_points",
        "what_another_took_back_meanwhile_is_seen",
    ),
    "the owner is looked for before the word is read": (
        SLOTS,
        [('        POINT("found dead");\n', '        POINT("found dead");\n        seen = load(word);\n')],
        "test_ledger_points",
        "a_slots_new_owner_is_not_taken_for_the_dead_one",
    ),
    "a slot is owned before it is emptied": (
        SLOTS,
        [
            ("    if (!set_lock(fd, F_WRLCK, OWNER_BYTES + index))\n        return BUSY;\n", ""),
            (
                "    if (!raise_high(map, fd, index))\n",
                (
                    "    if (!set_lock(fd, F_WRLCK, OWNER_BYTES + index))\n        return BUSY;\n"
                    "    if (!raise_high(map, fd, index))\n"
                ),
            ),
        ],
        "test_ledger_points",
        "a_claim_on_a_dead_processs_slot_does_not_hold_its_memory",
    ),
    "a child keeps its parent's mapping": (
        FILE,
        [("madvise(memory, map->map_bytes, MADV_DONTFORK);", "(void)memory;")],
        "test_ledger",
        "a_forked_child_does_not_keep_its_parents_slot",
    ),
    "a fork does not wait for a slot to be taken": (
        SLOTS,
        [
            (
                "pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child)",
                "pthread_atfork(0, 0, 0)",
            ),
            ("static void before_fork(void) {", "__attribute__((unused)) static void before_fork(void) {"),
            (
                "static void after_fork_in_parent(void) {",
                "__attribute__((unused)) static void after_fork_in_parent(void) {",
            ),
            (
                "static void after_fork_in_child(void) {",
                "__attribute__((unused)) static void after_fork_in_child(void) {",
            ),
        ],
        "test_ledger_threads",
        "a_child_forked_while_another_thread_attaches_keeps_no_slot",
    ),
    "a newcomer does not take back what the dead held": (
        SLOTS,
        [
            ("(1000);\n        reclaim_some(map, fd);\n", "(1000);\n"),
            ("static void reclaim_some", "__attribute__((unused)) static void reclaim_some"),
        ],
        "test_ledger",
        "many_short_lives_use_few_slots",
    ),
}


@pytest.mark.parametrize("order", WRONG)
def test_a_wrong_order_breaks_a_promise(order: str, tmp_path: Path) -> None:
    source, changes, program, promise = WRONG[order]
    files = tmp_path / "source"
    files.mkdir()
    wrong = changed(source, changes, files)
    variant = Variant(f"wrong-{list(WRONG).index(order)}", flags=("-O1",))
    built = build(NATIVE / "tests" / f"{program}.c", variant, replaced={source: wrong})
    done = run(built, promise, tmp_path=files)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"broken: {promise}" in done.stderr

"""Broken grants and ledgers: one line beginning `vcuda:`, no CUDA, and the rest of the program runs.

The client is native/tests/clients/init_only.c: it calls cuInit, prints what it was told and ends
with status 7. Every message that is met here is in docs/reference/errors.md.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    GIB,
    ROOT,
    card_uuids,
    make_share,
    shim_environment,
    simulator_environment,
)
from vcuda._abi import ffi, lib

NOT_READY = 802  # CUDA_ERROR_SYSTEM_NOT_READY
GRANT = ffi.typeof("struct vcuda_grant")
CARD = ffi.typeof("struct vcuda_grant_card")
LEDGER = ffi.typeof("struct vcuda_ledger")


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    return simulator_environment(tmp_path)


@pytest.fixture
def share(tmp_path: Path, machine: dict[str, str]) -> Path:
    return make_share(tmp_path, card_uuids(machine)[0], GIB)


def run(
    env: dict[str, str], times: int = 1, *, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*under, str(BUILD / "clients" / "init_only"), str(times)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def expect_refusal(env: dict[str, str], *parts: str, under: tuple[str, ...] = ()) -> None:
    """CUDA is refused, once in a line that says why, however often it is asked for; all else runs."""
    done = run(env, 3, under=under)
    assert done.stdout.splitlines() == [f"cuInit: {NOT_READY}"] * 3 + ["went on"]
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("vcuda: ")
    assert "CUDA is not available" in done.stderr
    for part in parts:
        assert part in done.stderr
    assert documented(done.stderr)


def documented(message: str) -> bool:
    """Whether a row of docs/reference/errors.md begins with words of this message."""
    rows = [
        line.split("|")[1].strip()
        for line in (ROOT / "docs/reference/errors.md").read_text().splitlines()
        if line.startswith(("| the ", "| card ", "| every ", "| ... "))
    ]
    return any(
        all(part.strip() in message for part in choice.split("..."))
        for row in rows
        for choice in row.split("; ")
        if choice
    )


def patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def offset_of(kind: object, field: str) -> int:
    return ffi.offsetof(kind, field)


def card_offset(field: str) -> int:
    return offset_of(GRANT, "cards") + offset_of(CARD, field)


def test_a_sound_share_is_silent(machine: dict[str, str], share: Path) -> None:
    done = run(shim_environment(machine, share), 3)
    assert done.stdout.splitlines() == ["cuInit: 0"] * 3 + [f"total: {GIB}", "went on"]
    assert done.stderr == ""
    assert done.returncode == 7


def test_without_a_grant_nothing_is_limited_or_said(machine: dict[str, str]) -> None:
    done = run(shim_environment(machine, None))
    assert "cuInit: 0" in done.stdout
    assert f"total: {GIB}" not in done.stdout
    assert done.stderr == ""


def test_a_program_that_never_asks_for_cuda_is_told_nothing(machine: dict[str, str], share: Path) -> None:
    (share / "grant").write_bytes(b"garbage")
    done = subprocess.run(
        ["sh", "-c", "echo fine"],
        env=shim_environment(machine, share),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("fine\n", "", 0)


# ---- the grant ----


def _remove(path: Path) -> None:
    path.unlink()


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _write(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def _truncate(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def _number(offset: int, value: int, size: int) -> Callable[[Path], None]:
    return lambda path: patch(path, offset, (value % 2 ** (8 * size)).to_bytes(size, "little"))


BROKEN_GRANTS = {
    "missing": (_remove, "cannot be opened: No such file"),
    "a directory": (_make_directory, "is not a file"),
    "a fifo": (_make_fifo, "is not a file"),
    "a broken link": (
        lambda path: (path.unlink(), path.symlink_to("nowhere")),
        "cannot be opened: No such file",
    ),
    "empty": (_truncate(0), "truncated: 0 bytes"),
    "cut in the header": (_truncate(100), "truncated: 100 bytes"),
    "cut in a card": (_truncate(300), "truncated: 300 bytes of 512"),
    "garbage": (_write(bytes(range(256)) * 20), "not a grant"),
    "zeros": (_write(bytes(4352)), "not a grant"),
    "text": (_write(b"memory: 4GiB\n" * 50), "not a grant"),
    "a later ABI version": (
        _number(offset_of(GRANT, "abi_major"), 2, 2),
        f"ABI version 2.1, this library {lib.VCUDA_ABI_MAJOR}.{lib.VCUDA_ABI_MINOR}",
    ),
    "no cards": (_number(offset_of(GRANT, "card_count"), 0, 4), "contradicts itself"),
    "a negative number of cards": (_number(offset_of(GRANT, "card_count"), -1, 4), "contradicts itself"),
    "an overflowing card size": (_number(offset_of(GRANT, "card_bytes"), -8, 4), "contradicts itself"),
    "a negative limit": (
        _number(card_offset("memory_bytes"), -GIB, 8),
        "of 18446744072635809792 bytes",
    ),
    "no limit": (_number(card_offset("memory_bytes"), 0, 8), "memory limit of 0 bytes"),
    "an overflowing limit": (
        _number(card_offset("memory_bytes"), 2**44, 8),
        "of 17592186044416 bytes",
    ),
    "a negative core share": (_number(card_offset("core_ppm"), -1, 4), "core share of 4294967295 ppm"),
    "an overflowing core ceiling": (_number(card_offset("core_max_ppm"), 1_000_001, 4), "ceiling of 1000001"),
    "an unknown priority": (_number(card_offset("priority"), -2, 4), "priority -2"),
    "an overflowing calibration": (_number(card_offset("context_bytes"), -1, 8), "calibration out of range"),
    "a page size that is no power of 2": (
        _number(card_offset("page_bytes"), 3, 8),
        "calibration out of range",
    ),
    "a card that isn't there": (
        lambda path: patch(path, card_offset("uuid"), b"GPU-00000000-0000-0000-0000-000000000000"),
        "the driver shows none of the granted cards (first: GPU-00000000-0000-0000-0000-000000000000)",
    ),
    "a card without a name": (
        lambda path: patch(path, card_offset("uuid"), bytes(64)),
        "card 0 of the grant has no UUID",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_GRANTS)
def test_broken_grant_refuses_cuda_in_one_line(kind: str, machine: dict[str, str], share: Path) -> None:
    spoil, message = BROKEN_GRANTS[kind]
    spoil(share / "grant")
    expect_refusal(shim_environment(machine, share), message)


def test_directory_of_the_grant_is_gone(machine: dict[str, str], share: Path) -> None:
    expect_refusal(shim_environment(machine, share / "gone"), "cannot be opened: No such file")


def test_unreadable_grant(machine: dict[str, str], share: Path) -> None:
    (share / "grant").chmod(0)
    env = shim_environment(machine, share)
    expect_refusal(env, "cannot be opened: Permission denied", under=without_powers())


def test_variables_do_not_raise_a_limit(machine: dict[str, str], share: Path) -> None:
    env = shim_environment(machine, share)
    names = (
        "VCUDA_MEMORY",
        "VCUDA_MEMORY_LIMIT",
        "VCUDA_MEMORY_BYTES",
        "VCUDA_LIMIT",
        "CUDA_DEVICE_MEMORY_LIMIT",
    )
    raised = dict.fromkeys(names, str(64 * GIB)) | {"VCUDA_CORES": "100", "VCUDA_DISABLE": "1", "VCUDA": "0"}
    done = run(env | raised)
    assert f"total: {GIB}" in done.stdout
    assert done.stderr == ""


# ---- the ledger ----

BROKEN_LEDGERS = {
    "missing": (_remove, "cannot be opened: No such file"),
    "a directory": (_make_directory, "cannot be opened: Is a directory"),
    "a fifo": (_make_fifo, "is not a ledger, or damaged"),
    "empty": (_truncate(0), "is truncated"),
    "cut in the header": (_truncate(100), "is truncated"),
    "cut in the slots": (_truncate(100_000), "is truncated"),
    "garbage": (_write(bytes(range(256)) * 400), "is not a ledger, or damaged"),
    "zeros": (_write(bytes(100_000)), "is not a ledger, or damaged"),
    "a later ABI version": (
        _number(offset_of(LEDGER, "abi_major"), 9, 2),
        f"ABI version 9.1, this library {lib.VCUDA_ABI_MAJOR}.{lib.VCUDA_ABI_MINOR}",
    ),
    "no slots": (_number(offset_of(LEDGER, "slot_count"), 0, 4), "is not a ledger, or damaged"),
    "a negative number of slots": (
        _number(offset_of(LEDGER, "slot_count"), -1, 4),
        "is not a ledger, or damaged",
    ),
    "an overflowing slot size": (
        _number(offset_of(LEDGER, "slot_bytes"), -64, 4),
        "is not a ledger, or damaged",
    ),
    "a size that contradicts itself": (
        _number(offset_of(LEDGER, "file_bytes"), 1, 8),
        "is not a ledger, or damaged",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_LEDGERS)
def test_broken_ledger_refuses_cuda_in_one_line(kind: str, machine: dict[str, str], share: Path) -> None:
    spoil, message = BROKEN_LEDGERS[kind]
    spoil(share / "ledger")
    expect_refusal(shim_environment(machine, share), "the ledger", message)


def test_full_table_refuses_cuda_to_one_more(tmp_path: Path, machine: dict[str, str]) -> None:
    share = make_share(tmp_path, card_uuids(machine)[0], GIB, slots=1)
    owner = ffi.new("struct vcuda_ledger_map *")
    assert lib.vcuda_ledger_attach(owner, os.fsencode(share / "ledger")) == lib.VCUDA_LEDGER_OK
    try:
        expect_refusal(shim_environment(machine, share), "every slot of the ledger")
    finally:
        lib.vcuda_ledger_close(owner)
    assert "cuInit: 0" in run(shim_environment(machine, share)).stdout


def test_scribbled_accounts_crash_nobody(machine: dict[str, str], share: Path) -> None:
    """All but the header's first line is noise: the program runs, limited or refused, but never crashes."""
    size = (share / "ledger").stat().st_size
    start = offset_of(LEDGER, "slots_high")
    for seed in range(3):
        noise = bytes((seed * 37 + i * 101) % 256 for i in range(251)) * (size // 251 + 1)
        patch(share / "ledger", start, noise[: size - start])
        done = run(shim_environment(machine, share))
        assert done.returncode == 7, done.stderr
        assert "went on" in done.stdout


# ---- file systems ----


def without_powers() -> tuple[str, ...]:
    """What to put in front of a command so that permissions bind it, root or not."""
    if os.getuid() != 0:
        return ()
    drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")
    tried = subprocess.run([*drop, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"root's powers cannot be dropped here: {tried.stderr.strip()}")
    return drop


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k,mode=777", "none", str(mount_point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield mount_point
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


def fill(directory: Path) -> None:
    with (directory / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_full_disk_refuses_cuda_in_one_line(small_disk: Path, machine: dict[str, str]) -> None:
    share = make_share(small_disk, card_uuids(machine)[0], GIB)
    fill(small_disk)
    expect_refusal(shim_environment(machine, share), "the file system of the ledger", "is full")
    (small_disk / "filler").unlink()
    assert "cuInit: 0" in run(shim_environment(machine, share)).stdout


def test_read_only_file_system_refuses_cuda_in_one_line(small_disk: Path, machine: dict[str, str]) -> None:
    share = make_share(small_disk, card_uuids(machine)[0], GIB)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    expect_refusal(
        shim_environment(machine, share), "cannot be written: Read-only file system", "mount it read-write"
    )


def test_read_only_ledger_refuses_cuda_in_one_line(machine: dict[str, str], share: Path) -> None:
    (share / "ledger").chmod(0o444)
    env = shim_environment(machine, share)
    expect_refusal(env, "cannot be written: Permission denied", under=without_powers())


def test_documentation_is_really_compared() -> None:
    assert documented("vcuda: the ledger /x is truncated; CUDA is not available here")
    assert documented("vcuda: the grant names card GPU-1 twice; CUDA is not available here")
    assert not documented("vcuda: the ledger /x is made of cheese; CUDA is not available here")

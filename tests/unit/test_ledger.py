"""Reading a ledger: what its processes use, and what is said of files that are none."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vcuda import ledger as ledgers
from vcuda._abi import ffi, lib
from vcuda.errors import LedgerError
from vcuda.ledger import Kind, Ledger

MIB = 2**20
LIMIT = 2**30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger"
    ledgers.create(path)
    return path


@pytest.fixture
def member(path: Path) -> Iterator[Any]:
    """This process as one of the share's: it has a slot."""
    mapped = ffi.new("struct vcuda_ledger_map *")
    assert lib.vcuda_ledger_attach(mapped, os.fsencode(path)) == lib.VCUDA_LEDGER_OK
    yield mapped
    lib.vcuda_ledger_close(mapped)


def test_new_ledger_has_nobody_and_nothing(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.living() == []
        assert ledger.used_bytes(0) == 0
        reading = ledger.read()
    assert reading.processes == ()
    assert [(each.gpu_ns, each.launches, each.wait_ns, each.refused) for each in reading.ended] == [
        (0, 0, 0, 0)
    ]


def test_process_is_shown_with_what_it_holds_by_kind(path: Path, member: Any) -> None:
    assert lib.vcuda_ledger_reserve(member, 0, Kind.LINEAR, 4 * MIB, LIMIT)
    assert lib.vcuda_ledger_reserve(member, 0, Kind.CONTEXT, 300 * MIB, LIMIT)
    assert lib.vcuda_ledger_reserve(member, 1, Kind.VMM, 2 * MIB, LIMIT)
    assert not lib.vcuda_ledger_reserve(member, 0, Kind.LINEAR, LIMIT, LIMIT)
    lib.vcuda_ledger_release(member, 0, Kind.LINEAR, 2 * MIB)

    with Ledger(path) as ledger:
        reading = ledger.read(cards=2)
        assert (ledger.used_bytes(0), ledger.used_bytes(1)) == (302 * MIB, 2 * MIB)
    (process,) = reading.processes
    assert process.pid == os.getpid()
    assert process.pid_namespace == Path("/proc/self/ns/pid").stat().st_ino
    assert process.comm == Path("/proc/self/comm").read_text().strip()
    first, second = process.cards
    assert {kind: size for kind, size in first.bytes_by_kind.items() if size} == {
        Kind.LINEAR: 2 * MIB,
        Kind.CONTEXT: 300 * MIB,
    }
    assert (first.used_bytes, first.peak_bytes) == (302 * MIB, 304 * MIB)
    assert (first.refused, first.refused_bytes) == (1, LIMIT)
    assert (second.used_bytes, second.refused) == (2 * MIB, 0)


def test_process_that_has_left_is_shown_no_more(path: Path, member: Any) -> None:
    assert lib.vcuda_ledger_reserve(member, 0, Kind.LINEAR, MIB, LIMIT)
    lib.vcuda_ledger_close(member)
    with Ledger(path, writable=True) as ledger:
        assert ledger.read().processes == ()
        ledger.reclaim()
        assert ledger.used_bytes(0) == 0


def test_kinds_are_those_of_the_header() -> None:
    assert {kind: getattr(lib, f"VCUDA_KIND_{kind.name}") for kind in Kind} == {
        kind: kind.value for kind in Kind
    }
    assert len(Kind) == lib.VCUDA_KINDS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be opened: No such file or directory"),
        (b"", "is truncated"),
        (b"garbage", "is truncated"),
        (b"\xff" * 65536, "is not a ledger"),
        (b"\0" * 65536, "is not a ledger"),
    ],
    ids=["missing", "empty", "short", "garbage", "zeros"],
)
def test_what_is_no_ledger_is_refused_with_the_reason(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LedgerError) as error:
        Ledger(path)
    assert str(error.value) == f"ledger {path}: {reason}"


def test_truncated_ledger_is_refused(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(LedgerError, match="is truncated"):
        Ledger(path)


def test_ledger_of_another_version_is_refused_with_both_versions_named(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(ffi.offsetof("struct vcuda_ledger", "abi_major"))
        file.write(bytes([9]))
    with pytest.raises(LedgerError) as error:
        Ledger(path)
    assert str(error.value) == f"ledger {path}: is of ABI version 9.1; this vcuda reads 1.x"


@pytest.mark.parametrize("slots", [-1, 4097, 2**31])
def test_number_of_slots_is_bounded(slots: int, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="a ledger has 1 to 4096"):
        ledgers.create(tmp_path / "ledger", slots=slots)
    assert list(tmp_path.iterdir()) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_damage_to_a_ledger_does_harm(path: Path, data: st.DataObject) -> None:
    copy = path.with_name("copy")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    copy.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        with Ledger(copy) as ledger:
            ledger.read(cards=16)
    except LedgerError as error:
        assert "\n" not in str(error)


def test_nothing_is_taken_back_in_a_ledger_that_is_only_read(path: Path) -> None:
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="writable=True"):
        ledger.reclaim()

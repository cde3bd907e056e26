"""The book of shares: who is alive, and what is removed when."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vcuda._abi import ffi, lib
from vcuda.driver import Card
from vcuda.errors import VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.machine import rooms
from vcuda.registry import Registry, Share, runtime_directory
from vcuda.units import PPM

GIB = 2**30
UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
GRANT = Grant(name="test", cards=(CardGrant(uuid=UUID, memory_bytes=GIB),))


def described(**fields: Any) -> Share:
    """A share that has yet to be made."""
    default: dict[str, Any] = {
        "name": "test",
        "command": ("python", "train.py"),
        "pid": os.getpid(),
        "card_uuid": UUID,
        "card_name": "V100",
        "memory_bytes": GIB,
        "core_ppm": None,
        "whole": False,
        "sim_dir": None,
        "started": time.time(),
    }
    return Share(**{**default, **fields})


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


@pytest.fixture
def made(registry: Registry) -> Iterator[tuple[Share, int]]:
    with registry.locked():
        share, descriptor = registry.add(described(), GRANT)
    yield share, descriptor
    with contextlib.suppress(OSError):  # the test may have closed it
        os.close(descriptor)


def living(registry: Registry) -> list[Share]:
    with registry.locked():
        return registry.shares()


def test_share_is_found_as_it_was_made(registry: Registry, made: tuple[Share, int]) -> None:
    share, _ = made
    assert living(registry) == [share]
    assert {file.name for file in share.path.iterdir()} == {"alive", "grant", "ledger", "share.json"}
    assert share.path.stat().st_mode & 0o077 == 0


def test_share_whose_maker_is_gone_is_removed_by_whoever_looks_next(
    registry: Registry, made: tuple[Share, int]
) -> None:
    share, descriptor = made
    os.close(descriptor)
    assert living(registry) == []
    assert not share.path.exists()


def test_share_that_a_process_uses_lives_without_its_maker(
    registry: Registry, made: tuple[Share, int]
) -> None:
    share, descriptor = made
    member = ffi.new("struct vcuda_ledger_map *")
    assert lib.vcuda_ledger_attach(member, os.fsencode(share.path / "ledger")) == lib.VCUDA_LEDGER_OK
    registry.remove(share, descriptor)
    assert living(registry) == [share]
    lib.vcuda_ledger_close(member)
    assert living(registry) == []
    assert not share.path.exists()


def test_end_of_a_share_leaves_nothing(registry: Registry, made: tuple[Share, int]) -> None:
    share, descriptor = made
    registry.remove(share, descriptor)
    assert not share.path.exists()
    assert list((registry.runtime / "shares").iterdir()) == []


def test_shares_are_listed_oldest_first(registry: Registry) -> None:
    with registry.locked():
        made = [registry.add(described(name=str(started), started=started), GRANT) for started in (3, 1, 2)]
    assert [share.name for share in living(registry)] == ["1", "2", "3"]
    for share, descriptor in made:
        registry.remove(share, descriptor)


def test_share_that_another_version_describes_is_counted_by_its_grant(
    registry: Registry, made: tuple[Share, int]
) -> None:
    share, _ = made
    (share.path / "share.json").write_text('{"title": "later", "colour": "green"}')
    (other,) = living(registry)
    assert (other.name, other.card_uuid, other.memory_bytes) == ("test", UUID, GIB)
    assert (other.core_ppm, other.whole, other.path) == (None, False, share.path)


def test_simulated_machine_goes_with_its_last_share(registry: Registry) -> None:
    machine = registry.runtime / "sim" / "V100"
    machine.mkdir(parents=True)
    with registry.locked():
        share, descriptor = registry.add(described(sim_dir=str(machine)), GRANT)
    registry.tidy()
    assert machine.exists()
    registry.remove(share, descriptor)
    registry.tidy()
    assert not machine.exists()


def test_simulated_machine_in_a_directory_of_the_users_own_stays(registry: Registry, tmp_path: Path) -> None:
    machine = tmp_path / "mine"
    machine.mkdir()
    with registry.locked():
        share, descriptor = registry.add(described(sim_dir=str(machine)), GRANT)
    registry.remove(share, descriptor)
    registry.tidy()
    assert machine.exists()


def test_what_a_share_gets_is_no_longer_free(registry: Registry) -> None:
    card = Card(
        index=0, uuid=UUID, name="Tesla V100", total_bytes=17 * GIB, reserved_bytes=GIB, used_bytes=5 * GIB
    )
    other = Card(index=1, uuid="GPU-b", name="Tesla V100", total_bytes=GIB, reserved_bytes=0, used_bytes=0)
    shares = [
        described(memory_bytes=4 * GIB, core_ppm=300_000),
        described(memory_bytes=2 * GIB),
        described(card_uuid="GPU-b", whole=True),
    ]
    first, second = rooms([card, other], shares)
    assert (first.usable_bytes, first.free_bytes, first.free_ppm, first.shares) == (
        16 * GIB,
        10 * GIB,
        700_000,
        2,
    )
    assert (second.free_bytes, second.free_ppm, second.shares, second.whole) == (0, 0, 1, True)
    (untouched,) = rooms([card], [])
    assert (untouched.free_bytes, untouched.free_ppm, untouched.shares) == (16 * GIB, PPM, 0)


def test_runtime_directory_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCUDA_RUNTIME_DIR", str(tmp_path / "own"))
    assert runtime_directory() == tmp_path / "own"
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700
    (tmp_path / "own").chmod(0o777)
    with pytest.raises(VcudaError, match="is not a private directory of this user"):
        runtime_directory()


def test_runtime_directory_does_not_depend_on_where_a_program_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VCUDA_RUNTIME_DIR", "here")
    assert runtime_directory() == tmp_path / "here"


def test_path_too_long_for_the_shim_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCUDA_RUNTIME_DIR", str(tmp_path / ("x" * 200)))
    with pytest.raises(VcudaError, match="longer than 200 bytes; set VCUDA_RUNTIME_DIR to a shorter path"):
        runtime_directory()


def test_runtime_directory_is_no_link_to_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("VCUDA_RUNTIME_DIR", str(tmp_path / "link"))
    with pytest.raises(VcudaError, match="is not a private directory of this user"):
        runtime_directory()


def test_runtime_directory_is_the_sessions_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VCUDA_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert runtime_directory() == tmp_path / "vcuda"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert runtime_directory() == tmp_path / f"vcuda-{os.getuid()}"

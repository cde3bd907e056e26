"""The book of shares: who is alive, and what is removed when."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vcuda import grant as grants
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
        "core_max_ppm": None,
        "priority": 0,
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
    assert (other.core_max_ppm, other.priority) == (None, 0)


CORES = Grant(
    name="test",
    cards=(CardGrant(uuid=UUID, memory_bytes=GIB, core_ppm=300_000, core_max_ppm=600_000, priority=1),),
)


@pytest.fixture
def with_cores(registry: Registry) -> Iterator[Share]:
    with registry.locked():
        share, descriptor = registry.add(described(core_ppm=300_000, core_max_ppm=600_000, priority=1), CORES)
    yield share
    os.close(descriptor)


def test_changed_share_is_what_everybody_sees(registry: Registry, with_cores: Share) -> None:
    with registry.locked():
        changed = registry.change(with_cores, core_ppm=400_000, priority=-1)
    assert (changed.core_ppm, changed.core_max_ppm, changed.priority) == (400_000, 600_000, -1)
    assert living(registry) == [changed]
    (card,) = grants.read(with_cores.path / "grant").cards
    assert (card.core_ppm, card.core_max_ppm, card.priority) == (400_000, 600_000, -1)
    assert {file.name for file in with_cores.path.iterdir()} == {"alive", "grant", "ledger", "share.json"}


def test_grant_is_believed_where_it_was_changed_by_another_way(registry: Registry, with_cores: Share) -> None:
    grants.change(with_cores.path / "grant", core_ppm=500_000, memory_bytes=2 * GIB)
    (share,) = living(registry)
    assert (share.core_ppm, share.core_max_ppm, share.memory_bytes) == (500_000, 600_000, 2 * GIB)


def test_share_that_asked_for_no_cores_can_be_given_all_or_some(
    registry: Registry, made: tuple[Share, int]
) -> None:
    share, _ = made
    assert (living(registry)[0].core_ppm, living(registry)[0].core_max_ppm) == (None, None)
    for core_ppm in (PPM, 200_000):
        with registry.locked():
            registry.change(share, core_ppm=core_ppm)
        assert living(registry)[0].core_ppm == core_ppm


def test_share_is_found_by_its_name_or_its_directory(registry: Registry, with_cores: Share) -> None:
    with registry.locked():
        assert registry.named("test") == registry.named(with_cores.path.name) == with_cores


def test_name_that_names_no_share_or_two_is_told_with_what_there_is(registry: Registry) -> None:
    with registry.locked():
        with pytest.raises(VcudaError, match="there are no shares"):
            registry.named("test")
        one, first = registry.add(described(), GRANT)
        with pytest.raises(VcudaError, match="no share is called 'other'; there is test"):
            registry.named("other")
        two, second = registry.add(described(started=one.started + 1), GRANT)
        with pytest.raises(VcudaError) as error:
            registry.named("test")
        assert str(error.value) == (
            f"2 shares are called 'test'; name one by its directory: {one.path.name}, {two.path.name}"
        )
    os.close(first)
    os.close(second)


def test_version_changes_when_a_share_is_complete_and_when_it_is_gone(registry: Registry) -> None:
    seen = [registry.version()]
    with registry.locked():
        share, descriptor = registry.add(described(), GRANT)
    seen.append(registry.version())
    assert registry.seen() == [share]
    registry.remove(share, descriptor)
    seen.append(registry.version())
    assert registry.seen() == []
    assert len(set(seen)) == 3
    assert registry.version() == seen[-1]


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

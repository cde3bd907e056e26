"""The grant file: what is written is what is read, and what the shim would refuse is never written."""

import ctypes
import mmap
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda import futex
from vcuda import grant as grants
from vcuda._abi import ffi, lib
from vcuda.errors import GrantError
from vcuda.grant import RATE_VALID_NS, SLICE_VALID_NS, CardGrant, Effective, Grant, LiveGrant

UUID = "GPU-01234567-89ab-cdef-0123-456789abcdef"
PPM = lib.VCUDA_PPM


def one(**fields: object) -> Grant:
    """A grant of one card."""
    return Grant(name="test", cards=(CardGrant(**{"uuid": UUID, "memory_bytes": 2**30, **fields}),))


@st.composite
def card_grants(draw: st.DrawFn) -> CardGrant:
    core_ppm = draw(st.integers(1, PPM))
    tail = draw(st.uuids())
    return CardGrant(
        uuid=f"{draw(st.sampled_from(['GPU', 'MIG']))}-{tail}",
        memory_bytes=draw(st.integers(1, lib.VCUDA_MAX_BYTES)),
        core_ppm=core_ppm,
        core_max_ppm=draw(st.integers(core_ppm, PPM)),
        priority=draw(st.integers(-1, 1)),
        whole=draw(st.booleans()),
        context_bytes=draw(st.integers(0, 2**32)),
        page_bytes=draw(st.sampled_from([0, 2**16, 2**21])),
        pool_chunk_bytes=draw(st.sampled_from([0, 2**21, 2**25])),
    )


PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=63)


@given(
    st.builds(
        Grant,
        name=PRINTABLE,
        cards=st.lists(card_grants(), min_size=1, max_size=16, unique_by=lambda card: card.uuid).map(tuple),
        generation=st.integers(0, 2**40).map(lambda number: number * 2),
    )
)
def test_what_is_written_is_what_is_read(grant: Grant) -> None:
    assert grants.decode(grants.encode(grant)) == grant


@pytest.mark.parametrize(
    "grant",
    [
        one(memory_bytes=0),
        one(memory_bytes=-1),
        one(memory_bytes=lib.VCUDA_MAX_BYTES + 1),
        one(memory_bytes=2**64),
        one(core_ppm=0),
        one(core_ppm=PPM + 1),
        one(core_ppm=500_000, core_max_ppm=400_000),
        one(priority=2),
        one(page_bytes=3),
        one(uuid=""),
        one(uuid="card 0"),
        one(uuid="GPU-" + "0" * 60),
        one(context_bytes=2**64),
        Grant(name="test", cards=()),
        Grant(name="test", cards=tuple(CardGrant(uuid=f"GPU-{n}", memory_bytes=1) for n in range(17))),
        Grant(name="test", cards=(CardGrant(uuid=UUID, memory_bytes=1),) * 2),
        Grant(name="", cards=one().cards),
        Grant(name="x" * 64, cards=one().cards),
        Grant(name="two\nlines", cards=one().cards),
        Grant(name="é", cards=one().cards),
        Grant(name="test", cards=one().cards, generation=-2),
    ],
    ids=repr,
)
def test_grant_that_the_shim_would_refuse_is_not_written(grant: Grant, tmp_path: Path) -> None:
    with pytest.raises(GrantError) as error:
        grants.write(tmp_path / "grant", grant)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_file_appears_whole_and_can_be_read_by_all_and_written_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "grant"
    grants.write(path, one())
    assert path.read_bytes() == grants.encode(one())
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]
    other = one(memory_bytes=2**31)
    grants.write(path, other)
    assert grants.read(path) == other


@given(st.binary(max_size=4096))
def test_no_content_of_a_file_does_harm(content: bytes) -> None:
    with pytest.raises(GrantError):
        grants.decode(content)


@given(st.data())
def test_no_damage_to_a_grant_does_harm(data: st.DataObject) -> None:
    content = bytearray(grants.encode(one()))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, 600))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        grants.decode(bytes(content))
    except GrantError as error:
        assert "\n" not in str(error)


def test_grant_of_another_version_is_refused_with_both_versions_named() -> None:
    content = bytearray(grants.encode(one()))
    offset = ffi.offsetof("struct vcuda_grant", "abi_major")
    content[offset] = 9
    with pytest.raises(GrantError, match=rf"9\..*{lib.VCUDA_ABI_MAJOR}\."):
        grants.decode(bytes(content))


def test_grant_with_fields_appended_by_a_later_minor_version_is_read() -> None:
    grant = Grant(
        name="later", cards=(CardGrant(uuid="GPU-a", memory_bytes=1), CardGrant(uuid="GPU-b", memory_bytes=2))
    )
    content = grants.encode(grant)
    header = ffi.offsetof("struct vcuda_grant", "cards")
    stride = ffi.sizeof("struct vcuda_grant_card")
    cards = [content[header + index * stride :][:stride] + b"\xff" * 64 for index in range(2)]
    file = ffi.new("struct vcuda_grant *")
    ffi.buffer(file)[:] = content
    file.abi_minor = lib.VCUDA_ABI_MINOR + 1
    file.header_bytes = header + 32
    file.card_bytes = stride + 64
    file.file_bytes = header + 32 + len(b"".join(cards))
    later = bytes(ffi.buffer(file))[:header] + b"\xff" * 32 + b"".join(cards)
    assert grants.decode(later) == grant


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GrantError) as error:
        grants.read(tmp_path / "grant")
    assert str(error.value) == f"grant {tmp_path}/grant: cannot be read: No such file or directory"


NOW = 10_000_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "grant"
    grants.write(path, one(core_ppm=300_000, core_max_ppm=600_000, context_bytes=7))
    return path


@pytest.fixture
def live(path: Path) -> Iterator[LiveGrant]:
    with LiveGrant(path, writable=True) as live:
        yield live


def field(path: Path, name: str) -> int:
    """A field of the first card, as a process sees it that has the file mapped."""
    return getattr(ffi.from_buffer("struct vcuda_grant *", path.read_bytes()).cards[0], name)


def test_change_is_seen_through_a_mapping_made_before(path: Path) -> None:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    inode = path.stat().st_ino
    changed = grants.change(path, core_ppm=500_000, priority=-1, memory_bytes=2**31)
    assert grants.decode(bytes(mapped)).cards == (changed,)
    assert changed == CardGrant(
        uuid=UUID,
        memory_bytes=2**31,
        core_ppm=500_000,
        core_max_ppm=600_000,
        priority=-1,
        context_bytes=7,
    )
    assert path.stat().st_ino == inode


@pytest.mark.parametrize(
    ("before", "asked", "after"),
    [
        ((300_000, 600_000), {"core_ppm": 500_000}, (500_000, 600_000)),
        ((300_000, 600_000), {"core_ppm": 700_000}, (700_000, 700_000)),
        ((300_000, 300_000), {"core_ppm": 200_000}, (200_000, 200_000)),
        ((300_000, 300_000), {"core_max_ppm": 400_000}, (300_000, 400_000)),
        ((300_000, 600_000), {"core_ppm": 100_000, "core_max_ppm": 100_000}, (100_000, 100_000)),
        ((300_000, 600_000), {}, (300_000, 600_000)),
    ],
    ids=[
        "the ceiling stays",
        "the ceiling is raised to the share",
        "who had no more than the share has no more",
        "the ceiling alone",
        "both",
        "nothing",
    ],
)
def test_ceiling_goes_with_the_share(
    before: tuple[int, int], asked: dict[str, int], after: tuple[int, int], tmp_path: Path
) -> None:
    grants.write(tmp_path / "grant", one(core_ppm=before[0], core_max_ppm=before[1]))
    changed = grants.change(tmp_path / "grant", **asked)
    assert (changed.core_ppm, changed.core_max_ppm) == after


def test_generation_is_even_after_a_change_and_another(path: Path) -> None:
    seen = [grants.read(path).generation]
    for _ in range(3):
        grants.change(path, core_ppm=400_000)
        seen.append(grants.read(path).generation)
    assert all(number % 2 == 0 for number in seen)
    assert seen == sorted(set(seen))


def test_change_after_a_writer_that_was_killed_at_work_makes_the_generation_even(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(ffi.offsetof("struct vcuda_grant", "generation"))
        file.write((41).to_bytes(8, "little"))
    grants.change(path, core_ppm=400_000)
    assert grants.read(path).generation == 44


def test_reader_of_a_mapping_sees_what_was_until_a_change_is_complete(path: Path, live: LiveGrant) -> None:
    before = live.card(0)
    with path.open("r+b") as file:
        file.seek(ffi.offsetof("struct vcuda_grant", "generation"))
        file.write((1).to_bytes(8, "little"))
        offset = ffi.offsetof("struct vcuda_grant", "cards")
        file.seek(offset + ffi.offsetof("struct vcuda_grant_card", "core_ppm"))
        file.write((1).to_bytes(4, "little"))
    assert live.card(0) == before


@pytest.mark.parametrize(
    "fields",
    [
        {"core_ppm": 0},
        {"core_ppm": PPM + 1},
        {"core_ppm": 500_000, "core_max_ppm": 400_000},
        {"priority": 2},
        {"memory_bytes": 0},
        {"core_ppm": -1},
        {"memory_bytes": 2**64},
        {"card": 1},
    ],
    ids=str,
)
def test_change_that_the_shim_would_refuse_changes_nothing(fields: dict[str, int], path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(GrantError) as error:
        grants.change(path, **fields)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_share_in_force_holds_for_a_second(live: LiveGrant) -> None:
    assert live.in_force(0, NOW) == Effective(rate_ppm=300_000, slice_ppm=PPM)
    live.confirm_rate(0, 450_000, NOW)
    assert live.in_force(0, NOW + RATE_VALID_NS - 1).rate_ppm == 450_000
    assert live.in_force(0, NOW + RATE_VALID_NS).rate_ppm == 300_000
    assert live.in_force(0, NOW - 1).rate_ppm == 300_000


def test_share_in_force_beyond_the_ceiling_is_not_believed(live: LiveGrant) -> None:
    for rate_ppm, believed in ((600_000, 600_000), (600_001, 300_000), (0, 300_000), (1, 1)):
        live.confirm_rate(0, rate_ppm, NOW)
        assert live.in_force(0, NOW).rate_ppm == believed


def test_change_ends_what_was_in_force(path: Path, live: LiveGrant) -> None:
    live.confirm_rate(0, 600_000, NOW)
    grants.change(path, core_ppm=200_000)
    assert live.in_force(0, NOW).rate_ppm == 200_000


def test_correction_is_written(path: Path, live: LiveGrant) -> None:
    live.correct_slice(0, 570_000, NOW)
    assert field(path, "slice_ppm") == 570_000
    assert live.in_force(0, NOW).slice_ppm == 570_000
    assert live.in_force(0, NOW + SLICE_VALID_NS - 1).slice_ppm == 570_000
    assert live.in_force(0, NOW + SLICE_VALID_NS).slice_ppm == PPM
    live.correct_slice(0, PPM // 100 - 1, NOW)
    assert live.in_force(0, NOW).slice_ppm == PPM
    live.correct_slice(0, 0, NOW)
    assert live.in_force(0, NOW).slice_ppm == PPM


def test_those_who_wait_are_told_of_another_share_and_not_of_the_same(path: Path, live: LiveGrant) -> None:
    live.confirm_rate(0, 450_000, NOW)
    first = field(path, "changes")
    live.confirm_rate(0, 450_000, NOW + 1)
    assert field(path, "changes") == first
    live.confirm_rate(0, 460_000, NOW + 2)
    assert field(path, "changes") != first
    assert field(path, "rate_ns") == NOW + 2


def test_who_sleeps_on_the_futex_is_woken(path: Path) -> None:
    """Through a mapping of its own, as a container's process does."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    view = ffi.from_buffer(mapped)
    card = ffi.cast("struct vcuda_grant *", view).cards[0]
    word = int(ffi.cast("uintptr_t", ffi.addressof(card, "changes")))
    libc = ctypes.CDLL(None)
    known = card.changes
    ended = threading.Event()

    def sleep() -> None:
        libc.syscall(futex._SYS_FUTEX, ctypes.c_void_p(word), 0, ctypes.c_uint32(known), None, None, 0)
        ended.set()

    sleeper = threading.Thread(target=sleep, daemon=True)
    sleeper.start()
    while _asleep(sleeper.native_id) is False:
        time.sleep(0.001)
    grants.change(path, core_ppm=400_000)
    assert ended.wait(30)
    assert card.changes != known


def _asleep(thread: int | None) -> bool:
    content = Path(f"/proc/self/task/{thread}/stat").read_text() if thread else ""
    return content.rpartition(")")[2].split()[:1] == ["S"]


@pytest.mark.parametrize("content", [b"", b"no grant at all"])
def test_what_is_no_grant_is_not_mapped(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "grant").write_bytes(content)
    with pytest.raises(GrantError, match=f"grant {tmp_path}/grant: "):
        LiveGrant(tmp_path / "grant")
    with pytest.raises(GrantError, match="No such file"):
        LiveGrant(tmp_path / "missing")


def test_mapping_for_reading_cannot_be_written(path: Path) -> None:
    before = path.read_bytes()
    with LiveGrant(path) as live:
        for write in (
            lambda: live.rewrite((live.card(0),)),
            lambda: live.confirm_rate(0, 400_000, NOW),
            lambda: live.correct_slice(0, 400_000, NOW),
            lambda: live.wake(0),
        ):
            with pytest.raises(GrantError, match="was opened for reading"):
                write()
    assert path.read_bytes() == before

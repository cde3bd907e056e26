"""The grant file: what is written is what is read, and what the shim would refuse is never written."""

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcuda import grant as grants
from vcuda._abi import ffi, lib
from vcuda.errors import GrantError
from vcuda.grant import CardGrant, Grant

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


def test_file_appears_whole_and_can_be_read_by_all_and_written_by_nobody(tmp_path: Path) -> None:
    path = tmp_path / "grant"
    grants.write(path, one())
    assert path.read_bytes() == grants.encode(one())
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
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

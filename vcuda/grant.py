"""The grant: what the processes of one share may use. Written here, read by libvcuda.so.

The layout is struct vcuda_grant of native/include/vcuda/abi.h, and what is valid is decided by the shim's own
grant.c, so that no file leaves here that the shim would refuse.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vcuda._abi import ffi, lib
from vcuda.errors import GrantError


@dataclass(frozen=True, kw_only=True)
class CardGrant:
    """One card of a grant."""

    uuid: str
    memory_bytes: int
    core_ppm: int = lib.VCUDA_PPM
    core_max_ppm: int = lib.VCUDA_PPM
    priority: int = 0
    whole: bool = False
    context_bytes: int = 0
    """What one context costs on this card and driver; 0 when it was not measured."""
    page_bytes: int = 0
    """Granularity of device memory; 0 for the usual 2 MiB."""
    pool_chunk_bytes: int = 0
    """By which a stream-ordered pool grows; 0 when unknown."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A share: its name, and what it may use of each card."""

    name: str
    cards: tuple[CardGrant, ...]
    generation: int = 0


def encode(grant: Grant) -> bytes:
    """The file's content.

    Raises:
        GrantError: a value is out of its range.

    """
    if not 1 <= len(grant.cards) <= lib.VCUDA_MAX_CARDS:
        raise GrantError(f"grant: {len(grant.cards)} cards; a grant names 1 to {lib.VCUDA_MAX_CARDS}")
    file = ffi.new("struct vcuda_grant *")
    file.magic = lib.VCUDA_GRANT_MAGIC
    file.abi_major = lib.VCUDA_ABI_MAJOR
    file.abi_minor = lib.VCUDA_ABI_MINOR
    file.header_bytes = ffi.offsetof("struct vcuda_grant", "cards")
    file.file_bytes = ffi.sizeof("struct vcuda_grant")
    file.card_count = len(grant.cards)
    file.card_bytes = ffi.sizeof("struct vcuda_grant_card")
    try:
        file.generation = grant.generation
        file.name = _text("name", grant.name, 64)
        for to, card in zip(file.cards, grant.cards, strict=False):
            to.uuid = _text("uuid", card.uuid, lib.VCUDA_UUID_SIZE)
            to.memory_bytes = card.memory_bytes
            to.core_ppm = card.core_ppm
            to.core_max_ppm = card.core_max_ppm
            to.priority = card.priority
            to.flags = lib.VCUDA_CARD_WHOLE if card.whole else 0
            to.context_bytes = card.context_bytes
            to.page_bytes = card.page_bytes
            to.pool_chunk_bytes = card.pool_chunk_bytes
    except OverflowError as error:
        raise GrantError(f"grant: a value is out of its range: {error}") from error
    content = bytes(ffi.buffer(file))
    check(content)
    return content


def decode(content: bytes) -> Grant:
    """The grant that a file's content describes.

    Raises:
        GrantError: the shim would refuse it, for the reason given.

    """
    check(content)
    file = ffi.from_buffer("struct vcuda_grant *", content, require_writable=False)
    cards: list[CardGrant] = []
    for index in range(file.card_count):
        # By stride, not by index: a newer minor version may have appended fields to a card.
        offset = file.header_bytes + index * file.card_bytes
        card = ffi.cast("struct vcuda_grant_card *", ffi.cast("char *", file) + offset)
        cards.append(
            CardGrant(
                uuid=ffi.string(card.uuid).decode(),
                memory_bytes=card.memory_bytes,
                core_ppm=card.core_ppm,
                core_max_ppm=card.core_max_ppm,
                priority=card.priority,
                whole=bool(card.flags & lib.VCUDA_CARD_WHOLE),
                context_bytes=card.context_bytes,
                page_bytes=card.page_bytes,
                pool_chunk_bytes=card.pool_chunk_bytes,
            )
        )
    return Grant(
        name=ffi.string(file.name).decode(errors="replace"), cards=tuple(cards), generation=file.generation
    )


def check(content: bytes) -> None:
    """Ask the shim's own reader whether it would take this content.

    Raises:
        GrantError: it would not.

    """
    why = ffi.new("char[256]")
    if lib.vcuda_grant_check(ffi.from_buffer(content), len(content), why, 256) != lib.VCUDA_GRANT_OK:
        raise GrantError(ffi.string(why).decode(errors="replace"))


def write(path: Path, grant: Grant) -> None:
    """Put the grant at `path`, whole or not at all: a reader sees the old file or the new one.

    Raises:
        GrantError: a value is out of its range, or the file cannot be written.

    """
    content = encode(grant)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".grant-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o444)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise GrantError(f"grant {path}: cannot be written: {error.strerror}") from error


def read(path: Path) -> Grant:
    """The grant at `path`.

    Raises:
        GrantError: it is missing or not valid.

    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GrantError(f"grant {path}: cannot be read: {error.strerror}") from error
    try:
        return decode(content)
    except GrantError as error:
        raise GrantError(f"grant {path}: {error}") from error


def _text(field: str, value: str, size: int) -> bytes:
    if not 0 < len(value) < size or not all(" " <= letter <= "~" for letter in value):
        raise GrantError(f"grant: {field} {value!r} is not 1 to {size - 1} printable ASCII characters")
    return value.encode("ascii")

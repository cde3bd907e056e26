"""The grant: what the processes of one share may use. Written here, read by libvcuda.so.

The layout is struct vcuda_grant of native/include/vcuda/abi.h, and what is valid is decided by the shim's own
grant.c, so that no file leaves here that the shim would refuse.

A new grant is a new file. What changes later changes in place, since the processes of the share have the file
mapped: `change` for what was granted, `LiveGrant` for the share that is in force from one moment to the next.
"""

import mmap
import os
import random
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vcuda import futex
from vcuda._abi import ffi, lib
from vcuda.errors import GrantError

RATE_VALID_NS = 1_000_000_000
"""For so long after it was confirmed a share in force holds; then the guarantee does (limiter.c)."""
SLICE_VALID_NS = 2_000_000_000
"""The same of a correction for time slicing; then there is none."""
_SLICE_LEAST = lib.VCUDA_PPM // 100
_MODE = 0o644
"""Read by the share's processes, written by who gives it out."""


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
        cards.append(_card(card))
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
                os.fchmod(file.fileno(), _MODE)
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


@dataclass(frozen=True, kw_only=True)
class Effective:
    """What holds on one card of a grant just now."""

    rate_ppm: int
    """The share of the card's SM time."""
    slice_ppm: int
    """GPU time truly had, per million that is measured beside neighbours."""


class LiveGrant:
    """A grant mapped, to see or, with `writable`, to decide what is in force.

    Raises:
        GrantError: it is missing or not valid.

    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._writable = writable
        try:
            with path.open("r+b" if writable else "rb") as file:
                size = os.fstat(file.fileno()).st_size
                access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
                self._map = mmap.mmap(file.fileno(), size, access=access)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            reason = error.strerror if isinstance(error, OSError) else "is empty"
            raise GrantError(f"grant {path}: cannot be mapped: {reason}") from error
        try:
            check(bytes(self._map))
        except GrantError as error:
            self._map.close()
            raise GrantError(f"grant {path}: {error}") from error
        self._view = ffi.from_buffer(self._map, require_writable=writable)
        self._file: Any = ffi.cast("struct vcuda_grant *", self._view)
        self.count = int(self._file.card_count)
        self._seen: list[CardGrant] = []
        self._seen_generation = -1
        start = ffi.cast("char *", self._file) + self._file.header_bytes
        # By stride, as in decode. The geometry is read once.
        self._cards = [
            ffi.cast("struct vcuda_grant_card *", start + index * self._file.card_bytes)
            for index in range(self.count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; the object is of no use afterwards."""
        self._cards = []
        self._file = None
        ffi.release(self._view)
        self._map.close()

    def card(self, index: int) -> CardGrant:
        """What is granted of the `index`-th card, as it is now; while it is being changed, as it was."""
        generation = self._file.generation
        if generation != self._seen_generation and (generation % 2 == 0 or not self._seen):
            self._seen = [_card(card) for card in self._cards]
            self._seen_generation = generation if generation % 2 == 0 else -1
        return self._seen[index]

    def in_force(self, index: int, now_ns: int) -> Effective:
        """What holds at `now_ns` (CLOCK_MONOTONIC), read as limiter.c reads it."""
        card = self._cards[index]
        rate = card.rate_ppm
        believed = 1 <= rate <= max(card.core_ppm, card.core_max_ppm)
        recent = (now_ns - card.rate_ns) % 2**64 < RATE_VALID_NS
        slice_ppm = card.slice_ppm
        told = (now_ns - card.slice_ns) % 2**64 < SLICE_VALID_NS
        return Effective(
            rate_ppm=rate if believed and recent else card.core_ppm,
            slice_ppm=slice_ppm if told and _SLICE_LEAST <= slice_ppm < lib.VCUDA_PPM else lib.VCUDA_PPM,
        )

    def confirm_rate(self, index: int, rate_ppm: int, now_ns: int) -> None:
        """Put a share in force, for a second from `now_ns` on. Who waits is told if it is another one."""
        card = self._to_write(index)
        before = self.in_force(index, now_ns).rate_ppm
        card.rate_ppm = rate_ppm
        card.rate_ns = now_ns
        if before != rate_ppm:
            self.wake(index)

    def correct_slice(self, index: int, slice_ppm: int, now_ns: int) -> None:
        """Say how much of what is measured beside neighbours is truly had; it holds for two seconds."""
        card = self._to_write(index)
        card.slice_ns = now_ns
        card.slice_ppm = slice_ppm

    def wake(self, index: int) -> None:
        """Have everybody who waits for time on a card look at the grant again."""
        card = self._to_write(index)
        # A step of any length: two who write at once must not store the same number.
        card.changes = (card.changes + random.randint(1, 65535)) % 2**32  # noqa: S311 (no secret)
        futex.wake(int(ffi.cast("uintptr_t", ffi.addressof(card, "changes"))))

    def _to_write(self, index: int) -> Any:  # noqa: ANN401 (a cffi struct)
        if not self._writable:  # to write there would be the end of this process
            raise GrantError(f"grant {self.path}: was opened for reading; open it with writable=True")
        return self._cards[index]

    def rewrite(self, cards: tuple[CardGrant, ...]) -> None:
        """Put what is granted in place of what was, for readers all at once, and tell who waits.

        Raises:
            GrantError: the shim would refuse it; the file is as before. A card's name and what is known of
                its driver are not changed.

        """
        encode(Grant(name="checked", cards=cards))
        places = [self._to_write(index) for index in range(self.count)]
        file = self._file
        # Odd: the writer is at work. It is odd before, too, where a writer was killed.
        file.generation = (file.generation + 1 + file.generation % 2) % 2**64
        for to, card in zip(places, cards, strict=True):
            to.memory_bytes = card.memory_bytes
            to.core_ppm = card.core_ppm
            to.core_max_ppm = card.core_max_ppm
            to.priority = card.priority
            to.rate_ns = 0  # what was in force was made of the old share
        file.generation = (file.generation + 1) % 2**64
        for index in range(self.count):
            self.wake(index)


def change(
    path: Path,
    *,
    card: int = 0,
    core_ppm: int | None = None,
    core_max_ppm: int | None = None,
    priority: int | None = None,
    memory_bytes: int | None = None,
) -> CardGrant:
    """Change a grant in place, under the processes that use it; None leaves a value as it is.

    Where no ceiling is given, a share without one beyond itself stays so, and no ceiling stays below the
    share. One writer at a time: the caller sees to that. Returns what is granted now.

    Raises:
        GrantError: a value is out of its range, or the file cannot be written; it is as before.

    """
    with LiveGrant(path, writable=True) as live:
        if not 0 <= card < live.count:
            raise GrantError(f"grant {path}: has {live.count} cards, not a card {card}")
        cards = [live.card(index) for index in range(live.count)]
        was = cards[card]
        core = was.core_ppm if core_ppm is None else core_ppm
        ceiling = core if was.core_max_ppm == was.core_ppm else max(core, was.core_max_ppm)
        cards[card] = replace(
            was,
            core_ppm=core,
            core_max_ppm=ceiling if core_max_ppm is None else core_max_ppm,
            priority=was.priority if priority is None else priority,
            memory_bytes=was.memory_bytes if memory_bytes is None else memory_bytes,
        )
        live.rewrite(tuple(cards))
        return cards[card]


def _card(card: Any) -> CardGrant:  # noqa: ANN401 (a cffi struct)
    return CardGrant(
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


def _text(field: str, value: str, size: int) -> bytes:
    if not 0 < len(value) < size or not all(" " <= letter <= "~" for letter in value):
        raise GrantError(f"grant: {field} {value!r} is not 1 to {size - 1} printable ASCII characters")
    return value.encode("ascii")

"""Sizes and shares as people write them, and back.

Sizes are binary whatever the suffix says: 4G, 4GB, 4GiB and 4g are all 4 * 2**30 bytes, since a card's
memory is counted so. A plain number is bytes.
"""

import re
from fractions import Fraction

from vcuda.errors import VcudaError

MAX_BYTES = 2**44 - 1
"""The largest size a ledger can count (VCUDA_MAX_BYTES)."""

PPM = 1_000_000
"""A whole card's SM time in the grant's unit (VCUDA_PPM)."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?b)?", re.IGNORECASE)
_PERCENTAGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%?")
_EXPONENT = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


def parse_size(text: str) -> int:
    """Bytes of a size such as 4GiB, 512MiB, 1.5g or 1048576.

    Raises:
        VcudaError: the text is no size, not a whole number of bytes, zero, or more than a ledger can count.

    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise VcudaError(f"{text!r} is not a size; write it as 4GiB, 512MiB or 1.5g")
    number, unit, _ = match.groups()
    size = Fraction(number) * 2 ** _EXPONENT[unit.lower()]
    if size.denominator != 1:
        raise VcudaError(f"{text!r} is not a whole number of bytes")
    if not 0 < size <= MAX_BYTES:
        raise VcudaError(
            f"{text!r} is out of range; the least is 1 byte, the most {format_size(MAX_BYTES + 1)}"
        )
    return int(size)


def format_size(size_bytes: int) -> str:
    """A size in the largest binary unit that leaves at least 1, with one decimal at most: 13.5GiB, 12B."""
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    for unit, exponent in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**exponent:
            # Rounded down: what is printed as free can be asked for.
            tenths = size * 10 // 2**exponent
            return f"{sign}{tenths // 10}{f'.{tenths % 10}' if tenths % 10 else ''}{unit}"
    return f"{sign}{size}B"


def parse_cores(text: str) -> int:
    """Parts per million of a card's SM time, of a percentage such as 30, 30% or 12.5.

    Raises:
        VcudaError: the text is no percentage above 0 and up to 100.

    """
    match = _PERCENTAGE.fullmatch(text.strip())
    if match is None:
        raise VcudaError(f"{text!r} is not a percentage; write it as 30 or 12.5")
    ppm = Fraction(match[1]) * PPM / 100
    if not 0 < ppm <= PPM or ppm.denominator != 1:
        raise VcudaError(f"{text!r} is out of range; cores are above 0 and at most 100 percent of one card")
    return int(ppm)


PRIORITIES = ("low", "normal", "high")
"""As the command line names them; a grant has -1, 0 and 1."""


def parse_priority(text: str) -> int:
    """A grant's priority from its name.

    Raises:
        VcudaError: it is none of PRIORITIES.

    """
    try:
        return PRIORITIES.index(text.strip().lower()) - 1
    except ValueError as error:
        raise VcudaError(f"{text!r} is no priority; it is one of {', '.join(PRIORITIES)}") from error


def format_priority(priority: int) -> str:
    """The name of a grant's priority."""
    return PRIORITIES[priority + 1] if -1 <= priority <= 1 else str(priority)


def format_cores(core_ppm: int) -> str:
    """A percentage without needless zeros: 30, 12.5."""
    return f"{core_ppm / (PPM // 100):.4f}".rstrip("0").rstrip(".")


def format_duration(duration_ns: int) -> str:
    """A duration in the unit that leaves few digits: 350us, 12ms, 4.2s, 3m05s, 2h10m."""
    if duration_ns < 1_000_000:
        return f"{duration_ns // 1000}us"
    if duration_ns < 1_000_000_000:
        return f"{duration_ns // 1_000_000}ms"
    if duration_ns < 60_000_000_000:
        tenths = duration_ns // 100_000_000
        return f"{tenths // 10}.{tenths % 10}s"
    minutes, rest = divmod(duration_ns // 1_000_000_000, 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"

"""The names that a library's ELF file exports: which functions libvcuda.so stands in front of."""

import struct
from pathlib import Path

from vcuda.errors import VcudaError

_SHT_DYNSYM = 11
_SECTION = struct.Struct("<IIQQQQIIQQ")
"""Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size."""
_SYMBOL = struct.Struct("<IBBHQQ")
"""Elf64_Sym: name, info, other, section, value, size."""


def exported(library: Path) -> list[str]:
    """The names of the functions that a library defines and exports, sorted.

    Raises:
        VcudaError: it is no 64-bit little-endian ELF file.

    """
    content = library.read_bytes()
    if content[:6] != b"\x7fELF\x02\x01":
        raise VcudaError(f"{library}: not a 64-bit ELF library")
    table_offset = struct.unpack_from("<Q", content, 0x28)[0]
    entry_size, entry_count = struct.unpack_from("<HH", content, 0x3A)
    sections: list[tuple[int, ...]] = [
        _SECTION.unpack_from(content, table_offset + index * entry_size) for index in range(entry_count)
    ]
    names: set[str] = set()
    for section in sections:
        if section[1] != _SHT_DYNSYM:
            continue
        offset, size, strings = section[4], section[5], sections[section[6]]
        for at in range(offset, offset + size, _SYMBOL.size):
            name, info, _, defined_in, _, _ = _SYMBOL.unpack_from(content, at)
            is_function, is_global_or_weak = info & 0xF == 2, info >> 4 in (1, 2)
            if defined_in and is_function and is_global_or_weak:
                start = strings[4] + name
                names.add(content[start : content.index(b"\0", start)].decode())
    return sorted(names)

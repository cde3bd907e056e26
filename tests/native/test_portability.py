"""libvcuda.so goes into containers of any age: what it asks of them, and the other architecture."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

from tests.support import BUILD, ROOT, SHIM

OLDEST_GLIBC = (2, 17)
ALLOWED = re.compile(r"(cu[A-Z]|nvml[A-Z]|dlsym$|dlvsym$|dlopen$|dlmopen$)")


def needed(library: Path) -> list[str]:
    with library.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(dynamic, DynamicSection)
        return [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]


def versions(library: Path) -> set[tuple[int, ...]]:
    with library.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".gnu.version_r")
        assert isinstance(section, GNUVerNeedSection)
        names = [auxiliary.name for _, auxiliaries in section.iter_versions() for auxiliary in auxiliaries]
    return {
        tuple(map(int, name.removeprefix("GLIBC_").split("."))) for name in names if name.startswith("GLIBC_")
    }


def exported(library: Path) -> set[str]:
    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym")
        assert isinstance(symbols, SymbolTableSection)
        return {
            symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_shndx"] != "SHN_UNDEF" and symbol["st_info"]["bind"] in {"STB_GLOBAL", "STB_WEAK"}
        }


def test_only_libc_is_needed() -> None:
    assert needed(SHIM) == ["libc.so.6"]


def test_no_symbol_is_newer_than_glibc_2_17() -> None:
    assert max(versions(SHIM)) <= OLDEST_GLIBC


def test_nothing_is_exported_but_the_drivers_names_and_the_loaders() -> None:
    assert {
        name for name in exported(SHIM) if not ALLOWED.match(name) and not name.startswith("VCUDA_")
    } == set()


def test_stripped_library_is_under_256_kib(tmp_path: Path) -> None:
    stripped = tmp_path / "libvcuda.so"
    subprocess.run(["strip", "-o", str(stripped), str(SHIM)], check=True)
    assert stripped.stat().st_size < 256 * 1024


def test_aarch64_builds_with_the_same_demands() -> None:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("there is no cross compiler for aarch64 (Debian: gcc-aarch64-linux-gnu)")
    subprocess.run(
        ["make", "-C", str(ROOT / "native"), "aarch64"], check=True, capture_output=True, timeout=300
    )
    library = BUILD / "aarch64" / "libvcuda.so"
    with library.open("rb") as file:
        assert ELFFile(file)["e_machine"] == "EM_AARCH64"
    assert set(needed(library)) <= {"libc.so.6", "ld-linux-aarch64.so.1"}
    assert max(versions(library)) <= OLDEST_GLIBC
    assert exported(library) == exported(SHIM)

"""Who may know whom, in C: the import contracts of pyproject.toml say it for Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
SOURCES = sorted([*NATIVE.rglob("*.c"), *NATIVE.rglob("*.h")])


def foreign(source: Path) -> set[str]:
    """The headers that a file includes from outside its own directory."""
    names = re.findall(r'^#include "([^"]+)"', source.read_text(), re.MULTILINE)
    return {name for name in names if not (source.parent / name).exists()}


def headers(directory: str) -> set[str]:
    return {path.name for path in (NATIVE / directory).glob("*.h")}


@pytest.mark.parametrize("source", sorted((NATIVE / "simgpu").glob("*.[ch]")), ids=lambda path: path.name)
def test_simulator_knows_nothing_of_vcuda(source: Path) -> None:
    assert not foreign(source) & (headers("shim") | {"vcuda/abi.h", "vcuda/abi_check.h", "hooks.h"})
    assert "vcuda" not in source.read_text().lower()


@pytest.mark.parametrize("source", sorted((NATIVE / "shim").glob("*.[ch]")), ids=lambda path: path.name)
def test_shim_knows_nothing_of_the_simulator(source: Path) -> None:
    assert not foreign(source) & headers("simgpu")
    assert "simgpu" not in source.read_text().lower()


@pytest.mark.parametrize("name", ["ledger.c", "ledger.h", "grant.c", "grant.h", "record.c", "pages.c"])
def test_files_without_cuda_stay_so(name: str) -> None:
    assert not re.search(r"#include [<\"](cuda|hooks|share)\.h", (NATIVE / "shim" / name).read_text())


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(NATIVE)))
def test_file_is_about_one_thing_and_says_which(source: Path) -> None:
    text = source.read_text()
    assert text.lstrip().startswith(("/*", "//")), "begins without saying what it is"
    assert text.count("\n") <= 600, "has grown beyond 600 lines: a concept wants to be born"


@pytest.mark.parametrize("source", sorted((NATIVE / "shim").glob("*.c")), ids=lambda path: path.name)
def test_shim_never_ends_or_prints_in_the_host_process(source: Path) -> None:
    text = source.read_text()
    calls = re.findall(
        r"\b(exit|abort|_exit|printf|puts|putchar|perror|fprintf|fopen|malloc|calloc|realloc)\(", text
    )
    assert not calls

"""Builds and runs the C programs that test the ledger and its neighbours, also with a sanitizer.

What a program is made of says a line "build: ..." in it. Outputs are kept in build/native/tests-VARIANT until
a source changes.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import ROOT

NATIVE = ROOT / "native"
SKIPPED = 77
"""The exit status of a program whose only promise could not be tried; native/tests/check.h."""

_COMMON = (
    "-std=c11",
    "-D_GNU_SOURCE",
    "-g",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Inative/include",
    "-Inative/shim",
    "-Inative/tests",
)


@dataclass(frozen=True)
class Variant:
    """A way to compile: with a sanitizer, or with a source that has been changed."""

    name: str
    compiler: str = "gcc"
    flags: tuple[str, ...] = ("-O2",)
    environment: Mapping[str, str] = field(default_factory=dict)


PLAIN = Variant("plain")
ADDRESS = Variant(
    "address",
    flags=("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
    environment={"ASAN_OPTIONS": "abort_on_error=0:detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
)
THREAD = Variant(
    "thread",
    flags=("-O1", "-fsanitize=thread"),
    environment={"TSAN_OPTIONS": "halt_on_error=1:die_after_fork=0"},
)
FUZZER = Variant(
    "fuzzer",
    compiler="clang",
    flags=("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
)


def promises(source: str) -> list[str]:
    """The names of the promises in native/tests/SOURCE.c."""
    return re.findall(r"^PROMISE\((\w+)\)", (NATIVE / "tests" / f"{source}.c").read_text(), re.MULTILINE)


def build_line(source: Path) -> list[str]:
    """What else a program is made of: files and flags."""
    found = re.findall(r"^(?://| \*) build: (.*)$", source.read_text(), re.MULTILINE)
    return " ".join(found).split()


def build(source: Path, variant: Variant = PLAIN, *, replaced: Mapping[str, Path] | None = None) -> Path:
    """Compile a program; `replaced` names files of its build line that others stand in for."""
    output = ROOT / "build" / "native" / f"tests-{variant.name}" / source.stem
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = [str((replaced or {}).get(part, part)) for part in build_line(source)]
    sources = [
        *NATIVE.glob("*/*.[ch]"),
        *NATIVE.glob("include/vcuda/*.h"),
        *map(Path, (replaced or {}).values()),
    ]
    with (output.parent / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        newest = max(path.stat().st_mtime for path in sources if path.exists())
        if not output.exists() or output.stat().st_mtime < newest:
            done = subprocess.run(
                [
                    variant.compiler,
                    *_COMMON,
                    *variant.flags,
                    str(source),
                    *parts,
                    "-pthread",
                    "-o",
                    str(output),
                ],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
    return output


def run(
    program: Path, *arguments: str, tmp_path: Path, variant: Variant = PLAIN, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """Run a test program, whose files go to `tmp_path`; skip the test, with the reason, where it says so."""
    done = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, **variant.environment, "TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    return done


def keep(
    program: Path, *arguments: str, tmp_path: Path, variant: Variant = PLAIN, timeout: float = 200
) -> str:
    """Run a test program that must succeed and leave no file behind; its output."""
    done = run(program, *arguments, tmp_path=tmp_path, variant=variant, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
    return done.stdout


def changed(source: str, changes: Sequence[tuple[str, str]], directory: Path) -> Path:
    """A copy of a file of the shim in which each of `changes` was made; each must fit once."""
    text = (ROOT / source).read_text()
    for before, after in changes:
        assert text.count(before) == 1, f"{source} no longer has, once: {before}"
        text = text.replace(before, after)
    copy = directory / Path(source).name
    copy.write_text(text)
    return copy

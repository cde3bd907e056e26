"""The C test programs: each checks its own promises and exits 0 when all hold."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import BUILD, ROOT, simulator_environment

APART = re.compile("test_(ledger.*|grant|record|pages)")
"""Their promises are tests of their own, in test_ledger.py."""
PROGRAMS = sorted(
    path.stem for path in (ROOT / "native" / "tests").glob("test_*.c") if not APART.fullmatch(path.stem)
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(BUILD / "tests" / name)],
        env=simulator_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr

"""The C test programs: each checks its own promises and exits 0 when all hold."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import BUILD, ROOT, simulator_environment

PROGRAMS = sorted(path.stem for path in (ROOT / "native" / "tests").glob("test_*.c"))


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

"""What the tests of NVML share: programs that hold memory, and what NVML's clients say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import support
from tests.support import BUILD, MIB

HOLD = BUILD / "clients" / "hold"
VIEW = Path(__file__).with_name("nvml_view.py")

Env = dict[str, str]
Simulated = Callable[..., Env]
GrantDir = Callable[..., Path]


@contextmanager
def holding(env: Env, mib: int, *how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds memory of card 0 for as long as the block runs."""
    process = subprocess.Popen(
        [str(HOLD), str(mib), *how], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == f"holding {mib * MIB}\n"
        yield process
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(timeout=30) in (0, -9)


def run(env: Env, *command: str, code: int = 0) -> str:
    """The standard output of a command, which says nothing on standard error."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, ""), done
    return done.stdout


def python(env: Env, script: str, *arguments: str) -> Any:
    """What a Python script prints as JSON."""
    return json.loads(run(env, sys.executable, "-c", script, *arguments))


def view(env: Env) -> dict[str, Any]:
    """What nvml_view.py prints of card 0, with numbers for pids."""
    told = json.loads(run(env, sys.executable, str(VIEW)))
    for name in ("details", "samples", "new_samples"):
        told[name] = {int(pid): value for pid, value in told[name].items()}
    told["lists"] = {
        kind: {int(pid): value for pid, value in found.items()} for kind, found in told["lists"].items()
    }
    return told


def shared(env: Env, grant_dir: GrantDir, memory_bytes: int, **card: Any) -> tuple[Env, Path]:
    """The environment of a new share of card 0, and its directory; contexts are charged as calibrated."""
    card = {"context_bytes": support.context_bytes(env), **card}
    directory = grant_dir(support.card_uuids(env)[0], memory_bytes, **card)
    return support.shim_environment(env, directory), directory

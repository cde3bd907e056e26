"""The checklist of `vcuda doctor`: whether a program would be limited here, and if not, what is to be done.

Each check stands on those before it; the list ends where nothing more can be said.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vcuda import driver as drivers
from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda import libraries, machine, symbols
from vcuda.calibration import Calibration, calibrate
from vcuda.driver import Card, Driver
from vcuda.errors import VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.registry import MOUNTED, runtime_directory
from vcuda.units import format_size

OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""
_SPARE_BYTES = 64 * 2**20
"""What the share of the trial has beside its context."""


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the checklist."""

    name: str
    state: State
    found: str
    fix: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {"name": self.name, "state": self.state.value, "found": self.found, "fix": self.fix}


def checklist(*, sim: str | None) -> Iterator[Check]:
    """All checks, each as soon as it is made."""
    try:
        shim = libraries.shim()
        names = [name for name in symbols.exported(shim) if name.startswith(("cu", "nvml"))]
    except (VcudaError, OSError) as error:
        yield _broken("library", error)
        return
    yield Check(name="library", state=State.OK, found=f"{shim}, in front of {len(names)} functions")
    yield _preload(shim)
    try:
        runtime = runtime_directory()
        with tempfile.TemporaryDirectory(dir=runtime, prefix="doctor-") as directory:
            ledgers.create(Path(directory) / "ledger")
    except (VcudaError, OSError) as error:
        yield _broken("directory", error)
        return
    yield Check(name="directory", state=State.OK, found=str(runtime))
    yield _container()
    try:
        with machine.opened(sim=sim) as found:
            yield from _driver(found.driver)
            for card in found.driver.cards:
                yield from _card(found.driver, card, shim, runtime, names)
    except VcudaError as error:
        yield _broken("driver", error)


def _broken(name: str, error: Exception) -> Check:
    found, _, fix = str(error).partition("; ")
    return Check(name=name, state=State.BROKEN, found=found, fix=fix or None)


def _preload(shim: Path) -> Check:
    """Whether the dynamic linker takes the library, and programs that know nothing of CUDA stay silent."""
    program = shutil.which("true") or "true"
    try:
        done = subprocess.run(
            [program],
            env={**os.environ, "LD_PRELOAD": str(shim)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name="preload", state=State.BROKEN, found=str(error))
    if done.returncode or done.stdout or done.stderr:
        said = (done.stderr or done.stdout or f"{program} ended with {done.returncode}").strip()
        fix = "build it on this machine ('make setup'), or install the wheel for it"
        return Check(name="preload", state=State.BROKEN, found=said.splitlines()[0], fix=fix)
    return Check(name="preload", state=State.OK, found="the dynamic linker takes it")


def _container() -> Check:
    if MOUNTED.exists():
        found = (
            f"{MOUNTED} is there: programs here have the container's share, and 'vcuda run' makes no other"
        )
        return Check(name="container", state=State.WARNING, found=found)
    return Check(name="container", state=State.OK, found=f"no {MOUNTED}: shares are made by 'vcuda run'")


def _driver(driver: Driver) -> Iterator[Check]:
    version = f"{driver.libcuda}, version {driver.version}, CUDA {driver.cuda}"
    if driver.note:
        fix = "install NVIDIA's driver to use a real card; programs run on the simulated one"
        yield Check(name="driver", state=State.WARNING, found=f"{driver.note}; simulated: {version}", fix=fix)
    else:
        yield Check(
            name="driver", state=State.OK, found=f"simulated: {version}" if driver.simulated else version
        )
    yield Check(name="NVML", state=State.OK, found=str(driver.nvml))


def _card(driver: Driver, card: Card, shim: Path, runtime: Path, names: list[str]) -> Iterator[Check]:
    title = f"card {card.index}"
    yield Check(name=title, state=State.OK, found=f"{card.short_name}, {format_size(card.usable_bytes)}")
    known = calibrate(driver, card)
    if known.context_bytes:
        cost = f"{format_size(known.context_bytes)} per context"
        yield Check(name=f"{title}: calibration", state=State.OK, found=cost)
    else:
        fix = "run vcuda where NVML shows its own processes (the host's pid namespace) and the card has room"
        found = "not measured: contexts are not charged"
        yield Check(name=f"{title}: calibration", state=State.WARNING, found=found, fix=fix)
    try:
        limit, answer = _try_limit(driver, card, known, shim=shim, runtime=runtime, names=names)
    except (VcudaError, OSError) as error:
        yield _broken(f"{title}: limit", error)
        return
    yield _hooks(f"{title}: hooks", answer)
    yield _limit(f"{title}: limit", answer, limit)


def _try_limit(
    driver: Driver, card: Card, known: Calibration, *, shim: Path, runtime: Path, names: list[str]
) -> tuple[int, dict[str, Any]]:
    """Let a program run into its limit in a share that is made for this."""
    with tempfile.TemporaryDirectory(dir=runtime, prefix="doctor-") as directory:
        limit = known.context_bytes + _SPARE_BYTES
        if MOUNTED.exists():
            granted = {each.uuid: each.memory_bytes for each in grants.read(MOUNTED / "grant").cards}
            limit = granted.get(card.uuid, 0)
        path = Path(directory)
        trial = CardGrant(
            uuid=card.uuid, memory_bytes=limit or _SPARE_BYTES, context_bytes=known.context_bytes
        )
        grants.write(path / "grant", Grant(name="doctor", cards=(trial,)))
        ledgers.create(path / "ledger")
        under = {
            "LD_PRELOAD": str(shim),
            "VCUDA_GRANT_DIR": directory,
            "CUDA_VISIBLE_DEVICES": card.uuid,
        }
        return limit, drivers.ask(driver.environment, "limit", ",".join(names), under=under)


def _hooks(name: str, answer: dict[str, Any]) -> Check:
    hooks: dict[str, bool | None] = answer["hooks"]
    missing = [hook for hook, inside in hooks.items() if inside is False]
    inside = sum(1 for value in hooks.values() if value)
    newer = sum(1 for value in hooks.values() if value is None)
    if missing:
        found = f"{len(missing)} of {len(hooks)} not in place: {', '.join(missing[:5])}"
        fix = "see that nothing else is preloaded that stands in front of dlsym"
        return Check(name=name, state=State.BROKEN, found=found, fix=fix)
    absent = f"; {newer} are for other drivers than this" if newer else ""
    return Check(name=name, state=State.OK, found=f"{inside} in place{absent}")


def _limit(name: str, answer: dict[str, Any], limit: int) -> Check:
    said = answer["stderr"].splitlines()
    if answer["cuInit"] != 0:
        found = said[-1] if said else f"cuInit answers {answer['cuInit']}"
        return Check(name=name, state=State.BROKEN, found=found, fix="see docs/reference/errors.md")
    if answer["context"] != 0:
        found = f"no context could be made (CUDA error {answer['context']}), so the limit was not tried"
        fix = "free memory of the card, and try again"
        return Check(name=name, state=State.WARNING, found=found, fix=fix)
    if answer["total_bytes"] != limit:
        found = f"a program sees {format_size(answer['total_bytes'])} in a share of {format_size(limit)}"
        return Check(
            name=name, state=State.BROKEN, found=found, fix="see that LD_PRELOAD reaches the program"
        )
    if answer["beyond"] != OUT_OF_MEMORY:
        found = f"an allocation beyond the limit answers {answer['beyond']}, not CUDA_ERROR_OUT_OF_MEMORY"
        return Check(
            name=name, state=State.BROKEN, found=found, fix="see that LD_PRELOAD reaches the program"
        )
    found = f"a program in a share of {format_size(limit)} sees that as the card, and is refused more"
    return Check(name=name, state=State.OK, found=found)

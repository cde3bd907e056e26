"""Which driver a share's programs will use: the one that the dynamic linker finds, else the simulated one."""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcuda import libraries
from vcuda.errors import VcudaError

DEFAULT_MODELS = "V100-SXM2-16GB"
ANSWER_SECONDS = 60
"""A driver that has to wake cards up takes many seconds; one that is stuck, for ever."""
HELD = "held"
"""The file in a simulated machine's directory on which those who use it hold a lock."""
_OURS = ("VCUDA_GRANT_DIR", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES")
_PROBE = Path(__file__).with_name("probe.py")


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card as NVML shows it."""

    index: int
    uuid: str
    name: str
    total_bytes: int
    reserved_bytes: int
    used_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What shares can be made of: everything that the driver does not keep to itself."""
        return self.total_bytes - self.reserved_bytes

    @property
    def short_name(self) -> str:
        """The model without its maker: V100-SXM2-16GB."""
        return self.name.removeprefix("NVIDIA ").removeprefix("Tesla ")


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver, its cards, and the environment variables that lead a program to it."""

    sim_dir: str | None
    """Where the simulated machine is kept; None for the driver that the dynamic linker finds."""
    environment: Mapping[str, str]
    libcuda: str
    nvml: str | None
    version: str | None
    cuda: str | None
    cards: tuple[Card, ...]
    note: str | None = None
    """Why the simulated one was taken, if nobody asked for it."""
    hold: int | None = None
    """The descriptor whose lock keeps the simulated machine from being removed."""

    @property
    def simulated(self) -> bool:
        """Whether vcuda's own simulated cards are meant."""
        return self.sim_dir is not None

    def release(self) -> None:
        """Let go of the simulated machine; the object is of no use afterwards."""
        if self.hold is not None:
            os.close(self.hold)


def find(runtime: Path, *, sim: str | None = None) -> Driver:
    """The driver for this machine; `sim`, a list of models, asks for the simulated machine of these cards.

    Each list of models is a simulated machine of its own, shared by all who ask for the same list.

    Raises:
        VcudaError: the driver is broken; or the simulated one was asked or needed, and has no such cards.

    """
    if sim is not None:
        return _simulated(runtime, simulated_environment(runtime, sim), asked=f"--sim {sim}")
    answer = ask({}, "machine")
    if answer["cards"]:
        return _driver(answer, {}, sim_dir=None)
    if answer["broken"]:
        raise VcudaError(f"{answer['fault']}; see 'vcuda doctor', or use --sim")
    note = "no NVIDIA driver here" if answer["libcuda"] is None else f"{answer['libcuda']} finds no GPU"
    environment = simulated_environment(runtime, DEFAULT_MODELS)
    return _simulated(runtime, environment, asked=f"{note}, and --sim {DEFAULT_MODELS}", note=note)


def real() -> Driver | None:
    """The driver that the dynamic linker finds, or None if it has no cards.

    Raises:
        VcudaError: the driver is broken.

    """
    answer = ask({}, "machine")
    if answer["broken"]:
        raise VcudaError(f"{answer['fault']}; see 'vcuda doctor'")
    return _driver(answer, {}, sim_dir=None) if answer["cards"] else None


def simulated_at(runtime: Path, directory: str) -> Driver:
    """The simulated machine that is kept in `directory`, with the cards that it was made with.

    Raises:
        VcudaError: it does not answer.

    """
    return _simulated(runtime, leading_to(directory), asked=directory)


def simulated_environment(runtime: Path, models: str) -> dict[str, str]:
    """The variables that lead a program to the simulated machine of these models.

    A SIMGPU_DIR of the user's own wins: it names the machine that is meant.

    Raises:
        VcudaError: the simulated driver was not built.

    """
    own = os.environ.get("SIMGPU_DIR")
    machine = Path(own).absolute() if own else runtime / "sim" / re.sub(r"[^A-Za-z0-9._-]", "_", models)
    return {**leading_to(str(machine)), "SIMGPU_CARDS": models}


def ask(
    environment: Mapping[str, str], *question: str, under: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Ask probe.py a question, in a process that sees the driver of `environment`; `under` adds the shim.

    The answer's "stderr" is what driver and shim said there.

    Raises:
        VcudaError: the driver did not answer.

    """
    try:
        done = subprocess.run(
            # -P: modules that lie beside the probe are not found in place of Python's own.
            [sys.executable, "-P", str(_PROBE), *question],
            env={**outside_shares(environment), **(under or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VcudaError(f"the driver did not answer within {ANSWER_SECONDS} s; see 'nvidia-smi'") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise VcudaError(f"the driver could not be asked: {last}; see 'vcuda doctor'")
    return {**json.loads(done.stdout), "stderr": done.stderr.strip()}


def outside_shares(environment: Mapping[str, str]) -> dict[str, str]:
    """The own environment without what puts a process into a share, and with what leads to a driver."""
    return {**{name: value for name, value in os.environ.items() if name not in _OURS}, **environment}


def leading_to(directory: str) -> dict[str, str]:
    """The variables that lead a program to the simulated machine that is kept in `directory`."""
    library_path = str(libraries.simulator())
    before = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_LIBRARY_PATH": f"{library_path}:{before}" if before else library_path,
        "SIMGPU_DIR": directory,
    }


def _simulated(runtime: Path, environment: dict[str, str], *, asked: str, note: str | None = None) -> Driver:
    directory = Path(environment["SIMGPU_DIR"])
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # One in a directory of the user's own is never removed.
        hold = _hold(directory) if directory.parent == runtime / "sim" else None
    except OSError as error:
        raise VcudaError(f"{directory}: cannot be made: {error.strerror}") from error
    driver: Driver | None = None
    try:
        answer = ask(environment, "machine")
        if answer["cards"]:
            driver = _driver(answer, environment, sim_dir=str(directory), note=note, hold=hold)
    finally:
        if driver is None and hold is not None:
            os.close(hold)
    if driver is None:
        fault = answer["fault"] or "no cards"
        raise VcudaError(f"{asked}: {fault}; is it a known model, as V100-SXM2-16GB is?")
    return driver


def _hold(directory: Path) -> int:
    """Lock a simulated machine of ours against its removal (see registry.py)."""
    held = directory / HELD
    while True:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(held, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # removed this very moment
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == held.stat().st_ino:
                return descriptor
        os.close(descriptor)  # removed between the two: once more


def _driver(
    answer: dict[str, Any],
    environment: dict[str, str],
    *,
    sim_dir: str | None,
    note: str | None = None,
    hold: int | None = None,
) -> Driver:
    return Driver(
        sim_dir=sim_dir,
        environment=environment,
        libcuda=answer["libcuda"],
        nvml=answer["nvml"],
        version=answer["driver"],
        cuda=answer["cuda"],
        cards=tuple(Card(**card) for card in answer["cards"]),
        note=note,
        hold=hold,
    )

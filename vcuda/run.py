"""`vcuda run` without its options: make a share, run a program in it, and leave nothing behind."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vcuda import attend, libraries, machine
from vcuda.calibration import calibrate
from vcuda.elected import Candidate
from vcuda.errors import RefusedError, VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.machine import Machine
from vcuda.placement import Placement, Request, check_ceiling, check_change, place
from vcuda.registry import MOUNTED, Registry, Share

NAME_BYTES = 63


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be run, and in what share."""

    command: tuple[str, ...]
    request: Request
    name: str | None = None
    """What the share is called; None for the command's own name."""
    sim: str | None = None


def run(order: Order, *, say: Callable[[str], None]) -> int:
    """Run the command in a share of its own; its status as of waitpid. `say` gets what the user should know.

    Raises:
        RefusedError: no card has room.
        StartError: the command can't be started.
        VcudaError: there is no driver, or no place for the share's files.

    """
    if MOUNTED.exists():
        raise VcudaError(
            f"{MOUNTED} is there: this container has a share already; start the program without vcuda"
        )
    preload = libraries.shim()
    with machine.opened(sim=order.sim) as found:
        if found.driver.simulated:
            reason = f"{found.driver.note}: " if found.driver.note else ""
            say(f"{reason}using a simulated {found.title}")
        with attend.signals_held() as mask:
            share, alive = _make(order, found)
            candidate = Candidate(found.registry, say)
            try:
                environment = {**os.environ, **variables(found.driver.environment, share, preload)}
                return attend.run(order.command, environment, mask, started=candidate.start)
            finally:
                candidate.stop()
                found.registry.remove(share, alive)


def change(
    registry: Registry,
    name: str,
    *,
    core_ppm: int | None = None,
    core_max_ppm: int | None = None,
    priority: int | None = None,
) -> Share:
    """Change the cores of the living share called `name`, under its programs; None leaves a value as it is.

    Raises:
        RefusedError: others have been promised so much that it does not fit, or the share is a whole card.
        VcudaError: there is no such share, or a value is out of its range.

    """
    with registry.locked():
        share = registry.named(name)
        if share.whole:
            raise RefusedError(f"{name} has a whole card, which is not limited; there is nothing to change")
        if share.core_ppm is None and core_ppm is None:
            raise RefusedError(f"{name} has no core share; give it one with --cores")
        core = share.core_ppm if core_ppm is None else core_ppm
        if core_max_ppm is not None:
            check_ceiling(core, core_max_ppm)
        if core_ppm is not None:
            taken = [each for each in registry.shares() if each.card_uuid == share.card_uuid]
            check_change(
                share.card_name, taken_ppm=_promised(taken), had_ppm=_promised([share]), asked_ppm=core_ppm
            )
        return registry.change(share, core_ppm=core_ppm, core_max_ppm=core_max_ppm, priority=priority)


def _promised(shares: Iterable[Share]) -> int:
    return sum(share.core_ppm or 0 for share in shares)


def variables(driver: Mapping[str, str], share: Share, preload: Path) -> dict[str, str]:
    """The environment variables that put a program into a share."""
    return {
        **driver,
        "LD_PRELOAD": preloads(preload, os.environ.get("LD_PRELOAD", "")),
        "VCUDA_GRANT_DIR": share.directory,
        # A program takes the first card it sees, so the share's card has to be that one.
        "CUDA_VISIBLE_DEVICES": share.card_uuid,
    }


def preloads(shim: Path, before: str) -> str:
    """The shim in front of what is preloaded already, once."""
    others = [entry for entry in before.replace(":", " ").split() if Path(entry).name != shim.name]
    return " ".join([str(shim), *others])


def _make(order: Order, found: Machine) -> tuple[Share, int]:
    with found.registry.locked():
        cards = found.driver.cards
        placement = place(machine.rooms(cards, found.registry.shares()), order.request)
        card = next(card for card in cards if card.uuid == placement.card.uuid)
        known = calibrate(found.driver, card)
        name = order.name or _command_name(order.command[0])
        share = Share(
            name=name,
            command=order.command,
            pid=os.getpid(),
            card_uuid=card.uuid,
            card_name=card.short_name,
            memory_bytes=placement.memory_bytes,
            core_ppm=order.request.core_ppm,
            core_max_ppm=None if order.request.core_ppm is None else placement.core_max_ppm,
            priority=placement.priority,
            whole=placement.whole,
            sim_dir=found.driver.sim_dir,
            started=time.time(),
        )
        grant = Grant(
            name=name,
            cards=(_card_grant(placement, context_bytes=known.context_bytes, page_bytes=known.page_bytes),),
        )
        return found.registry.add(share, grant)


def _card_grant(placement: Placement, *, context_bytes: int, page_bytes: int) -> CardGrant:
    return CardGrant(
        uuid=placement.card.uuid,
        memory_bytes=placement.memory_bytes,
        core_ppm=placement.core_ppm,
        core_max_ppm=placement.core_max_ppm,
        priority=placement.priority,
        whole=placement.whole,
        context_bytes=context_bytes,
        page_bytes=page_bytes,
    )


def _command_name(program: str) -> str:
    """The last part of a path, as far as a grant can hold it: printable ASCII."""
    name = "".join(letter if " " <= letter <= "~" else "?" for letter in Path(program).name)
    return name[:NAME_BYTES] or "share"

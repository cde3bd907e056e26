"""`vcuda run` without its options: make a share, run a program in it, and leave nothing behind."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vcuda import attend, libraries, machine
from vcuda.calibration import calibrate
from vcuda.errors import VcudaError
from vcuda.grant import CardGrant, Grant
from vcuda.machine import Machine
from vcuda.placement import Placement, Request, place
from vcuda.registry import MOUNTED, Share

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
            try:
                environment = {**os.environ, **variables(found.driver.environment, share, preload)}
                return attend.run(order.command, environment, mask)
            finally:
                found.registry.remove(share, alive)


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
        core_max_ppm=placement.core_ppm,
        whole=placement.whole,
        context_bytes=context_bytes,
        page_bytes=page_bytes,
    )


def _command_name(program: str) -> str:
    """The last part of a path, as far as a grant can hold it: printable ASCII."""
    name = "".join(letter if " " <= letter <= "~" else "?" for letter in Path(program).name)
    return name[:NAME_BYTES] or "share"

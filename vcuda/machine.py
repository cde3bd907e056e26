"""A machine as the commands see it: a driver with its cards, and the shares that were made of them."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from vcuda import driver as drivers
from vcuda.driver import Card, Driver
from vcuda.placement import CardRoom
from vcuda.registry import Registry, Share, runtime_directory
from vcuda.units import PPM


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One driver, and the registry that all machines of this user share."""

    driver: Driver
    registry: Registry

    @property
    def title(self) -> str:
        """The models, for a sentence: V100-SXM2-16GB, T4."""
        return ", ".join(card.short_name for card in self.driver.cards)


@contextmanager
def opened(*, sim: str | None) -> Generator[Machine]:
    """The machine that a program is to run on; see driver.find.

    Raises:
        VcudaError: there is none, or it is broken.

    """
    with ExitStack() as stack:
        registry = Registry(runtime_directory())
        stack.callback(registry.tidy)
        driver = drivers.find(registry.runtime, sim=sim)
        stack.callback(driver.release)
        yield Machine(driver=driver, registry=registry)


@contextmanager
def every(*, sim: str | None) -> Generator[list[Machine]]:
    """All machines there are: the real one, and the simulated ones that have shares; else as `opened`.

    Raises:
        VcudaError: there is none, or one is broken.

    """
    if sim is not None:
        with opened(sim=sim) as machine:
            yield [machine]
        return
    with ExitStack() as stack:
        registry = Registry(runtime_directory())
        stack.callback(registry.tidy)
        with registry.locked():
            simulated = sorted({share.sim_dir for share in registry.shares() if share.sim_dir})
        found: list[Driver] = []
        if not simulated:
            found.append(drivers.find(registry.runtime))
            stack.callback(found[-1].release)
        elif real := drivers.real():
            found.append(real)
        for directory in simulated:
            found.append(drivers.simulated_at(registry.runtime, directory))
            stack.callback(found[-1].release)
        yield [Machine(driver=driver, registry=registry) for driver in found]


def rooms(cards: Sequence[Card], shares: Sequence[Share]) -> list[CardRoom]:
    """What each card has left beside its shares."""
    result: list[CardRoom] = []
    for card in cards:
        own = [share for share in shares if share.card_uuid == card.uuid]
        whole = any(share.whole for share in own)
        taken = sum(share.memory_bytes for share in own)
        result.append(
            CardRoom(
                index=card.index,
                uuid=card.uuid,
                name=card.short_name,
                usable_bytes=card.usable_bytes,
                free_bytes=0 if whole else max(0, card.usable_bytes - taken),
                free_ppm=0 if whole else max(0, PPM - sum(share.core_ppm or 0 for share in own)),
                shares=len(own),
                whole=whole,
            )
        )
    return result

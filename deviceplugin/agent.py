"""The agent: all parts of the node side, put together and kept going until it is told to end."""

import asyncio
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from deviceplugin import processes
from deviceplugin.allocation import rooms
from deviceplugin.cluster import Cluster
from deviceplugin.delivery import Delivery, grant_of
from deviceplugin.desk import Desk, Rules
from deviceplugin.inventory import (
    Inventory,
    InventoryError,
    calibration_card,
    open_simulated,
    prepare_simulated,
)
from deviceplugin.kubelet import KubeletAccount, KubeletError
from deviceplugin.metrics import CardState, MetricsServer, Sources
from deviceplugin.pods import Trust
from deviceplugin.server import Offers, Plugins
from deviceplugin.settings import Settings
from deviceplugin.shares import Governing, Shares
from deviceplugin.state import Account, Resource, Ticket, View
from deviceplugin.tickets import Books, TicketError, lock
from deviceplugin.units import Offer, offer
from vcuda.apiserver import Api
from vcuda.calibration import Calibration, calibrate
from vcuda.errors import VcudaError
from vcuda.grant import Grant
from vcuda.processes import Pids
from vcuda.units import format_size

_LOG = logging.getLogger(__name__)
_AGAIN_SECONDS = 2.0
_API_SECONDS = 5.0
_CALIBRATION_SECONDS = 20.0
"""A container does not wait longer for what contexts cost to be known; the kubelet allows it 30."""
_CONTEST_SECONDS = 30.0
_GOODBYE_SECONDS = 6.0
_STALE_SECONDS = 30.0
"""A loop that has not turned for so long is stuck."""


class Agent:
    """One node's agent. Made in its event loop.

    Raises:
        VcudaError: there is no way to the API server, or libraries are missing.

    """

    def __init__(self, settings: Settings, inventory: Inventory, driver: Mapping[str, str]) -> None:
        self._settings = settings
        self._inventory = inventory
        self._driver = driver
        self._sim_dir = sim_dir(settings)
        self._delivery = Delivery(
            run=settings.run_dir,
            host=settings.host_dir,
            dev_dir=settings.dev_dir,
            driver_dir=settings.driver_dir,
            cdi_kind=settings.cdi_kind,
            sim_dir=self._sim_dir,
            sim_models=settings.simulated or "",
        )
        self._delivery.install()
        self._books = Books(settings.run_dir / "shares", say=_LOG.error)
        self._kubelet = KubeletAccount(settings.kubelet_dir, settings.names)
        self._cluster = Cluster(
            Api(kubeconfig=settings.kubeconfig, timeout_s=_API_SECONDS),
            trust=Trust(
                node=settings.name, names=settings.names, key=None, required=settings.require_placement
            ),
            key=(settings.key_namespace, settings.key_name),
        )
        self._desk = Desk(
            self._books,
            api=self._cluster,
            kubelet=self._kubelet,
            cards=lambda: inventory.cards,
            grant=self._grant,
            restore=self._delivery.restore,
            rules=Rules(
                unit_bytes=settings.memory_unit,
                policy=settings.policy,
                require_placement=settings.require_placement,
            ),
        )
        self._offers = Offers(self._offer)
        self._plugins = Plugins(
            directory=settings.kubelet_dir,
            names=settings.names,
            desk=self._desk,
            offers=self._offers,
            answer=lambda ticket: self._delivery.answer(ticket, self._minors()),
            look_seconds=settings.kubelet_seconds,
            changed=self._look,
        )
        self._shares = Shares(books=self._books, driver=driver, pids=Pids())
        self._calibrated: dict[str, Calibration] = {}
        self._known = asyncio.Event()
        self._outside: dict[str, list[tuple[int, int]]] = {}
        self._contested = False
        self._leaving = False
        self._turned = time.monotonic()
        self._loop = asyncio.get_running_loop()

    async def run(self, stop: asyncio.Event, server: MetricsServer | None = None) -> None:
        """Serve until told to stop. server: has metrics of all that from now on."""
        with ExitStack() as stack:
            listening = threading.Event()
            thread = threading.Thread(
                target=self._inventory.listen, args=(listening,), name="nvml", daemon=True
            )
            thread.start()
            stack.callback(listening.set)
            self._inventory.changed = self._look_soon
            self._look()
            governing = Governing(self._shares)
            governing.start()
            stack.callback(governing.stop)
            if server is not None:
                server.tell_of(self._sources(), self._alive)
            await self._work(stop)

    async def _work(self, stop: asyncio.Event) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._cluster.run()),
                tasks.create_task(self._plugins.run()),
                tasks.create_task(self._calibrate()),
                tasks.create_task(self._every(settings.health_seconds, self._check_health)),
                tasks.create_task(self._every(settings.reconcile_seconds, self._desk.reconcile)),
                tasks.create_task(self._every(settings.outside_seconds, self._look_outside)),
                tasks.create_task(self._every(_CONTEST_SECONDS, self._look_for_others)),
                tasks.create_task(self._every(1.0, self._turn)),
            ]
            await stop.wait()
            self._leaving = True
            self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GOODBYE_SECONDS):
                    await self._cluster.offered()
            for task in running:
                task.cancel()
        await self._cluster.close()
        await self._kubelet.close()

    # ---- cards ----

    def _look_soon(self) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        """Say what there is, after something changed."""
        self._offers.look()
        self._cluster.offer(
            self._inventory.cards,
            unit_bytes=self._settings.memory_unit,
            served=self._plugins.registered and not self._leaving,
        )

    def _offer(self, resource: Resource) -> Offer:
        return offer(
            self._inventory.cards,
            resource,
            tickets=self._books.tickets,
            unit_bytes=self._settings.memory_unit,
            nominal=self._settings.require_placement,
        )

    def _minors(self) -> Mapping[str, int]:
        return {each.card.uuid: each.minor for each in self._inventory.found}

    async def _check_health(self) -> None:
        before = {card.uuid: card.healthy for card in self._inventory.cards}
        await asyncio.to_thread(self._inventory.check, time.monotonic())
        for card in self._inventory.cards:
            if before.get(card.uuid) and not card.healthy:
                text = f"card {card.index} ({card.uuid}): {self._inventory.fault(card.uuid)}"
                self._cluster.say("CardUnhealthy", text)
        self._look()

    async def _calibrate(self) -> None:
        """Learn what contexts cost on each model of card, once."""
        driver = self._inventory.driver(self._driver, None if self._sim_dir is None else str(self._sim_dir))
        by_model: dict[str, Calibration] = {}
        for each in self._inventory.found:
            if each.name not in by_model:
                by_model[each.name] = await asyncio.to_thread(calibrate, driver, calibration_card(each))
                if not by_model[each.name].context_bytes:
                    _LOG.warning("%s: what a context costs is not known; it is charged nothing", each.name)
            self._calibrated[each.card.uuid] = by_model[each.name]
        self._known.set()

    async def _grant(self, ticket: Ticket) -> Grant:
        try:
            async with asyncio.timeout(_CALIBRATION_SECONDS):
                await self._known.wait()
        except TimeoutError:
            _LOG.warning("%s: starts before it is known what contexts cost", ticket.owner)
        return grant_of(ticket, self._calibrated)

    # ---- what goes on ----

    async def _look_outside(self) -> None:
        """Find processes that use a card outside any share; twice, since one that ends is counted late."""
        for card in self._inventory.cards:
            seen = await asyncio.to_thread(self._inventory.processes, card.uuid)
            found = processes.outside(seen, await asyncio.to_thread(self._shares.accounted, card.uuid))
            before = {pid for pid, _ in self._outside.get(f"?{card.uuid}", [])}
            self._outside[f"?{card.uuid}"] = found
            sure = [each for each in found if each[0] in before]
            for pid, size_bytes in sure:
                self._tell_outside(pid, size_bytes, card.index)
            self._outside[card.uuid] = sure

    def _tell_outside(self, pid: int, size_bytes: int, index: int) -> None:
        name, size = processes.name_of(pid), format_size(size_bytes)
        text = f"process {pid} ({name}) uses {size} of card {index} outside any share"
        pod = self._cluster.pods.get(processes.pod_of(pid) or "")
        _LOG.warning("%s", text)
        self._cluster.say("OutsideShare", text, pod=pod)

    async def _look_for_others(self) -> None:
        """See whether the kubelet has our resources from somebody else."""
        try:
            offered = await self._kubelet.offered()
        except KubeletError:
            return
        ours = {each: set(self._offers.now(each).ids) for each in Resource}
        others = [each for each in Resource if offered.get(each, set()) - ours[each]]
        self._contested = bool(others) and self._plugins.registered
        if self._contested:
            names = self._settings.names
            which = " and ".join(names.core if each is Resource.CORE else names.memory for each in others)
            text = f"{which}: another device plugin offers it on this node; remove one of the two"
            _LOG.error("%s", text)
            self._cluster.say("ResourceContested", text)

    async def _turn(self) -> None:
        self._turned = time.monotonic()

    def _alive(self) -> bool:
        return time.monotonic() - self._turned < _STALE_SECONDS

    async def _every(self, seconds: float, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await step()
            except VcudaError as error:
                _LOG.warning("%s", error)
            await asyncio.sleep(seconds)

    # ---- metrics ----

    def _sources(self) -> Sources:
        return Sources(
            node=self._settings.name,
            shares=self._shares.read,
            cards=self._card_states,
            counts=lambda: [self._plugins.counts],
            state=lambda: {
                "registered": self._plugins.registered,
                "synced": self._cluster.synced,
                "contested": self._contested,
            },
        )

    def _card_states(self) -> Sequence[CardState]:
        view = View(
            cards=self._inventory.cards,
            pods=dict(self._cluster.pods),
            tickets=self._books.tickets,
            account=Account(known=False),
            moved=self._cluster.moved,
            unit_bytes=self._settings.memory_unit,
        )
        return [
            CardState(
                room=room,
                use=self._inventory.use(room.card.uuid),
                outside=self._outside.get(room.card.uuid, ()),
            )
            for room in rooms(view)
        ]


def sim_dir(settings: Settings) -> Path | None:
    """Where the simulated machine is kept; None for a real driver."""
    return None if settings.simulated is None else settings.run_dir / "sim"


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Be the agent of a node until told to stop. Waits for the driver, and for another agent to end.

    Raises:
        VcudaError: it cannot be.

    """
    try:
        settings.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise TicketError(f"{settings.run_dir}: cannot be made: {error.strerror}") from error
    os.environ.setdefault("XDG_CACHE_HOME", str(settings.run_dir / "cache"))
    held = await _lock(settings.run_dir, stop)
    if held is None:
        return
    server = None
    try:
        if settings.metrics is not None:
            server = MetricsServer(address=settings.metrics)
            _LOG.info("metrics: port %d", server.start())
        directory = sim_dir(settings)
        if directory is not None:
            driver = prepare_simulated(directory, settings.simulated or "")
            library: Path | None = Path(driver["LD_LIBRARY_PATH"])
        else:
            library = settings.driver_dir
            driver = {} if library is None else {"LD_LIBRARY_PATH": str(library)}
        inventory = Inventory(changed=lambda: None, well_seconds=settings.well_seconds, driver_dir=library)
        if not await _loaded(inventory, stop):
            return
        if directory is not None:
            open_simulated(directory)
        _write_models(settings.run_dir, inventory)
        await Agent(settings, inventory, driver).run(stop, server)
    finally:
        if server is not None:
            server.stop()
        os.close(held)


def _write_models(run: Path, inventory: Inventory) -> None:
    """For `vcuda ps`, which does not ask the driver."""
    content = {card.uuid: card.model for card in inventory.cards}
    try:
        (run / ".models.json").write_text(json.dumps(content), encoding="utf-8")
        (run / ".models.json").replace(run / "models.json")
    except OSError as error:
        _LOG.warning("%s: cannot be written: %s", run / "models.json", error.strerror)


async def _lock(run: Path, stop: asyncio.Event) -> int | None:
    said = False
    while not stop.is_set():
        if (held := lock(run)) is not None:
            return held
        if not said:
            _LOG.warning("%s: another vcuda-node has these books; waiting for it to end", run)
            said = True
        await _pause(stop)
    return None


async def _loaded(inventory: Inventory, stop: asyncio.Event) -> bool:
    said = ""
    while not stop.is_set():
        try:
            await asyncio.to_thread(inventory.load)
        except InventoryError as error:
            if str(error) != said:
                said = str(error)
                _LOG.warning("%s; waiting for it", error)
            await _pause(stop)
        else:
            return True
    return False


async def _pause(stop: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_AGAIN_SECONDS):
            await stop.wait()
    except TimeoutError:
        pass

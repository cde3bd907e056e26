"""The shares that containers hold, as their ledgers tell; and the governor that puts them in force."""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from deviceplugin.state import Owner, Ticket
from deviceplugin.tickets import Books
from vcuda.errors import LedgerError
from vcuda.governor import Governor, Member
from vcuda.ledger import Ledger
from vcuda.processes import Pids
from vcuda.registry import node_share_files

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one container has used of one card, over all of its processes, those that are gone too."""

    owner: Owner
    uuid: str
    memory_limit_bytes: int
    memory_used_bytes: int
    core_share: float
    """Guaranteed, of 1."""
    core_ns: int
    wait_ns: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Shares:
    """All shares of the node."""

    books: Books
    driver: Mapping[str, str]
    """The variables that lead to the driver."""
    pids: Pids

    def held(self) -> list[Ticket]:
        """The tickets that are granted."""
        return [
            ticket for ticket in self.books.tickets if ticket.owner is not None and self.books.granted(ticket)
        ]

    def read(self) -> Iterator[Reading]:
        """Each share on each of its cards. What dead processes held is given back on the way."""
        for ticket in self.held():
            owner = ticket.owner
            try:
                with Ledger(self.books.mounted(ticket) / "ledger", writable=True) as ledger:
                    ledger.reclaim()
                    found = ledger.read(cards=len(ticket.shares))
            except (LedgerError, OSError) as error:
                if self.books.granted(ticket):  # else it ended a moment ago
                    _LOG.warning("%s: %s", owner, error)
                continue
            assert owner is not None
            for index, share in enumerate(ticket.shares):
                uses = [process.cards[index] for process in found.processes]
                ended = found.ended[index]
                yield Reading(
                    owner=owner,
                    uuid=share.uuid,
                    memory_limit_bytes=share.memory_bytes,
                    memory_used_bytes=sum(use.used_bytes for use in uses),
                    core_share=share.cores / 100,
                    core_ns=ended.gpu_ns + sum(use.gpu_ns for use in uses),
                    wait_ns=ended.wait_ns + sum(use.wait_ns for use in uses),
                    refused=ended.refused + sum(use.refused for use in uses),
                )

    def accounted(self, uuid: str) -> set[int]:
        """The pids, as the driver knows them, of all processes that account for what they use of a card."""
        found: set[int] = set()
        for ticket in self.held():
            if uuid in ticket.cards:
                found |= self._pids(self.books.mounted(ticket) / "ledger")
        return found

    def members(self) -> list[Member]:
        """The shares as the governor takes them."""
        found: list[Member] = []
        for ticket in self.held():
            grant, ledger = node_share_files(self.books.shares / ticket.name)
            found.append(
                Member(grant=grant, ledger=ledger, pids=self._pids_later(ledger), driver=self.driver)
            )
        return found

    def _pids_later(self, ledger: Path) -> Callable[[], Collection[int]]:
        return lambda: self._pids(ledger)

    def _pids(self, path: Path) -> set[int]:
        try:
            with Ledger(path) as ledger:
                found = ledger.pids()
        except (LedgerError, OSError):
            return set()
        return self.pids.here(found)


class Governing:
    """A thread with the node's governor. While it does not run, every share has what is guaranteed."""

    def __init__(self, shares: Shares) -> None:
        self._stop = threading.Event()
        governor = Governor(
            shares.members,
            version=lambda: tuple(ticket.name for ticket in shares.held()),
            say=_LOG.warning,
        )
        self._thread = threading.Thread(target=governor.run, args=(self._stop,), name="governor", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait a moment for it."""
        self._stop.set()
        self._thread.join(timeout=2.0)

"""The node's books: a directory for each ticket below RUN/shares, made and removed by rename.

RUN/shares/NAME/ticket.json says what the ticket is; RUN/shares/NAME/share/ is what the container has mounted:
its grant and its ledger, once it is granted. Whoever dies between any two steps leaves books that are right:
what is half made or half removed has a name that begins with a dot, and is removed by the next one.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deviceplugin.state import Owner, Resource, Ticket
from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda.errors import GrantError, LedgerError, VcudaError
from vcuda.grant import Grant
from vcuda.kube.placements import CardShare
from vcuda.ledger import Ledger

VERSION = 1
_LEDGER_MODE = 0o666
"""Processes of any user of the container account in it."""


class TicketError(VcudaError):
    """A ticket cannot be written or read."""


class Books:
    """The tickets below `shares`, a directory that is made if it is missing. One process has them at a time.

    `say` gets one line for each ticket that cannot be read. It is left alone: a newer version may have made
    it.

    Raises:
        TicketError: the directory cannot be made.

    """

    def __init__(self, shares: Path, *, say: Callable[[str], None]) -> None:
        self.shares = shares
        self._say = say
        self._tickets: dict[str, Ticket] = {}
        try:
            shares.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._load()
        except OSError as error:
            raise TicketError(f"{shares}: {error.strerror}") from error

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """All of them."""
        return tuple(self._tickets.values())

    def mounted(self, ticket: Ticket) -> Path:
        """The directory of a ticket that its container sees."""
        return self.shares / ticket.name / "share"

    def put(self, ticket: Ticket) -> Ticket:
        """Write a ticket, whole or not at all; a name is given to one that has none.

        Raises:
            TicketError: it cannot be written.

        """
        if not ticket.name:
            ticket = replace(ticket, name=secrets.token_hex(8))
        place = self.shares / ticket.name
        content = json.dumps(_content(ticket))
        try:
            if place.exists():
                draft = place / ".ticket.json"
                draft.write_text(content, encoding="utf-8")
                self._step("before a ticket changes")
                draft.replace(place / "ticket.json")
            else:
                made = Path(tempfile.mkdtemp(prefix=".new-", dir=self.shares))
                (made / "share").mkdir(mode=0o755)
                (made / "share").chmod(0o755)
                (made / "ticket.json").write_text(content, encoding="utf-8")
                self._step("before a ticket is there")
                made.rename(place)
        except OSError as error:
            raise TicketError(f"{place}: cannot be written: {error.strerror}") from error
        self._tickets[ticket.name] = ticket
        self._step("after a ticket was written")
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Remove a ticket with all that its container saw; one that is not there is no fault.

        Raises:
            TicketError: it cannot be removed.

        """
        gone = self.shares / f".old-{ticket.name}-{secrets.token_hex(4)}"
        try:
            (self.shares / ticket.name).rename(gone)
        except FileNotFoundError:
            self._tickets.pop(ticket.name, None)
            return
        except OSError as error:
            raise TicketError(f"{self.shares / ticket.name}: cannot be removed: {error.strerror}") from error
        self._tickets.pop(ticket.name, None)
        self._step("before a ticket's files go")
        shutil.rmtree(gone, ignore_errors=True)

    def grant(self, ticket: Ticket, grant: Grant) -> None:
        """Write ledger and grant, each once: what is there is in use, and stays. The grant comes last.

        Raises:
            TicketError: they cannot be written.

        """
        place = self.mounted(ticket)
        try:
            place.mkdir(mode=0o755, exist_ok=True)
            for name in ("ledger", "grant"):
                path = place / name
                if path.is_dir():  # made by a container runtime that found nothing to mount
                    shutil.rmtree(path)
                if not path.exists():
                    self._step(f"before the {name} is there")
                    if name == "grant":
                        grants.write(path, grant)
                        continue
                    draft = place / ".ledger"
                    draft.unlink(missing_ok=True)
                    ledgers.create(draft)
                    draft.chmod(_LEDGER_MODE)
                    draft.replace(path)
        except OSError as error:
            raise TicketError(f"{place}: cannot be written: {error.strerror}") from error
        except (GrantError, LedgerError) as error:
            raise TicketError(str(error)) from error
        self._step("after a grant was written")

    def granted(self, ticket: Ticket) -> bool:
        """Whether grant and ledger are there."""
        place = self.mounted(ticket)
        return (place / "grant").is_file() and (place / "ledger").is_file()

    def in_use(self, ticket: Ticket) -> bool:
        """Whether processes account in its ledger. One that its users have damaged holds nobody's place."""
        try:
            with Ledger(self.mounted(ticket) / "ledger") as ledger:
                return bool(ledger.living())
        except (LedgerError, OSError):
            return False

    def version(self) -> tuple[object, ...]:
        """Another value when a ticket came, went, or was granted."""
        return tuple((ticket.name, ticket.owner) for ticket in self.tickets)

    def _load(self) -> None:
        for directory in self._found():
            if directory.name.startswith("."):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                content = json.loads((directory / "ticket.json").read_text(encoding="utf-8"))
                self._tickets[directory.name] = _ticket(content, directory.name)
            except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                self._say(f"{directory}: cannot be read, and is left alone: {type(error).__name__}: {error}")

    def _found(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from sorted(self.shares.iterdir())

    def _step(self, name: str) -> None:
        """Where a test can have us killed."""


def _content(ticket: Ticket) -> dict[str, Any]:
    return {
        "version": VERSION,
        "ids": {str(resource): sorted(ids) for resource, ids in ticket.ids.items()},
        "shares": [
            {
                "uuid": share.uuid,
                "cores": share.cores,
                "coresMax": share.cores_max,
                "memoryBytes": share.memory_bytes,
                "whole": share.whole,
            }
            for share in ticket.shares
        ],
        "priority": ticket.priority,
        "meant": _owner_content(ticket.meant),
        "owner": None if ticket.owner is None else _owner_content(ticket.owner),
        "askedNs": ticket.asked_ns,
    }


def _ticket(content: Any, name: str) -> Ticket:  # noqa: ANN401 (JSON)
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']}, not {VERSION}")
    return Ticket(
        name=name,
        ids={Resource(resource): frozenset(map(str, ids)) for resource, ids in content["ids"].items()},
        shares=tuple(
            CardShare(
                uuid=str(share["uuid"]),
                cores=int(share["cores"]),
                cores_max=int(share["coresMax"]),
                memory_bytes=int(share["memoryBytes"]),
                whole=bool(share["whole"]),
            )
            for share in content["shares"]
        ),
        priority=int(content["priority"]),
        meant=_owner(content["meant"]),
        owner=None if content["owner"] is None else _owner(content["owner"]),
        asked_ns=int(content["askedNs"]),
    )


def _owner_content(owner: Owner) -> dict[str, str]:
    return {
        "uid": owner.uid,
        "container": owner.container,
        "namespace": owner.namespace,
        "pod": owner.pod,
    }


def _owner(content: Any) -> Owner:  # noqa: ANN401 (JSON)
    return Owner(
        uid=str(content["uid"]),
        container=str(content["container"]),
        namespace=str(content["namespace"]),
        pod=str(content["pod"]),
    )


def lock(run: Path) -> int | None:
    """The descriptor whose lock says that the books are ours, while it is open; None: another has it."""
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor

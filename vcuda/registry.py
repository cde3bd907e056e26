"""The shares of this user on this machine: a directory each, under one lock.

RUNTIME/shares/ID/ holds `grant`, `ledger`, `share.json` and `alive`. The `vcuda run` that made a share holds
a file lock on `alive`; the share lives while it does, or while a process owns a slot of the ledger. Whoever
looks next removes what is dead, so that a killed `vcuda run` leaves nothing behind. Its program dies with it
(see attend.py); what the program has left running in the share stays in it, and is counted.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from vcuda import grant as grants
from vcuda import ledger as ledgers
from vcuda.driver import HELD
from vcuda.errors import GrantError, LedgerError, VcudaError
from vcuda.units import PPM

_NOT_WRITTEN = ("directory", "card")
"""Of a share, in share.json: where it lies says the one, and it has one card."""
LONGEST_PATH = 200
"""Of the runtime directory: the shim keeps the path of a ledger in 256 bytes."""
MOUNTED = Path("/run/vcuda")
"""Where a container's grant is mounted; the shim looks nowhere else if this exists."""
NODE = Path("/run/vcuda-node")
"""Where a node's agent keeps the shares of its containers, unless VCUDA_NODE_RUN_DIR names another place. Not
MOUNTED: programs of the node itself would take that for theirs."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share as its directory tells it."""

    name: str
    command: tuple[str, ...]
    pid: int
    card_uuid: str
    card_name: str
    memory_bytes: int
    core_ppm: int | None
    """None when cores were not asked."""
    core_max_ppm: int | None
    """The ceiling; None when cores were not asked."""
    priority: int
    whole: bool
    sim_dir: str | None
    started: float
    directory: str = ""
    card: int = 0
    """Which of its grant's cards this is: a container can have several."""

    @property
    def path(self) -> Path:
        """Where its files are."""
        return Path(self.directory)

    @property
    def key(self) -> str:
        """Tells it from all others on this machine."""
        return f"{self.directory}#{self.card}" if self.card else self.directory


def runtime_directory() -> Path:
    """The user's private directory: VCUDA_RUNTIME_DIR, XDG_RUNTIME_DIR/vcuda, or /tmp/vcuda-UID.

    Raises:
        VcudaError: it can't be made, or belongs to somebody else.

    """
    own = os.environ.get("VCUDA_RUNTIME_DIR")
    session = os.environ.get("XDG_RUNTIME_DIR")
    if own:
        path = Path(own).absolute()  # a program may go elsewhere before it looks for its grant
    elif session and os.access(session, os.W_OK):
        path = Path(session) / "vcuda"
    else:
        path = Path(tempfile.gettempdir()) / f"vcuda-{os.getuid()}"
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise VcudaError(f"{path}: longer than {LONGEST_PATH} bytes; set VCUDA_RUNTIME_DIR to a shorter path")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise VcudaError(f"{path}: cannot be made: {error.strerror}; set VCUDA_RUNTIME_DIR") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not path.is_dir() or path.is_symlink():
        raise VcudaError(
            f"{path}: is not a private directory of this user; remove it, or set VCUDA_RUNTIME_DIR"
        )
    return path


class Registry:
    """The shares below `runtime`."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self._shares = runtime / "shares"
        self._shares.mkdir(mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep every other vcuda command of this user from changing the shares."""
        with (self.runtime / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def election(self) -> Path:
        """The file whose lock says who governs the shares (see elected.py)."""
        return self.runtime / "governor"

    def version(self) -> int:
        """Another number when a share came or went. Needs no lock."""
        return self._shares.stat().st_mtime_ns

    def seen(self) -> list[Share]:
        """The shares that are there, the dead too, oldest first. Needs no lock, removes nothing."""
        found: list[Share] = []
        for directory in self._shares.iterdir():
            with contextlib.suppress(VcudaError):  # not complete yet, or not any more
                found.append(_described(directory))
        return sorted(found, key=lambda share: share.started)

    def shares(self) -> list[Share]:
        """The living shares, oldest first; removes the dead. Call it under the lock."""
        found: list[Share] = []
        for directory in self._shares.iterdir():
            if not _alive(directory):
                shutil.rmtree(directory, ignore_errors=True)
                continue
            try:
                found.append(_described(directory))
            except VcudaError:
                continue  # alive, but unreadable: not ours to remove
        return sorted(found, key=lambda share: share.started)

    def add(self, share: Share, grant: grants.Grant) -> tuple[Share, int]:
        """Make a share's directory; returns it with the descriptor whose lock keeps it alive.

        Call it under the lock.
        """
        directory = Path(tempfile.mkdtemp(dir=self._shares, prefix=""))
        descriptor = os.open(directory / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            ledgers.create(directory / "ledger")
            grants.write(directory / "grant", grant)
            (directory / "share.json").write_text(_content(share), encoding="utf-8")
            now_ns = time.time_ns()
            os.utime(self._shares, ns=(now_ns, now_ns))  # complete: see version
        except BaseException:
            os.close(descriptor)
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return replace(share, directory=str(directory)), descriptor

    def change(
        self,
        share: Share,
        *,
        core_ppm: int | None = None,
        core_max_ppm: int | None = None,
        priority: int | None = None,
    ) -> Share:
        """Change a living share's cores, for its processes too; None leaves a value as it is.

        Call it under the lock.

        Raises:
            GrantError: a value is out of its range, or the grant cannot be written.

        """
        granted = grants.change(
            share.path / "grant", core_ppm=core_ppm, core_max_ppm=core_max_ppm, priority=priority
        )
        changed = replace(
            share,
            core_ppm=granted.core_ppm,
            core_max_ppm=granted.core_max_ppm,
            priority=granted.priority,
        )
        # That cores were asked is told by this file alone, where all of them were.
        fresh = share.path / ".share.json"
        fresh.write_text(_content(changed), encoding="utf-8")
        fresh.replace(share.path / "share.json")
        return changed

    def named(self, name: str) -> Share:
        """The living share that is called so; the last part of its directory names it too.

        Call it under the lock.

        Raises:
            VcudaError: there is none, or more than one.

        """
        living = self.shares()
        found = [share for share in living if name in (share.name, share.path.name)]
        if len(found) == 1:
            return found[0]
        if found:
            ways = ", ".join(share.path.name for share in found)
            raise VcudaError(f"{len(found)} shares are called {name!r}; name one by its directory: {ways}")
        have = ", ".join(sorted({share.name for share in living}))
        raise VcudaError(f"no share is called {name!r}; there is {have}" if have else "there are no shares")

    def remove(self, share: Share, descriptor: int) -> None:
        """End a share: remove it, unless processes that its program has left behind still use it."""
        with self.locked():
            os.close(descriptor)
            if not _alive(share.path):
                shutil.rmtree(share.path, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what nobody uses any more: shares of the dead, and simulated machines without shares."""
        with self.locked():
            used = {share.sim_dir for share in self.shares()}
            for machine in (self.runtime / "sim").glob("*"):
                if str(machine) not in used:
                    _remove_unless_held(machine)


def node_directory() -> Path:
    """Where the agent of this node keeps the shares of its containers, if it has any."""
    own = os.environ.get("VCUDA_NODE_RUN_DIR")
    return Path(own) if own else NODE


def node_share_files(directory: Path) -> tuple[Path, Path]:
    """Grant and ledger of a node's share, by its directory."""
    return directory / "share" / "grant", directory / "share" / "ledger"


def node_shares(node: Path) -> list[Share]:
    """The shares of this node's containers, oldest first, one for each card; none for who may not look there.

    They belong to the node's agent, which removes them.
    """
    found: list[Share] = []
    try:
        directories = [each for each in (node / "shares").iterdir() if not each.name.startswith(".")]
    except OSError:
        return []
    for directory in directories:
        with contextlib.suppress(
            GrantError, OSError, ValueError, KeyError, TypeError
        ):  # not granted yet, or ended
            found += _of_ticket(directory)
    return sorted(found, key=lambda share: (share.started, share.key))


def _of_ticket(directory: Path) -> list[Share]:
    """What a node's ticket says: see deviceplugin/tickets.py."""
    file, _ = node_share_files(directory)
    grant = grants.read(file)
    content: dict[str, Any] = json.loads((directory / "ticket.json").read_text(encoding="utf-8"))
    owner: dict[str, str] = content["owner"]
    simulated = _machine_of(directory)
    models = _models(directory)
    return [
        Share(
            name=f"{owner['namespace']}/{owner['pod']}/{owner['container']}",
            command=(),
            pid=0,
            card_uuid=card.uuid,
            card_name=models.get(card.uuid, card.uuid),
            memory_bytes=card.memory_bytes,
            core_ppm=None if card.whole else card.core_ppm,
            core_max_ppm=None if card.whole else card.core_max_ppm,
            priority=card.priority,
            whole=card.whole,
            sim_dir=simulated,
            started=file.stat().st_ctime,
            directory=str(file.parent),
            card=index,
        )
        for index, card in enumerate(grant.cards)
    ]


def _models(directory: Path) -> dict[str, str]:
    """The models of the node's cards by UUID, as its agent has written them down."""
    try:
        content = json.loads((directory.parent.parent / "models.json").read_text(encoding="utf-8"))
        return {str(uuid): str(model) for uuid, model in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _machine_of(directory: Path) -> str | None:
    """The simulated machine of a node's share; None where its cards are real."""
    machine = directory.parent.parent / "sim"
    return str(machine) if (machine / "machine").exists() else None


def _content(share: Share) -> str:
    return json.dumps({key: value for key, value in asdict(share).items() if key not in _NOT_WRITTEN})


def _alive(directory: Path) -> bool:
    try:
        with (directory / "alive").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    try:
        with ledgers.Ledger(directory / "ledger") as ledger:
            return bool(ledger.living())
    except LedgerError:
        return False


def _described(directory: Path) -> Share:
    """What share.json says, but for what can have changed since: that is in the grant.

    Where another version of vcuda wrote share.json, everything is what the grant says.

    Raises:
        GrantError: the grant is not readable.

    """
    grant = grants.read(directory / "grant")
    card = grant.cards[0]
    try:
        content: dict[str, Any] = json.loads((directory / "share.json").read_text(encoding="utf-8"))
        known = {field.name: content[field.name] for field in fields(Share) if field.name not in _NOT_WRITTEN}
        share = replace(Share(**known), command=tuple(known["command"]), directory=str(directory))
    except (OSError, ValueError, TypeError, KeyError):
        return _of_grant(grant, directory)
    asked = share.core_ppm is not None or card.core_ppm < PPM
    return replace(
        share,
        memory_bytes=card.memory_bytes,
        core_ppm=card.core_ppm if asked else None,
        core_max_ppm=card.core_max_ppm if asked else None,
        priority=card.priority,
    )


def _of_grant(grant: grants.Grant, directory: Path) -> Share:
    card = grant.cards[0]
    return Share(
        name=grant.name,
        command=(),
        pid=0,
        card_uuid=card.uuid,
        card_name=card.uuid,
        memory_bytes=card.memory_bytes,
        core_ppm=None if card.core_ppm == PPM else card.core_ppm,
        core_max_ppm=None if card.core_ppm == PPM else card.core_max_ppm,
        priority=card.priority,
        whole=card.whole,
        sim_dir=None,
        started=0.0,
        directory=str(directory),
    )


def _remove_unless_held(machine: Path) -> None:
    """Remove a simulated machine that no vcuda command holds (see driver.py)."""
    try:
        descriptor = os.open(machine / HELD, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(machine, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)

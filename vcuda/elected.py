"""One governor for all shares of a user: whichever `vcuda run` holds a lock runs it.

When that one ends, however it ends, the kernel gives the lock to another, which goes on. One that is stopped
(SIGTSTP) keeps it: for so long nothing is adjusted, and every share has its guarantee.
"""

import fcntl
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from threading import Event, Thread

from vcuda.driver import leading_to
from vcuda.governor import Governor, Member
from vcuda.ledger import Ledger
from vcuda.processes import Pids
from vcuda.registry import Registry, Share


class Candidate:
    """A thread that waits for the lock, and then governs.

    Start it where signals are blocked: it inherits that, and none is delivered to it.
    """

    def __init__(self, registry: Registry, say: Callable[[str], None]) -> None:
        self._registry = registry
        self._say = say
        self._stop = Event()
        # A daemon: who ends does not wait for it. It may sleep in the kernel for days.
        self._thread = Thread(target=self._run, name="governor", daemon=True)
        self._governs = Event()
        self._pids = Pids()

    def start(self) -> None:
        """Stand for election. Whatever is wrong is told, and does not concern the program."""
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads may be had
            self._say(_told(error))

    def stop(self) -> None:
        """Govern no more, if it did; the next one does when this process ends."""
        self._stop.set()
        if self._governs.is_set():
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        try:
            with self._registry.election.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._governs.set()
                if not self._stop.is_set():
                    Governor(self._members, version=self._registry.version, say=self._say).run(self._stop)
        except Exception as error:  # noqa: BLE001 (whatever it is, the program goes on)
            self._say(_told(error))

    def _members(self) -> list[Member]:
        return [self._member(share) for share in self._registry.seen()]

    def _member(self, share: Share) -> Member:
        ledger = share.path / "ledger"
        return Member(
            grant=share.path / "grant",
            ledger=ledger,
            pids=partial(self._here, ledger),
            driver={} if share.sim_dir is None else leading_to(share.sim_dir),
        )

    def _here(self, path: Path) -> Collection[int]:
        with Ledger(path) as ledger:
            return self._pids.here(ledger.pids())


def _told(error: Exception) -> str:
    return f"core shares are not adjusted by this command: {error}"

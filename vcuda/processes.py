"""Pids of other namespaces, such as containers', as they are here: the driver tells of processes by these."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_KEPT_SECONDS = 0.4


@dataclass
class Pids:
    """Pids in a namespace to pids here, for processes that can be seen from here.

    Needs the host's pid namespace; in another one, the processes of other containers are not there.
    """

    proc: Path = Path("/proc")
    _known: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    _at: float = float("-inf")

    def here(self, by_namespace: Mapping[int, Iterable[int]]) -> set[int]:
        """The pids here of these, which are given by the inode of their pid namespace."""
        own = Path(self.proc, "self", "ns", "pid").stat().st_ino
        if by_namespace.keys() <= {own}:
            return set(by_namespace.get(own, ()))
        now = time.monotonic()
        if now - self._at > _KEPT_SECONDS:
            self._known, self._at = dict(self._look()), now
        wanted = ((namespace, pid) for namespace, pids in by_namespace.items() for pid in pids)
        return {self._known[each] for each in wanted if each in self._known}

    def _look(self) -> Iterator[tuple[tuple[int, int], int]]:
        for entry in os.scandir(self.proc):
            if not entry.name.isdecimal():
                continue
            with contextlib.suppress(OSError):  # it has ended
                namespace = Path(entry.path, "ns", "pid").stat().st_ino
                yield (namespace, _inner(Path(entry.path, "status"), int(entry.name))), int(entry.name)


def _inner(status: Path, pid: int) -> int:
    """The pid of a process in its own, innermost namespace."""
    for line in status.read_bytes().splitlines():
        if line.startswith(b"NSpid:"):
            return int(line.split()[-1])
    return pid

"""Processes of containers as the host knows them: their pids here, and the pods that they belong to."""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
"""In the path of a cgroup: the kubelet's names have the pod's uid in them, with one or the other dash."""
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


def pod_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The uid of the pod that a process belongs to, by its cgroups; None where none says so."""
    with contextlib.suppress(OSError):
        found = _POD.search((proc / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace"))
        if found is not None:
            return found[1].replace("_", "-")
    return None


def name_of(pid: int, proc: Path = Path("/proc")) -> str:
    """What a process is called; its pid, where it has ended."""
    with contextlib.suppress(OSError):
        return (proc / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return str(pid)


def outside(seen: Iterable[tuple[int, int]], accounted: Iterable[int]) -> list[tuple[int, int]]:
    """Of the processes that the driver lists on a card, pid and bytes, those that no ledger accounts for.

    A pid may be in both several times: drivers that list pids of containers' own namespaces do that.
    """
    known = Counter(accounted)
    found: list[tuple[int, int]] = []
    for pid, size_bytes in sorted(seen):
        if known[pid]:
            known[pid] -= 1
        else:
            found.append((pid, size_bytes))
    return found

"""Processes of the node: what they are called, whose pods they are of, and whether a ledger knows them."""

import contextlib
import re
from collections.abc import Container, Iterable
from pathlib import Path

_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
"""In the path of a cgroup: the kubelet's names have the pod's uid in them, with one or the other dash."""


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


def outside(seen: Iterable[tuple[int, int]], accounted: Container[int]) -> list[tuple[int, int]]:
    """Of the processes that the driver lists on a card, pid and bytes, those that no ledger accounts for."""
    return sorted((pid, size_bytes) for pid, size_bytes in seen if pid not in accounted)

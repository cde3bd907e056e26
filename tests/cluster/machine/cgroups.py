"""The node's own control groups: one in each hierarchy, the root of all for whoever runs on the node.

Without it containers would go to groups of this machine, beside those of other clusters, and the kubelet
would count all that runs here. Hierarchies of version 1 alone: each is mounted again in a cgroup namespace.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine.errors import CannotRunContainers

_TOP = Path("/sys/fs/cgroup")
_NEEDED = ("cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids")
_REMOVE_S = 10

JOIN = 'for each in /sys/fs/cgroup/*; do echo 0 >"$each/cgroup.procs"; done; exec "$@"'
"""A shell script for the node: put yourself into its group, and become the program of the arguments."""


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """A mount below /sys/fs/cgroup."""

    path: Path
    kind: str
    """File system: cgroup, or cgroup2 for the one that has no controllers here."""
    options: str
    """What it is mounted with: its controllers, or its name."""


def hierarchies() -> list[Hierarchy]:
    """This machine's hierarchies.

    Raises:
        CannotRunContainers: Not all controllers that containers need are there, in version 1.
    """
    found: list[Hierarchy] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        rest = fields[fields.index("-") + 1 :]
        path = Path(fields[4])
        if rest[0] in ("cgroup", "cgroup2") and path.parent == _TOP:
            words = [each for each in rest[2].split(",") if each not in ("rw", "xattr", "nsdelegate")]
            options = ",".join(["none", *words] if words and words[0].startswith("name=") else words)
            found.append(Hierarchy(path=path, kind=rest[0], options=options if rest[0] == "cgroup" else ""))
    there = {word for each in found for word in each.options.split(",")}
    if missing := [each for each in _NEEDED if each not in there]:
        raise CannotRunContainers(f"no cgroup version 1 hierarchy of {', '.join(missing)} below {_TOP}")
    return found


def enter(name: str) -> str:
    """The shell lines that make group `name` in each hierarchy and put the shell itself into it."""
    lines: list[str] = []
    for each in hierarchies():
        own = each.path / name
        lines.append(f"mkdir -p {own}")
        if "cpuset" in each.options.split(","):  # a new one has no processors, and takes no process so
            lines += [f"cat {each.path}/cpuset.{what} >{own}/cpuset.{what}" for what in ("cpus", "mems")]
        lines.append(f"echo 0 >{own}/cgroup.procs")
    return "\n".join(lines)


def mount() -> str:
    """The shell lines that mount the hierarchies anew, for a shell in a cgroup namespace of its own."""
    lines = [f"mount -t tmpfs -o mode=755 tmpfs {_TOP}"]
    for each in hierarchies():
        options = f"-o {each.options}" if each.options else ""
        lines += [f"mkdir {each.path}", f"mount -t {each.kind} {options} {each.kind} {each.path}"]
    return "\n".join(lines)


def remove(name: str) -> None:
    """Remove group `name` and all below it. Processes that were killed a moment ago may hold it that long."""
    end = time.monotonic() + _REMOVE_S
    while left := list(_TOP.glob(f"*/{name}")):
        for top in left:
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(path).rmdir()
        if time.monotonic() > end:
            return
        time.sleep(0.02)

"""What a cluster runs: the servers of tools/kubernetes, Debian's container runtime, our own first process.

`find` answers where they are, or raises with the reason for which no cluster can run on this machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine import cgroups
from tests.cluster.machine.errors import CannotRunContainers
from tests.cluster.machine.programs import ROOT

_BUILD = ROOT / "tools" / "kubernetes" / "build.sh"
_NO_GO = 3
_PACKAGES = ROOT / "tools" / "cluster-packages.sh"
_INIT = Path(__file__).with_name("init.c")


@dataclass(frozen=True, kw_only=True)
class Binaries:
    """Paths of programs, all of them there."""

    kubernetes: Path
    """Directory of etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, kubelet."""
    init: Path
    """machine/init.c, statically linked."""
    busybox: Path
    """Statically linked."""


def find() -> Binaries:
    """Find what a cluster needs; build or install what is missing, which takes minutes the first time.

    Raises:
        CannotRunContainers: With the reason.
    """
    _check_machine()
    _script(_PACKAGES)
    kubernetes = _script(_BUILD).splitlines()[-1]
    return Binaries(kubernetes=Path(kubernetes), init=_init(), busybox=Path(_which("busybox")))


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise CannotRunContainers("containers need root here; run as root")
    if os.uname().machine != "x86_64":
        raise CannotRunContainers(f"made for x86_64, and this is {os.uname().machine}")
    cgroups.hierarchies()
    probe = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "sh",
        "-c",
        "mount -t proc proc /proc && mount -t tmpfs tmpfs /run",
    ]
    done = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise CannotRunContainers(f"no mount and PID namespace with mounts of its own: {done.stderr.strip()}")


def _script(path: Path) -> str:
    """Run a script of ours; its progress goes where ours goes, its answer is returned."""
    done = subprocess.run([path], stdout=subprocess.PIPE, text=True, check=False)
    if path == _BUILD and done.returncode == _NO_GO:
        raise CannotRunContainers("no 'go' on PATH to build the Kubernetes servers with")
    if done.returncode:
        raise CannotRunContainers(
            f"{path.relative_to(ROOT)} ended with {done.returncode}; what it said is above"
        )
    return done.stdout


def _which(name: str) -> str:
    path = shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
    if path is None:
        raise CannotRunContainers(f"no '{name}'; tools/cluster-packages.sh installs it")
    return path


def _init() -> Path:
    """Compile init.c into build/cluster, once, by rename so that nobody sees half of it."""
    target = ROOT / "build" / "cluster" / "init"
    if target.exists() and target.stat().st_mtime > _INIT.stat().st_mtime:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        made = Path(directory) / "init"
        command = ["gcc", "-std=gnu11", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", made, _INIT]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunContainers(f"gcc could not make a static program of {_INIT}: {done.stderr}")
        made.rename(target)
    return target

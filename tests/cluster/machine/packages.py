"""Python packages of this interpreter's environment as files of an image."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from tests.cluster.machine.errors import ClusterError
from tests.cluster.machine.programs import ROOT

PACKAGES = "/usr/local/lib/vcuda-packages"
"""Where they are in the image: PYTHONPATH has to name it."""
_OWN = ("vcuda", "admission", "deviceplugin")
_CARRIED = ("libvcuda.so", "sim/libcuda.so.1", "sim/libnvidia-ml.so.1", "sim/simgpu-stat", "bench/cores")
"""Of build/native: what a wheel has in vcuda/_lib."""
_PINNED = ("base.txt", "cluster.txt")
_NOT = frozenset({"__pycache__", "tests"})


def vcuda(scratch: Path) -> dict[str, Path | bytes | str]:
    """What the Containerfile installs: vcuda as its wheel has it, and the packages it is pinned to.

    The native libraries come from build/native, the rest of vcuda from the checkout; commands are made in
    `scratch`.

    Raises:
        ClusterError: a pinned package is not installed here.
    """
    pinned = [
        name
        for file in _PINNED
        for name in re.findall(
            r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements" / file).read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    found = installed(*pinned)
    for package in _OWN:
        for path in sorted((ROOT / package).rglob("*")):
            within = path.relative_to(ROOT)
            if path.is_file() and not _NOT & set(within.parts):
                found[f"{PACKAGES}/{within}"] = path
    for name in _CARRIED:
        found[f"{PACKAGES}/vcuda/_lib/{name}"] = ROOT / "build" / "native" / name
    scratch.mkdir(parents=True, exist_ok=True)
    for command in metadata.distribution("vcuda").entry_points.select(group="console_scripts"):
        script = scratch / command.name
        script.write_text(
            "#!/usr/bin/python3\n"
            f"import sys\nfrom {command.module} import {command.attr}\nsys.exit({command.attr}())\n"
        )
        script.chmod(0o755)
        found[f"/usr/local/bin/{command.name}"] = script
    return found


def installed(*names: str) -> dict[str, Path | bytes | str]:
    """Path in the image to file, of packages by their names as pip has them, without what they depend on.

    Raises:
        ClusterError: one is not installed here.
    """
    found: dict[str, Path | bytes | str] = {}
    for name in names:
        try:
            listed = metadata.distribution(name).files
        except metadata.PackageNotFoundError as error:
            raise ClusterError(f"image: package {name} is not installed here") from error
        for each in listed or ():
            # What lies beside the packages, such as commands, is not needed.
            if each.parts[0] != ".." and not _NOT & set(each.parts):
                found[f"{PACKAGES}/{each}"] = Path(str(each.locate()))
    return found

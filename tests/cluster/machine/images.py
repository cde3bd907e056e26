"""Container images made by hand: files put into a tar layer, and the libraries that programs among them need.

The archive's format is Docker's (`docker save`), which `ctr images import` reads: manifest.json names a
config and layers; the config lists the layers' sha256 sums.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine.errors import ClusterError

_SEARCHED = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib", "/lib64", "/usr/lib64")
"""Where the loader looks when there is no cache of libraries, which our images don't have."""
DRIVER = ("libcuda.so.1", "libnvidia-ml.so.1")
"""Libraries that the node brings into a container: an image never has them."""
_APPLETS = """
    ash cat chmod cp cut date dd df echo env false find grep head hostname id ip kill ln ls mkdir mknod mount
    mv nc od ps pwd rm sed seq sha256sum sleep sort stat tail tar tee test timeout touch tr true uname vi wc
    wget xargs yes
"""
_WITHOUT = (
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
)
"""Parts of Python's library that no test needs."""
_ELF = b"\x7fELF"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An uncompressed tar with its sha256 sum."""

    path: Path
    digest: str


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as it lies in `archive`; others can be made on top of its layers."""

    name: str
    archive: Path
    layers: Sequence[Layer]


def build(
    name: str,
    files: Mapping[str, Path | bytes | str],
    *,
    directory: Path,
    entrypoint: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    base: Image | None = None,
    absent: Iterable[str] = DRIVER,
) -> Image:
    """Make an image of `files`: absolute path in it to a file or directory of this machine, to bytes, or to a
    string, which is where a symbolic link points.

    What dynamically linked files among them need is added, except `absent` and what `base` has already.

    Raises:
        ClusterError: A file needs a library that this machine lacks, or is not there.
    """
    found = dict(_walk(files))
    sources = [source for source in found.values() if isinstance(source, Path) and _is_elf(source)]
    for target, source in _libraries(sources, absent=set(absent)).items():
        found.setdefault(target, source)
    stem = name.replace("/", "_").replace(":", "_")
    layer = _write_layer(directory / f"{stem}.layer.tar", found)
    layers: list[Layer] = [*(base.layers if base else []), layer]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{each.digest}" for each in layers]},
            "config": {
                "Entrypoint": list(entrypoint) or None,
                "Env": [f"{key}={value}" for key, value in {"PATH": _path(), **(env or {})}.items()],
                "WorkingDir": "/",
            },
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [
        {
            "Config": config_name,
            "RepoTags": [name],
            "Layers": [f"{each.digest}/layer.tar" for each in layers],
        }
    ]
    archive = directory / f"{stem}.tar"
    with tarfile.open(archive, "w") as tar:
        _add_bytes(tar, "manifest.json", json.dumps(manifest).encode())
        _add_bytes(tar, config_name, config)
        for each in layers:
            tar.add(each.path, f"{each.digest}/layer.tar")
    return Image(name=name, archive=archive, layers=layers)


def busybox_files(busybox: Path) -> dict[str, Path | bytes | str]:
    """A root with a static busybox, /bin/sh among its names, and the files that programs look for."""
    files: dict[str, Path | bytes | str] = {
        "/bin/busybox": busybox,
        "/bin/sh": "busybox",
        "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
        "/etc/group": b"root:x:0:\nnogroup:x:65534:\n",
        "/root/.keep": b"",
    }
    return files | {f"/bin/{applet}": "busybox" for applet in _APPLETS.split()}


def glibc_files(busybox: Path) -> dict[str, Path | bytes | str]:
    """A root whose /bin/sh, bash and python3 are dynamically linked: a preloaded library gets into them."""
    python = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    return busybox_files(busybox) | {
        "/bin/bash": Path("/bin/bash"),
        "/bin/sh": "bash",
        str(python): python.resolve(),
        "/usr/bin/python3": str(python),
        str(library): library,
        # Not needed by any of these, but by what is put on top.
        "/lib/x86_64-linux-gnu/libdl.so.2": Path("/lib/x86_64-linux-gnu/libdl.so.2"),
        "/lib/x86_64-linux-gnu/libpthread.so.0": Path("/lib/x86_64-linux-gnu/libpthread.so.0"),
        "/lib/x86_64-linux-gnu/librt.so.1": Path("/lib/x86_64-linux-gnu/librt.so.1"),
        "/lib/x86_64-linux-gnu/libgcc_s.so.1": Path("/lib/x86_64-linux-gnu/libgcc_s.so.1"),
        "/usr/lib/x86_64-linux-gnu/libstdc++.so.6": Path("/usr/lib/x86_64-linux-gnu/libstdc++.so.6"),
    }


def _path() -> str:
    return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _walk(files: Mapping[str, Path | bytes | str]) -> Iterator[tuple[str, Path | bytes | str]]:
    """Each file of `files` by itself, directories taken apart."""
    for target, source in files.items():
        if not target.startswith("/"):
            raise ClusterError(f"image: path '{target}' in the image is not absolute")
        if isinstance(source, Path) and source.is_dir():
            for path in sorted(source.rglob("*")):
                within = path.relative_to(source)
                if path.is_file() and not set(within.parts) & set(_WITHOUT):
                    yield f"{target.rstrip('/')}/{within}", path
        elif isinstance(source, Path) and not source.exists():
            raise ClusterError(f"image: no file {source} to put at {target}")
        else:
            yield target, source


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ELF)) == _ELF


def _libraries(programs: Sequence[Path], *, absent: set[str]) -> dict[str, Path]:
    """Where each library that the programs need has to lie, and where the loader finds it here."""
    if not programs:
        return {}
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False, timeout=120)
    found: dict[str, Path] = {}
    program = str(programs[0])
    for line in done.stdout.splitlines():
        if not line.startswith("\t"):
            program = line.rstrip(":")
            continue
        name, arrow, rest = line.strip().partition(" => ")
        if rest.startswith("not found"):
            if name not in absent:
                raise ClusterError(f"image: {program} needs {name}, which this machine lacks")
            continue
        path = (rest if arrow else name).partition(" (")[0]
        if not path.startswith("/") or Path(path).name in absent:
            continue
        found[path] = Path(path)
        if str(Path(path).parent) not in _SEARCHED:
            found[f"{_SEARCHED[1]}/{Path(path).name}"] = Path(path)
    return found


def _write_layer(path: Path, files: Mapping[str, Path | bytes | str]) -> Layer:
    with tarfile.open(path, "w") as tar:
        for name in ("tmp", "var/tmp"):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(directory)
        for target, source in sorted(files.items()):
            name = target.lstrip("/")
            if isinstance(source, bytes):
                _add_bytes(tar, name, source)
            elif isinstance(source, str):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, source
                tar.addfile(link)
            else:
                content = source.read_bytes()
                _add_bytes(tar, name, content, mode=source.stat().st_mode & 0o777 | 0o444)
    with path.open("rb") as file:
        return Layer(path=path, digest=hashlib.file_digest(file, "sha256").hexdigest())


def _add_bytes(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))

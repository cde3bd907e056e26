"""NVIDIA's real driver libraries and nvidia-smi, from Debian's non-free component, unpacked beside the build.

Nothing is installed and nothing of the machine's apt is changed: a private copy of its own sources gets the
component added, with private lists and caches, and the packages are only downloaded and unpacked. The result
is kept in `build/nvidia-535` for the next run. Without a card the libraries answer that there is none, which
is what the tests of the shim's transparency need.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "nvidia-535"
PACKAGES = ("nvidia-smi", "libnvidia-ml1", "libcuda1")
FETCH_SECONDS = 180


class Unavailable(Exception):
    """Raised with the reason when the packages cannot be had; tests are skipped with it."""


@dataclass(frozen=True)
class RealDriver:
    """Where the unpacked files lie, and the driver's version, such as 535.261.03."""

    smi: Path
    libcuda: Path
    libnvml: Path
    version: str


def sources_with_non_free(texts: dict[str, str]) -> dict[str, str]:
    """The machine's own source files with `non-free` added to the entries of Debian's suites."""
    changed: dict[str, str] = {}
    for name, text in texts.items():
        if name.endswith(".sources"):
            stanzas = [s for s in re.split(r"\n\s*\n", text) if re.search(r"debian", s, re.IGNORECASE)]
            new = "\n\n".join(re.sub(r"(?m)^Components:(.*)$", r"Components:\1 non-free", s) for s in stanzas)
        else:
            lines = [s for s in text.splitlines() if re.match(r"deb\s", s) and re.search(r"/debian\S*\s", s)]
            new = "\n".join(line if "non-free " in line + " " else line + " non-free" for line in lines)
        if new.strip():
            changed[name] = new + "\n"
    return changed


def _run(command: list[str], *, cwd: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        words = " ".join(word for word in command if not word.startswith("-"))
        raise Unavailable(f"{words}: {lines[-1] if lines else 'failed'}")
    return done.stdout


def _download(work: Path) -> None:
    """Download the packages into `work` and unpack them into `work/root`."""
    etc = Path("/etc/apt")
    texts = {
        path.name: path.read_text()
        for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
        if path.is_file() and path.suffix in {".list", ".sources"}
    }
    sources = sources_with_non_free(texts)
    if not sources:
        raise Unavailable("the machine's apt settings name no Debian archive")
    parts = work / "sources.list.d"
    for directory in (parts, work / "lists" / "partial", work / "cache" / "archives" / "partial"):
        directory.mkdir(parents=True)
    for name, text in sources.items():
        (parts / name).write_text(text)
    options = [
        "-oAPT::Update::Error-Mode=any",  # offline is the reason, not a package that is missing
        "-oAcquire::Retries=1",
        "-oAcquire::http::Timeout=20",
        "-oAcquire::https::Timeout=20",
        f"-oDir::Etc::SourceList={work / 'none'}",
        f"-oDir::Etc::SourceParts={parts}",
        f"-oDir::State::Lists={work / 'lists'}",
        f"-oDir::Cache={work / 'cache'}",
        "-oAPT::Sandbox::User=",
        "-oAcquire::Languages=none",
        "-oAPT::Update::Post-Invoke=",
        "-oAPT::Update::Post-Invoke-Success=",
    ]
    _run(["apt-get", *options, "-q", "update"], cwd=work)
    _run(["apt-get", *options, "-q", "download", *PACKAGES], cwd=work)
    for package in work.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(work / "root")], cwd=work)


def _is_elf(path: Path) -> bool:
    """Whether it is the program or library itself: not a link, nor a text of the same name."""
    if path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _locate(root: Path) -> RealDriver:
    def one(pattern: str) -> Path:
        found = sorted(path for path in root.rglob(pattern) if path.is_file() and _is_elf(path))
        if not found:
            raise Unavailable(f"the packages hold no {pattern}")
        return found[-1]

    libcuda = one("libcuda.so.*.*")
    return RealDriver(
        smi=one("nvidia-smi"),
        libcuda=libcuda,
        libnvml=one("libnvidia-ml.so.*.*"),
        version=libcuda.name.removeprefix("libcuda.so."),
    )


def real_driver() -> RealDriver:
    """The unpacked driver, downloaded the first time; a failure is not tried again in this process.

    Raises:
        Unavailable: with the reason in one line.
    """
    found = _real_driver()
    if isinstance(found, Unavailable):
        raise found
    return found


@functools.cache
def _real_driver() -> RealDriver | Unavailable:
    try:
        return _fetch()
    except Unavailable as error:
        return error


def _fetch() -> RealDriver:
    if not HOME.exists():
        if not shutil.which("apt-get") or not shutil.which("dpkg"):
            raise Unavailable("this is no Debian machine: apt-get or dpkg is missing")
        HOME.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME.parent) as name:
            work = Path(name)
            _download(work)
            _locate(work / "root")
            try:
                (work / "root").rename(HOME)
            except OSError:
                if not HOME.exists():  # another test process may have been quicker
                    raise
    return _locate(HOME)

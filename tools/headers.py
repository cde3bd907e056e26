"""NVIDIA's headers for the build, from NVIDIA's wheels: `python tools/headers.py DIRECTORY`.

The newest headers declare what the shim and the simulated driver are compiled from; the older ones tell which
names a program built with an older toolkit may ask for. Nothing is installed; only the .h files are unpacked.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    "cuda11": ("nvidia-cuda-runtime-cu11==11.8.89", "cuda"),
    "cuda12": ("nvidia-cuda-runtime-cu12==12.9.79", "cuda"),
    "cuda13": ("nvidia-cuda-runtime==13.5.37", "cuda"),
    "nvml": ("nvidia-nvml-dev==13.5.37", "nvml"),
}
"""Directory: the wheel, and how the names of the headers wanted of it begin."""


def fetch(requirement: str, prefix: str, target: Path) -> None:
    """Download one wheel and unpack its headers into `target`, whole or not at all."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", str(work), requirement], check=True)
        wheel = next(work.glob("*.whl"))
        draft = target.with_name(target.name + ".new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                path = Path(member)
                if path.parent.name == "include" and path.suffix == ".h" and path.name.startswith(prefix):
                    (draft / path.name).write_bytes(archive.read(member))
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)


def main() -> None:
    """Fetch what is missing."""
    root = Path(sys.argv[1])
    for name, (requirement, prefix) in WHEELS.items():
        stamp = root / name / "version"
        if stamp.exists() and stamp.read_text() == requirement:
            continue
        print(f"setup: headers of {requirement}", flush=True)
        fetch(requirement, prefix, root / name)
        stamp.write_text(requirement)


if __name__ == "__main__":
    main()

"""The wheel: what it carries, what that needs of a machine, and that it works where it is installed."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

from tests.support import CARD_USER, GIB, MIB, MODEL, ROOT, no_driver_environment

CARRIED = ("libvcuda.so", "sim/libcuda.so.1", "sim/libnvidia-ml.so.1", "sim/simgpu-stat", "bench/cores")
NEWEST_GLIBC = (2, 17)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target / "vcuda"


def dynamic(path: Path) -> tuple[set[str], dict[str, set[str]]]:
    """The libraries that an ELF file needs, and the symbol versions it needs of each."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        section = elf.get_section_by_name(".dynamic")
        needed = {tag.needed for tag in section.iter_tags("DT_NEEDED")} if section else set()
        versions = {
            library.name: {each.name for each in each_version}
            for section in elf.iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for library, each_version in section.iter_versions()
        }
    return needed, versions


def test_tag_promises_glibc_2_17_and_any_python_from_3_11(wheel: Path) -> None:
    machine = os.uname().machine
    assert wheel.name == f"vcuda-0.1.0-cp311-abi3-manylinux2014_{machine}.whl"


def test_tag_is_the_one_that_auditwheel_finds(wheel: Path) -> None:
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f'platform tag: "manylinux_2_17_{os.uname().machine}"' in " ".join(shown.split())


def test_wheel_carries_the_libraries_and_nothing_of_nvidias(unpacked: Path) -> None:
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    binaries = {name for name in files if not name.endswith((".py", ".pyi", "py.typed"))}
    assert binaries == {"_abi.abi3.so", *(f"_lib/{name}" for name in CARRIED)}
    assert {"__main__.py", "probe.py", "commands/run.py", "py.typed"} <= files


@pytest.mark.parametrize("name", ["_abi.abi3.so", *(f"_lib/{name}" for name in CARRIED)])
def test_nothing_needs_a_glibc_newer_than_2_17(name: str, unpacked: Path) -> None:
    _, versions = dynamic(unpacked / name)
    wanted = {version for of_one in versions.values() for version in of_one}
    newer = {
        version
        for version in wanted
        if version.startswith("GLIBC_")
        and tuple(map(int, version.removeprefix("GLIBC_").split("."))) > NEWEST_GLIBC
    }
    assert newer == set()


def test_shim_needs_the_c_library_alone(unpacked: Path) -> None:
    needed, _ = dynamic(unpacked / "_lib/libvcuda.so")
    assert needed == {"libc.so.6"}


def test_installed_wheel_runs_a_program_in_a_share(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    # What vcuda depends on is pinned and installed here; its own modules come first, from the wheel.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    env = no_driver_environment(tmp_path)
    del env["PYTHONPATH"]
    vcuda = str(home / "bin" / "vcuda")

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=env,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    client = (sys.executable, "-c", CARD_USER, str(100 * MIB))
    done = run(vcuda, "run", "--sim", MODEL, "--memory", "1GiB", "--", *client)
    assert (done.returncode, done.stderr) == (0, f"vcuda run: using a simulated {MODEL}\n")
    _, status, _, total = map(int, done.stdout.split())
    assert (status, total) == (0, GIB)
    assert run(vcuda, "--version").stdout == "vcuda 0.1.0\n"
    doctor = run(vcuda, "doctor", "--sim", MODEL)
    assert doctor.returncode == 0, doctor.stdout
    assert f"{site}/vcuda/_lib/libvcuda.so" in doctor.stdout
    one = ("--cases", "alone/50-20ms-sync-1b-80sm", "--seconds", "2", "--json", "bench.json")
    assert run(vcuda, "bench", "cores", "--sim", *one).stderr == ""
    (case,) = json.loads((tmp_path / "bench.json").read_text())["cases"]
    assert case["problem"] is None
    assert case["shares"][0]["achieved"] > 0

"""What has to be built before the demo can run: the client in C, and pycuda, which has no wheel for Linux.

Both are linked with the simulated libcuda.so.1 by its name alone; which driver they meet is the loader's
choice.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "demo"
DRIVER = ROOT / "build" / "native" / "sim" / "libcuda.so.1"
SOURCE = Path(__file__).parent / "clients" / "driver_api.c"
PYCUDA = "pycuda==2026.1"
PYCUDA_NEEDS = ("pytools==2026.1.1", "siphash24==1.9", "typing_extensions==4.16.0", "platformdirs")


def driver_api() -> Path:
    """Compile driver_api.c if it is newer than its program; the program."""
    program = BUILD / "driver_api"
    if not program.exists() or program.stat().st_mtime < SOURCE.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                *("cc", "-std=c11", "-O2", "-Wall", "-Wextra", "-D_GNU_SOURCE"),
                *(f"-I{_headers('cuda_runtime')}", str(SOURCE), f"-L{_link_directory()}", "-lcuda"),
                *("-Wl,--allow-shlib-undefined", "-o", str(program)),
            ],
            check=True,
        )
    return program


def pycuda() -> bool:
    """Build and install pycuda where that has not been tried yet; whether it is there.

    A minute's work. It needs a C++ compiler and Python's headers; where it fails, build/demo/pycuda.log says
    why.
    """
    if find_spec("pycuda") is not None:
        return True
    failed, log = BUILD / "pycuda.failed", BUILD / "pycuda.log"
    if failed.exists() or shutil.which("g++") is None:
        return False
    print("setup: building pycuda, once, for about a minute", flush=True)
    BUILD.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        try:
            _build_pycuda(output.fileno())
        except (OSError, subprocess.CalledProcessError) as error:
            output.write(f"{error}\n")
            failed.touch()
            return False
    return True


def _build_pycuda(output: int) -> None:
    def run(*command: str, cwd: Path = BUILD) -> None:
        environment = {**os.environ, "CFLAGS": "-O0 -g0 -w"}
        subprocess.run(command, check=True, cwd=cwd, env=environment, stdout=output, stderr=output)

    pip = (sys.executable, "-m", "pip")
    run(*pip, "install", *PYCUDA_NEEDS)
    run(*pip, "download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", PYCUDA)
    archive = next(BUILD.glob("pycuda-*.tar.gz"))
    shutil.unpack_archive(archive, BUILD)  # Debian 12's Python has no extraction filters yet
    tree = BUILD / archive.name.removesuffix(".tar.gz")
    settings = {
        "USE_SHIPPED_BOOST": True,
        "CUDA_ENABLE_GL": False,
        "CUDA_ENABLE_CURAND": False,
        "CUDADRV_LIB_DIR": [str(_link_directory())],
        "CUDADRV_LIBNAME": ["cuda"],
        "CUDA_INC_DIR": [str(_headers("cuda_runtime")), str(_headers("cuda_profiler_api"))],
        "CXXFLAGS": ["-O1", "-w"],
    }
    (tree / "siteconf.py").write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    run(*pip, "install", "--no-deps", "--no-build-isolation", ".", cwd=tree)


def _headers(part: str) -> Path:
    """The headers that NVIDIA's wheel of that name brings."""
    return Path(sysconfig.get_path("purelib")) / "nvidia" / part / "include"


def _link_directory() -> Path:
    """A directory in which the linker finds the driver as -lcuda."""
    directory = BUILD / "lib"
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "libcuda.so"
    if not link.is_symlink():
        link.symlink_to(DRIVER)
    return directory

"""The shim in front of NVIDIA's own libraries, which find no card here: all answers are those without it.

Skipped, with the reason, where the libraries cannot be had (tests/native/nvidia_driver.py) or the machine has
a driver of its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.native.nvidia_driver import RealDriver, Unavailable, real_driver
from tests.support import GIB, ROOT, SHIM

CALL_EVERYTHING = Path(__file__).with_name("call_everything.py")
CUDA_OF_535 = 12020
NEWER_NVML = {"nvmlDeviceGetProcessesUtilizationInfo": 550}
"""Functions of NVML that the shim hooks and 535 lacks, by the driver that brought them: nvml.h is silent."""

Env = dict[str, str]


@pytest.fixture(scope="module")
def real() -> RealDriver:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver, with which libraries of another version do not talk")
    try:
        return real_driver()
    except Unavailable as error:
        pytest.skip(f"NVIDIA's own libraries cannot be had: {error}")


@pytest.fixture
def bare(real: RealDriver, tmp_path: Path) -> Env:
    """The environment of programs that find NVIDIA's libraries, without the shim."""
    return {
        **support.simulator_environment(tmp_path),
        "LD_LIBRARY_PATH": str(real.libcuda.parent),
    }


@pytest.fixture(params=["no grant", "a share", "a whole card"])
def shimmed(request: pytest.FixtureRequest, bare: Env, tmp_path: Path) -> Env:
    """The same behind the shim."""
    uuid = "GPU-00000000-1111-4222-8333-444444444444"
    directory = None
    if request.param != "no grant":
        directory = support.make_share(tmp_path, uuid, GIB, whole=request.param == "a whole card")
    return support.shim_environment(bare, directory)


def exported(library: Path) -> set[str]:
    """Names of the functions that a library exports, without versions."""
    done = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}


def run(env: Env, *command: str) -> tuple[int, str, str]:
    """A command's exit status, standard output and standard error."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def everything(env: Env, library: Path, prefix: str, first: str) -> dict[str, Any]:
    code, out, _ = run(env, sys.executable, str(CALL_EVERYTHING), str(library), prefix, first)
    assert code == 0
    return json.loads(out)


def test_every_hooked_function_is_the_real_drivers_or_newer(real: RealDriver) -> None:
    hooked = {name for name in exported(SHIM) if re.match(r"cu[A-Z]|nvml[A-Z]", name)}
    assert len(hooked) > 100
    table = (ROOT / "build" / "gen" / "hooks_table.c").read_text()
    since = {name: int(number) for number, name in re.findall(r'\{"\w+", (\d+), \d+\}, /\* (\w+) \*/', table)}
    missing = hooked - exported(real.libcuda) - exported(real.libnvml)
    newer = {name for name in missing if since.get(name, 0) > CUDA_OF_535 or name in NEWER_NVML}
    assert missing - newer == set()


@pytest.mark.parametrize("first", ["-", "nvmlInit_v2"])
def test_every_function_of_the_real_nvml_answers_the_same(
    real: RealDriver, bare: Env, shimmed: Env, first: str
) -> None:
    without = everything(bare, real.libnvml, "nvml", first)
    assert len(without) > 300
    assert without["nvmlInit_v2"] == 9  # driver not loaded
    assert everything(shimmed, real.libnvml, "nvml", first) == without


@pytest.mark.parametrize("first", ["-", "cuInit"])
def test_every_function_of_the_real_driver_answers_the_same(
    real: RealDriver, bare: Env, shimmed: Env, first: str
) -> None:
    without = everything(bare, real.libcuda, "cu", first)
    assert len(without) > 550
    assert without["cuInit"] == 100  # no device
    assert everything(shimmed, real.libcuda, "cu", first) == without


BY_NAME = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
names = ["cuMemAlloc", "cuMemFree", "cuLaunchKernel", "cuMemGetInfo", "cuGetProcAddress", "cuDeviceGetCount",
         "cuMemcpyHtoD", "cuCtxCreate", "cuNoSuchFunction", "cuStreamSynchronize"]
found = {"version": 0, "init": cuda.cuInit(0)}
version = ctypes.c_int()
assert cuda.cuDriverGetVersion(ctypes.byref(version)) == 0
found["version"] = version.value
for name in names:
    for wanted in (11030, 12000, 13000):
        for flags in (0, 1, 2):
            address, status = ctypes.c_void_p(), ctypes.c_int(-1)
            found[f"{name} {wanted} {flags} v2"] = [
                cuda.cuGetProcAddress_v2(name.encode(), ctypes.byref(address), wanted, ctypes.c_uint64(flags),
                                         ctypes.byref(status)), status.value, bool(address.value)]
            found[f"{name} {wanted} {flags}"] = [
                cuda.cuGetProcAddress(name.encode(), ctypes.byref(address), wanted, ctypes.c_uint64(flags)),
                bool(address.value)]
print(json.dumps(found))
"""


def test_lookups_by_name_and_version_answer_the_same(bare: Env, shimmed: Env) -> None:
    without = run(bare, sys.executable, "-c", BY_NAME)
    assert json.loads(without[1])["version"] == CUDA_OF_535
    assert run(shimmed, sys.executable, "-c", BY_NAME) == without


RUNTIME = """
import ctypes, json, sys
runtime = ctypes.CDLL(sys.argv[1])
runtime.cudaGetErrorName.restype = ctypes.c_char_p
count, version, memory = ctypes.c_int(-1), ctypes.c_int(-1), ctypes.c_void_p()
results = [
    runtime.cudaGetDeviceCount(ctypes.byref(count)),
    runtime.cudaDriverGetVersion(ctypes.byref(version)),
    runtime.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(1 << 20)),
    runtime.cudaFree(None),
    runtime.cudaDeviceSynchronize(),
    runtime.cudaGetLastError(),
]
names = [runtime.cudaGetErrorName(result).decode() for result in results]
print(json.dumps([names, count.value, version.value]))
"""


def test_real_cuda_runtime_finds_no_device_either_way(bare: Env, shimmed: Env) -> None:
    runtimes = sorted(Path(sys.prefix).rglob("libcudart.so.12"))
    if not runtimes:
        pytest.skip("NVIDIA's CUDA runtime is not installed (requirements/demo.txt)")
    without = run(bare, sys.executable, "-c", RUNTIME, str(runtimes[0]))
    assert without[0] == 0
    names, _, version = json.loads(without[1])
    assert names[0] in ("cudaErrorNoDevice", "cudaErrorInsufficientDriver")
    assert version == CUDA_OF_535
    assert run(shimmed, sys.executable, "-c", RUNTIME, str(runtimes[0])) == without


@pytest.mark.parametrize("arguments", [(), ("-L",), ("-q",), ("--query-gpu=memory.total", "--format=csv")])
def test_real_nvidia_smi_says_the_same(
    real: RealDriver, bare: Env, shimmed: Env, arguments: tuple[str, ...]
) -> None:
    without = run(bare, str(real.smi), *arguments)
    assert without[0] == 9
    assert "couldn't communicate with the NVIDIA driver" in without[1]
    assert run(shimmed, str(real.smi), *arguments) == without

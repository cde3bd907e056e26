"""Every way in to the driver's entry points leads through the shim, and none does that should not.

Each way is gone by a program that allocates within its share and beyond it, with a context and in a thread
without one, asks for the size of the card, and launches; on drivers that differ in all that a driver is free
to choose.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import (
    BUILD,
    GIB,
    ROOT,
    SHIM,
    SIMULATOR,
    card_uuids,
    make_share,
    need,
    simulator_environment,
)
from vcuda.ledger import Ledger

CLIENTS = BUILD / "clients"
TRIVIAL_SOURCE = ROOT / "native" / "tests" / "trivial_driver.c"
TRIVIAL_UUID = "GPU-11111111-1111-1111-1111-111111111111"
SHARE = GIB
LAUNCHES = 3

OUT_OF_MEMORY, NOT_FOUND = 2, 500
LIMITED = {
    "start": 0,
    "card": SHARE,
    "total": SHARE,
    "within": 0,
    "beyond": OUT_OF_MEMORY,
    "thread_within": 0,
    "thread_beyond": OUT_OF_MEMORY,
    "freed": 0,
    "launched": LAUNCHES,
    "synchronised": 0,
}


@dataclass(frozen=True)
class Driver:
    """A driver, and what programs need to find it."""

    env: dict[str, str]
    uuid: str
    card_bytes: int


def trivial(directory: Path, tmp_path: Path) -> Driver:
    need(directory / "libcuda.so.1")
    env = simulator_environment(tmp_path)
    del env["SIMGPU_DIR"], env["SIMGPU_CARDS"]
    return Driver({**env, "LD_LIBRARY_PATH": str(directory)}, TRIVIAL_UUID, 16 * GIB)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """built(name, flags...): the directory of a trivial driver that is linked in another way."""

    def build(name: str, *flags: str) -> Path:
        need("gcc")
        directory = tmp_path_factory.getbasetemp() / name
        if not directory.exists():
            directory.mkdir()
            (directory / "map").write_text("CUDA { global: cu*; local: *; };\n")
            options = [
                "-std=c11",
                "-D_GNU_SOURCE",
                "-fPIC",
                "-shared",
                "-pthread",
                "-Wl,-soname,libcuda.so.1",
            ]
            include = ["-isystem", str(ROOT / "build" / "include" / "cuda13")]
            target = ["-o", str(directory / "libcuda.so.1")]
            command = ["gcc", *options, *flags, *include, str(TRIVIAL_SOURCE), *target]
            subprocess.run(command, cwd=directory, check=True)
        return directory

    return build


@pytest.fixture(params=["simulator", "trivial", "trivial, old hash table", "trivial, versioned symbols"])
def driver(request: pytest.FixtureRequest, tmp_path: Path, built: Callable[..., Path]) -> Driver:
    need(SHIM, CLIENTS / "ways_linked", CLIENTS / "libways.so")
    if request.param == "simulator":
        need(SIMULATOR / "libcuda.so.1", SIMULATOR / "libnvidia-ml.so.1")
        env = simulator_environment(tmp_path)
        return Driver(env, card_uuids(env)[0], 16_944_988_160)
    if request.param == "trivial":
        return trivial(BUILD / "trivial", tmp_path)
    if "hash" in request.param:
        return trivial(built("sysv", "-Wl,--hash-style=sysv"), tmp_path)
    return trivial(built("versioned", "-Wl,--version-script=map"), tmp_path)


@pytest.fixture
def small_driver(tmp_path: Path) -> Driver:
    need(SHIM, CLIENTS / "libways.so")
    return trivial(BUILD / "trivial", tmp_path)


def run(driver: Driver, command: list[str], share: Path | None, *preload: Path) -> str:
    """What a program prints; nothing may be said on standard error."""
    env = dict(driver.env)
    if preload:
        env["LD_PRELOAD"] = " ".join(map(str, preload))
    if share:
        env["VCUDA_GRANT_DIR"] = str(share)
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    return done.stdout


def library(name: str, call: str, mode: str = "os.RTLD_LOCAL") -> list[str]:
    """A program that opens a library of the clients and calls something in it."""
    path = CLIENTS / f"lib{name}.so"
    need(path)
    script = f"import ctypes, os; opened = ctypes.CDLL({str(path)!r}, {mode} | os.RTLD_NOW); {call}"
    return [sys.executable, "-S", "-c", script]


def run_way(way: str) -> list[str]:
    return library("ways", f"opened.ways_run({way.encode()}, ctypes.c_ulonglong({SHARE}))")


def where(way: str, *names: str) -> list[str]:
    return library("ways", ";".join(f"opened.ways_where({way.encode()}, {name.encode()})" for name in names))


def share_of(driver: Driver, tmp_path: Path, **card: object) -> Path:
    return make_share(tmp_path, driver.uuid, SHARE, **card)


def assert_limited(output: str, share: Path, *, second: int = -1) -> None:
    assert json.loads(output.splitlines()[0]) == {**LIMITED, "second": second}
    with Ledger(share / "ledger", writable=True) as ledger:
        ledger.reclaim()
        ended = ledger.read().ended[0]
        assert (ended.launches, ended.refused) == (LAUNCHES, 2)
        assert ledger.used_bytes(0) == 0


# ---- the ways ----


def test_linked_program_is_limited(driver: Driver, tmp_path: Path) -> None:
    share = share_of(driver, tmp_path)
    assert_limited(run(driver, [str(CLIENTS / "ways_linked"), str(SHARE)], share, SHIM), share)


NAMED_WAYS = {
    "dlopen and dlsym": "dlsym",
    "dlsym after cuInit": "dlsym after-init",
    "dlsym in the whole program, by RTLD_DEFAULT": "default",
    "dlsym in the whole program, by its handle": "program",
    "dlsym in a driver opened with RTLD_DEEPBIND": "deepbind",
    "dlsym that was fetched from libc by dlsym": "libc",
    "cuGetProcAddress": "proc-v1",
    "cuGetProcAddress after cuInit": "proc-v1 after-init",
    "cuGetProcAddress_v2": "proc-v2",
    "cuGetProcAddress_v2 with the per-thread default stream": "proc-v2 per-thread",
    "cuGetProcAddress_v2 after cuInit": "proc-v2 after-init",
    "what cuGetProcAddress answers to its own name": "proc-of-proc",
}


@pytest.mark.parametrize("way", NAMED_WAYS.values(), ids=NAMED_WAYS)
def test_way_by_name_is_limited(driver: Driver, tmp_path: Path, way: str) -> None:
    share = share_of(driver, tmp_path)
    assert_limited(run(driver, run_way(way), share, SHIM), share)


def test_way_by_name_and_version_is_limited(built: Callable[..., Path], tmp_path: Path) -> None:
    need(SHIM)
    driver = trivial(built("versioned", "-Wl,--version-script=map"), tmp_path)
    share = share_of(driver, tmp_path)
    assert_limited(run(driver, run_way("dlvsym"), share, SHIM), share)


@pytest.mark.parametrize(
    "mode", ["os.RTLD_LOCAL", "os.RTLD_GLOBAL", "os.RTLD_DEEPBIND", "os.RTLD_LAZY | os.RTLD_DEEPBIND"]
)
def test_library_that_is_linked_with_the_driver_is_limited_however_it_is_opened(
    driver: Driver, tmp_path: Path, mode: str
) -> None:
    share = share_of(driver, tmp_path)
    calls = f"opened.linked_run(ctypes.c_ulonglong({SHARE}))"
    calls += "; opened.linked_bound(); opened.linked_where(b'cuMemAlloc_v2')"
    output = run(driver, library("linked", calls, mode), share, SHIM)
    assert_limited(output, share)
    assert output.splitlines()[1:] == ["libvcuda.so cuMemAlloc_v2"] * 2


def test_program_of_ctypes_is_limited(driver: Driver, tmp_path: Path) -> None:
    script = f"""
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
free, total, context, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
print(cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t({SHARE})))
print(cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(1)))
print(cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)), free.value, total.value)
"""
    output = run(driver, [sys.executable, "-S", "-c", script], share_of(driver, tmp_path), SHIM)
    assert output.splitlines() == ["0", str(OUT_OF_MEMORY), f"0 0 {SHARE}"]


def test_threads_that_come_at_once_all_meet_the_share(driver: Driver, tmp_path: Path) -> None:
    output = run(driver, library("ways", "opened.ways_race()"), share_of(driver, tmp_path), SHIM)
    assert output.split() == ["16", str(SHARE)]


# ---- beside another preloaded library ----


@pytest.mark.parametrize("way", ["linked", "dlsym", "default", "proc-v2"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_share_is_charged_once_with_a_second_preload_library(
    driver: Driver, tmp_path: Path, way: str, place: str
) -> None:
    second = CLIENTS / "libsecond.so"
    share = share_of(driver, tmp_path)
    preload = [second, SHIM] if place == "before" else [SHIM, second]
    command = [str(CLIENTS / "ways_linked"), str(SHARE)] if way == "linked" else run_way(way)
    output = run(driver, command, share, *preload)
    # It sees the calls if it comes before ours, and by the ways that it stands in.
    sees = 2 if place == "before" and way != "proc-v2" else 0
    assert_limited(output, share, second=sees)


# ---- the caller's semantics are kept ----


@pytest.mark.parametrize("question", ["next", "default"])
@pytest.mark.parametrize("first", ["", "ctypes.CDLL('libcuda.so.1', os.RTLD_GLOBAL); "])
def test_third_library_finds_what_it_would_without_us(
    small_driver: Driver, tmp_path: Path, question: str, first: str
) -> None:
    share = share_of(small_driver, tmp_path)
    asked = library("third", f"{first}opened.third_{question}(b'cuMemAlloc_v2')")
    without = run(small_driver, asked, None)
    expected = {"nowhere\n": "nowhere\n", "libcuda.so.1 cuMemAlloc_v2\n": "libvcuda.so cuMemAlloc_v2\n"}
    assert run(small_driver, asked, share, SHIM) == expected[without]
    assert run(small_driver, asked, None, SHIM) == without


@pytest.mark.parametrize("place", ["before", "after"])
def test_third_library_preloaded_finds_the_hook_next(
    small_driver: Driver, tmp_path: Path, place: str
) -> None:
    third = CLIENTS / "libthird.so"
    share = share_of(small_driver, tmp_path)
    preload = [third, SHIM] if place == "before" else [SHIM, third]
    asked = library(
        "third", "ctypes.CDLL('libcuda.so.1', os.RTLD_GLOBAL); opened.third_next(b'cuMemAlloc_v2')"
    )
    assert run(small_driver, asked, share, *preload) == "libvcuda.so cuMemAlloc_v2\n"


def test_function_of_another_library_by_the_same_name_stays_its_own(
    small_driver: Driver, tmp_path: Path
) -> None:
    second = CLIENTS / "libsecond.so"
    share = share_of(small_driver, tmp_path)
    # Not preloaded: a library that has functions of these names, asked by its own handle.
    asked = library("third", f"other = ctypes.CDLL({str(second)!r}); opened.third_default(b'cuMemAlloc_v2'); "
                    "libc = ctypes.CDLL(None); libc.dlsym.restype = ctypes.c_void_p; "
                    "libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]; "
                    "found = libc.dlsym(other._handle, b'cuMemAlloc_v2'); "
                    "print(found == ctypes.cast(other.cuMemAlloc_v2, ctypes.c_void_p).value, "
                    "any(str(line).rstrip().endswith('libsecond.so') and "
                    "int(line.split('-')[0], 16) <= found < int(line.split('-')[1].split()[0], 16) "
                    "for line in open('/proc/self/maps')), flush=True)")  # fmt: skip
    assert sorted(run(small_driver, asked, share, SHIM).splitlines()) == ["True True", "nowhere"]


@pytest.mark.parametrize("way", ["dlsym", "default", "program"])
def test_name_that_the_driver_lacks_stays_missing(small_driver: Driver, tmp_path: Path, way: str) -> None:
    asked = where(way, "cuCtxCreate_v4", "cuNoSuchFunction")
    without = run(small_driver, asked, None).splitlines()
    found = run(small_driver, asked, share_of(small_driver, tmp_path), SHIM).splitlines()
    assert found[0::2] == without[0::2] == ["nowhere", "nowhere"]
    assert [line.split(": ", 1)[1] for line in found[1::2]] == [
        line.split(": ", 1)[1] for line in without[1::2]
    ]
    assert run(small_driver, asked, None, SHIM).splitlines() == without


def test_linked_name_that_the_driver_lacks_answers_not_found(small_driver: Driver, tmp_path: Path) -> None:
    need(CLIENTS / "ways_linked")
    share = share_of(small_driver, tmp_path)
    output = run(small_driver, [str(CLIENTS / "ways_linked"), "missing"], share, SHIM)
    assert output == f"{NOT_FOUND}\n"


def test_found_names_leave_no_error(driver: Driver, tmp_path: Path) -> None:
    share = share_of(driver, tmp_path)
    for way in ("dlsym", "default", "program"):
        output = run(driver, where(way, "cuMemAlloc_v2", "cuDriverGetVersion"), share, SHIM).splitlines()
        assert output[:2] == ["libvcuda.so cuMemAlloc_v2", "no error"]
        assert output[2:] == ["libcuda.so.1 cuDriverGetVersion", "no error"]


@pytest.mark.parametrize("mode", ["RTLD_NOW", "RTLD_NOW | RTLD_DEEPBIND"])
def test_library_opens_others_by_its_own_search_path(small_driver: Driver, tmp_path: Path, mode: str) -> None:
    need("gcc")
    (tmp_path / "near").mkdir()
    (tmp_path / "opener.c").write_text(
        f'#include <dlfcn.h>\nint opens(void) {{ return dlopen("libneighbour.so", {mode}) != 0; }}\n'
    )
    (tmp_path / "empty.c").write_text("")
    build = ["gcc", "-D_GNU_SOURCE", "-shared", "-fPIC"]
    near = ["-Wl,-rpath,$ORIGIN/near", "opener.c", "-o", "opener.so"]
    subprocess.run([*build, "empty.c", "-o", "near/libneighbour.so"], cwd=tmp_path, check=True)
    subprocess.run([*build, *near], cwd=tmp_path, check=True)
    script = f"import ctypes; print(ctypes.CDLL({os.fspath(tmp_path / 'opener.so')!r}).opens())"
    share = share_of(small_driver, tmp_path)
    assert run(small_driver, [sys.executable, "-S", "-c", script], share, SHIM) == "1\n"


# ---- which hooks are in force ----


WAYS = ["dlsym", "default", "program", "deepbind", "libc", "proc-v1", "proc-v2", "proc-of-proc"]


@pytest.mark.parametrize("way", WAYS)
def test_without_a_grant_pointers_are_the_drivers_own(driver: Driver, way: str) -> None:
    asked = where(way, "cuInit", "cuMemAlloc_v2", "cuLaunchKernel", "cuMemGetInfo_v2")
    assert run(driver, asked, None, SHIM) == run(driver, asked, None)


def test_without_a_grant_a_linked_program_meets_the_driver_alone(driver: Driver) -> None:
    output = json.loads(run(driver, [str(CLIENTS / "ways_linked"), str(SHARE)], None, SHIM))
    assert output == {
        **LIMITED,
        "card": driver.card_bytes,
        "total": driver.card_bytes,
        "beyond": 0,
        "thread_beyond": 0,
        "second": -1,
    }


@pytest.mark.parametrize("way", WAYS)
def test_grant_of_whole_cards_hooks_metering_alone(driver: Driver, tmp_path: Path, way: str) -> None:
    names = (
        "cuInit",
        "cuLaunchKernel",
        "cuCtxSynchronize",
        "cuMemAlloc_v2",
        "cuMemGetInfo_v2",
        "cuMemCreate",
    )
    share = share_of(driver, tmp_path, whole=True)
    output = run(driver, where(way, *names), share, SHIM).splitlines()[0::2]
    assert [line.split()[0] for line in output] == ["libvcuda.so"] * 3 + ["libcuda.so.1"] * 3


# ---- cuGetProcAddress ----

ADDRESSES = {
    ("cuGetProcAddress_v2", "cuMemAlloc", 12000, 0): "0 0 libvcuda.so cuMemAlloc_v2",
    ("cuGetProcAddress", "cuMemAlloc", 11030, 0): "0 0 libvcuda.so cuMemAlloc_v2",
    ("cuGetProcAddress_v2", "cuMemAlloc", 99000, 0): "0 0 libvcuda.so cuMemAlloc_v2",
    ("cuGetProcAddress_v2", "cuGetProcAddress", 11030, 0): "0 0 libvcuda.so cuGetProcAddress",
    ("cuGetProcAddress_v2", "cuGetProcAddress", 12000, 0): "0 0 libvcuda.so cuGetProcAddress_v2",
    ("cuGetProcAddress_v2", "cuLaunchKernel", 12000, 0): "0 0 libvcuda.so cuLaunchKernel",
    ("cuGetProcAddress_v2", "cuLaunchKernel", 12000, 1): "0 0 libvcuda.so cuLaunchKernel",
    ("cuGetProcAddress_v2", "cuLaunchKernel", 12000, 2): "0 0 libvcuda.so cuLaunchKernel_ptsz",
    ("cuGetProcAddress_v2", "cuNoSuchFunction", 12000, 0): "0 1 nowhere",
    ("cuGetProcAddress_v2", "cuMemCreate", 3000, 0): "0 2 nowhere",
    ("cuGetProcAddress", "cuNoSuchFunction", 12000, 0): f"{NOT_FOUND} 0 nowhere",
}


def proc(door: str, symbol: str, version: int, flags: int) -> str:
    return f"opened.ways_proc({door.encode()}, {symbol.encode()}, {version}, ctypes.c_ulonglong({flags}))"


def test_proc_address_answers_by_version_and_kind_of_stream(driver: Driver, tmp_path: Path) -> None:
    asked = library("ways", "; ".join(proc(*question) for question in ADDRESSES))
    output = run(driver, asked, share_of(driver, tmp_path), SHIM).splitlines()
    assert dict(zip(ADDRESSES, output, strict=True)) == ADDRESSES


VARIANTS = [
    ("cuMemAlloc", 2000, 0),
    ("cuCtxCreate", 2000, 0),
    ("cuCtxCreate", 3020, 0),
    ("cuCtxCreate", 11040, 0),
    ("cuGraphInstantiate", 10000, 0),
    ("cuGraphInstantiate", 12000, 0),
    ("cuStreamBeginCapture", 10000, 2),
    ("cuStreamBeginCapture", 10010, 2),
    ("cuMemAllocAsync", 12000, 2),
    ("cuMemAllocAsync", 12000, 1),
    ("cuMemAlloc", 1000, 0),
    ("cuMemAlloc_v2", 12000, 0),
    ("cuDeviceGetName", 12000, 0),
]


@pytest.mark.parametrize("which", ["simulator", "NVIDIA's"])
def test_proc_address_keeps_the_variant_that_the_driver_chose(tmp_path: Path, which: str) -> None:
    """Where the driver's answers are exported functions, as NVIDIA's are, ours have the very same names."""
    env = simulator_environment(tmp_path)
    if which != "simulator":
        from tests.native.nvidia_driver import Unavailable, real_driver

        try:
            real = real_driver()
        except Unavailable as reason:
            pytest.skip(str(reason))
        directory = tmp_path / "real"
        directory.mkdir()
        (directory / "libcuda.so.1").symlink_to(real.libcuda)
        env["LD_LIBRARY_PATH"] = str(directory)
    driver = Driver(env, TRIVIAL_UUID, 0)
    need(SHIM, SIMULATOR / "libcuda.so.1")
    asked = library("ways", "; ".join(proc("cuGetProcAddress_v2", *variant) for variant in VARIANTS))
    without = run(driver, asked, None).splitlines()
    ours = run(driver, asked, share_of(driver, tmp_path), SHIM).splitlines()
    assert [line.replace("libcuda.so.1", "libvcuda.so") for line in without[:-1]] == ours[:-1]
    assert ours[-1] == without[-1]


# ---- what is not ours costs nothing ----


def test_process_without_cuda_loads_no_driver(driver: Driver, tmp_path: Path) -> None:
    script = "import ctypes; ctypes.CDLL(None).getpid(); print('libcuda' in open('/proc/self/maps').read())"
    output = run(driver, [sys.executable, "-S", "-c", script], share_of(driver, tmp_path), SHIM)
    assert output == "False\n"


def test_where_there_is_no_driver_none_turns_up(small_driver: Driver, tmp_path: Path) -> None:
    driver = Driver({**small_driver.env, "LD_LIBRARY_PATH": os.fspath(tmp_path)}, TRIVIAL_UUID, 0)
    script = """
import ctypes
try:
    print(ctypes.CDLL(None).cuInit)
except AttributeError as error:
    print(str(error).split(": ")[1:])
try:
    ctypes.CDLL("libcuda.so.1")
except OSError as error:
    print(str(error).split(":")[0])
"""
    if run(driver, [sys.executable, "-S", "-c", script], None).splitlines()[1:] != ["libcuda.so.1"]:
        pytest.skip("this machine has a driver of its own")
    output = run(driver, [sys.executable, "-S", "-c", script], share_of(driver, tmp_path), SHIM)
    assert output.splitlines() == ["['undefined symbol', 'cuInit']", "libcuda.so.1"]

"""Questions to a driver, asked in a process of their own: `python vcuda/probe.py QUESTION`, answered in JSON.

A process of its own, since LD_LIBRARY_PATH is read when a process starts, a driver can't be unloaded, and a
broken one may crash. Run as a file, so that the rest of vcuda is not loaded for it. Questions:
    machine     which libcuda and NVML does the dynamic linker find, and what cards do they show?
    context I   what does a context on card I cost, by NVML's figure for this very process? Right whatever the
                neighbours allocate meanwhile. And by which granularity does the card give memory out?
    limit NAMES (under the shim) which of these names, separated by commas, lead into it, and is an allocation
                beyond the limit refused?
"""

import ctypes
import json
import os
import sys
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]

nvml: Any = pynvml

NO_DEVICE = (34, 100)
"""CUDA_ERROR_STUB_LIBRARY and _NO_DEVICE: answers of a driver that is whole, on a machine without a GPU."""


class _Info(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


class _AllocationProp(ctypes.Structure):
    """CUmemAllocationProp of cuda.h, as far as a granularity depends on it."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("rest", ctypes.c_uint64 * 2),
    )


def _loaded(name: str) -> str | None:
    with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123 (a kernel file, read line by line)
        for line in maps:
            path = line.rstrip("\n").partition("/")[2]
            if path and name in path.rpartition("/")[2]:
                return "/" + path
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def machine() -> dict[str, Any]:
    """The drivers and the cards. `broken`: a driver is there, and does not say that there is no GPU."""
    answer: dict[str, Any] = dict.fromkeys(("libcuda", "nvml", "driver", "cuda", "fault"))
    answer.update(cards=[], broken=False)
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        answer["fault"] = f"libcuda.so.1: {error}"
        return answer
    answer["libcuda"] = _loaded("libcuda.so")
    try:
        nvml.nvmlInit()
        answer["nvml"] = _loaded("libnvidia-ml.so")
        answer["driver"] = _text(nvml.nvmlSystemGetDriverVersion())
        version = nvml.nvmlSystemGetCudaDriverVersion()
        answer["cuda"] = f"{version // 1000}.{version % 1000 // 10}"
        answer["cards"] = [_card(index) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        status = cuda.cuInit(0)
        answer["broken"] = status not in NO_DEVICE
        answer["fault"] = f"NVML: {error}" + (f"; cuInit answers {status}" if answer["broken"] else "")
    return answer


def _card(index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    try:
        reserved = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2).reserved
    except nvml.NVMLError:
        reserved = 0  # a driver older than 510 counts it as used
    return {
        "index": index,
        "uuid": _text(nvml.nvmlDeviceGetUUID(handle)),
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "total_bytes": memory.total,
        "reserved_bytes": reserved,
        "used_bytes": memory.used - reserved,
    }


def _own_bytes(handle: Any) -> int | None:  # noqa: ANN401 (an NVML handle)
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid():
            return process.usedGpuMemory
    return None


def context(index: int) -> dict[str, Any]:
    """Bytes of a context on a card; None where NVML does not show this process (another pid namespace)."""
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    # The driver's order of cards may differ from NVML's: the UUID says which one is meant.
    os.environ["CUDA_VISIBLE_DEVICES"] = _text(nvml.nvmlDeviceGetUUID(handle))
    before = _own_bytes(handle) or 0
    cuda = ctypes.CDLL("libcuda.so.1")
    primary = ctypes.c_void_p()
    status = cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(primary), 0)
    after = _own_bytes(handle) if status == 0 else None
    page = ctypes.c_size_t()
    pinned, on_device, minimum = 1, 1, 0
    wanted = _AllocationProp(type=pinned, location_type=on_device)
    if status == 0:
        cuda.cuMemGetAllocationGranularity(ctypes.byref(page), ctypes.byref(wanted), minimum)
    return {
        "status": status,
        "context_bytes": None if after is None else after - before,
        "page_bytes": page.value,
    }


def limit(names: list[str]) -> dict[str, Any]:
    """Which of the entry points lead into the shim, and what an allocation beyond the limit answers.

    `hooks` has one value for each name: true, false, or null where the driver has no such function.
    """
    cuda = ctypes.CDLL("libcuda.so.1")
    libraries = {"cu": cuda}
    try:
        libraries["nvml"] = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        names = [name for name in names if not name.startswith("nvml")]
    libc = ctypes.CDLL(None)
    libc.dlsym.restype = ctypes.c_void_p
    libc.dlsym.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    libc.dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Info)]

    def inside(pointer: int | None) -> bool:
        info = _Info()
        found = pointer is not None and libc.dladdr(pointer, ctypes.byref(info))
        return bool(found) and b"libvcuda" in (info.path or b"")

    hooks: dict[str, bool | None] = {}
    for name in names:
        library = libraries["nvml" if name.startswith("nvml") else "cu"]
        pointer = libc.dlsym(library._handle, name.encode())  # noqa: SLF001 (ctypes has no other name for it)
        hooks[name] = None if pointer is None else inside(pointer)
    answer: dict[str, Any] = {"hooks": hooks, "cuInit": cuda.cuInit(0), "total_bytes": None, "beyond": None}
    for name in ("cuMemAlloc", "cuMemGetInfo", "cuLaunchKernel"):
        pointer = ctypes.c_void_p()
        found = ctypes.c_int()
        version, flags = 12000, ctypes.c_uint64(0)
        try:
            status = cuda.cuGetProcAddress_v2(
                name.encode(), ctypes.byref(pointer), version, flags, ctypes.byref(found)
            )
        except AttributeError:  # a driver before CUDA 12
            status = cuda.cuGetProcAddress(name.encode(), ctypes.byref(pointer), 11030, flags)
        hooks[f"{name} by cuGetProcAddress"] = status == 0 and inside(pointer.value)
    if answer["cuInit"] == 0:
        primary = ctypes.c_void_p()
        free, total, address = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
        answer["context"] = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(primary), 0)
        if answer["context"] == 0:
            cuda.cuCtxSetCurrent(primary)
            cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            answer["total_bytes"] = total.value
            beyond = ctypes.c_size_t(free.value + (2 << 20))
            answer["beyond"] = cuda.cuMemAlloc_v2(ctypes.byref(address), beyond)
    return answer


def main() -> None:
    """Answer the question on the command line."""
    match sys.argv[1:]:
        case ["machine"]:
            answer = machine()
        case ["context", index]:
            answer = context(int(index))
        case ["limit", names]:
            answer = limit(names.split(","))
        case other:
            sys.exit(f"probe: no such question: {other}")
    print(json.dumps(answer))


if __name__ == "__main__":
    main()

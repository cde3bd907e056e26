"""Print what NVML says of the first card, as one JSON object.

It asks through NVIDIA's nvidia-ml-py where that knows a version of a function, else through ctypes.
"""

from __future__ import annotations

import ctypes
import json
import warnings
from typing import Any

import pynvml

ROOM = 64


class ProcessV1(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("bytes", ctypes.c_ulonglong))


class ProcessV2(ctypes.Structure):
    _fields_ = (*ProcessV1._fields_, ("gpu_instance", ctypes.c_uint), ("compute_instance", ctypes.c_uint))


class Sample(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("time", ctypes.c_ulonglong),
        *((name, ctypes.c_uint) for name in ("sm", "memory", "encoder", "decoder")),
    )


class NewSample(ctypes.Structure):
    _fields_ = (
        ("time", ctypes.c_ulonglong),
        ("pid", ctypes.c_uint),
        *((name, ctypes.c_uint) for name in ("sm", "memory", "encoder", "decoder", "jpeg", "flow")),
    )


class Samples(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("since", ctypes.c_ulonglong),
        ("samples", ctypes.POINTER(NewSample)),
    )


library = ctypes.CDLL("libnvidia-ml.so.1")
FUNCTIONS = {
    f"{kind}{version}": (
        f"nvmlDeviceGet{name}RunningProcesses{version}",
        ProcessV1 if not version else ProcessV2,
    )
    for kind, name in (("compute", "Compute"), ("graphics", "Graphics"), ("mps", "MPSCompute"))
    for version in ("", "_v2", "_v3")
}


def processes(function: str, entry: type[ctypes.Structure], device: Any) -> dict[int, int]:
    """Bytes by pid, after the question how many there are has been answered as NVML answers it."""
    count = ctypes.c_uint(0)
    status = library[function](device, ctypes.byref(count), None)
    assert status == (pynvml.NVML_ERROR_INSUFFICIENT_SIZE if count.value else pynvml.NVML_SUCCESS), (
        function,
        status,
    )
    entries = (entry * ROOM)()
    room = ctypes.c_uint(ROOM)
    assert library[function](device, ctypes.byref(room), entries) == pynvml.NVML_SUCCESS
    assert room.value == count.value
    return {one.pid: one.bytes for one in entries[: room.value]}


def samples(device: Any) -> dict[int, int]:
    """SM percent by pid; of none where there are no samples."""
    entries, count = (Sample * ROOM)(), ctypes.c_uint(ROOM)
    status = library.nvmlDeviceGetProcessUtilization(
        device, entries, ctypes.byref(count), ctypes.c_ulonglong(0)
    )
    if status == pynvml.NVML_ERROR_NOT_FOUND:
        return {}
    assert status == pynvml.NVML_SUCCESS
    return {one.pid: one.sm for one in entries[: count.value]}


def new_samples(device: Any) -> dict[int, int]:
    """The same, asked for in the newer way."""
    entries = (NewSample * ROOM)()
    question = Samples((1 << 24) | ctypes.sizeof(Samples), ROOM, 0, entries)
    status = library.nvmlDeviceGetProcessesUtilizationInfo(device, ctypes.byref(question))
    if status == pynvml.NVML_ERROR_NOT_FOUND:
        return {}
    assert status == pynvml.NVML_SUCCESS
    return {one.pid: one.sm for one in entries[: question.count]}


def view() -> dict[str, Any]:
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    old = pynvml.nvmlDeviceGetMemoryInfo(device)
    new = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)
    bar = pynvml.nvmlDeviceGetBAR1MemoryInfo(device)
    details = pynvml.nvmlDeviceGetRunningProcessDetailList(
        device, pynvml.nvmlProcessDetailList_v1, pynvml.NVML_PROCESS_MODE_COMPUTE
    )
    return {
        "name": pynvml.nvmlDeviceGetName(device),
        "v1": {"total": old.total, "used": old.used, "free": old.free},
        "v2": {"total": new.total, "used": new.used, "free": new.free, "reserved": new.reserved},
        "bar1": {"total": bar.bar1Total, "used": bar.bar1Used, "free": bar.bar1Free},
        "lists": {kind: processes(name, entry, device) for kind, (name, entry) in FUNCTIONS.items()},
        "details": {one.pid: one.usedGpuMemory for one in details},
        "utilisation": pynvml.nvmlDeviceGetUtilizationRates(device).gpu,
        "samples": samples(device),
        "new_samples": new_samples(device),
    }


if __name__ == "__main__":
    warnings.simplefilter("error")
    pynvml.nvmlInit()
    print(json.dumps(view()))
    pynvml.nvmlShutdown()

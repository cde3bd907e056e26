"""What NVML says of a simulated card: to everybody, and to a program that has a share of it."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import support
from tests.native.nvml_tools import HOLD, GrantDir, Simulated, holding, python, shared, view
from tests.support import GIB, PAGE_BYTES

LISTS = ["compute", "compute_v2", "compute_v3"]
EMPTY_LISTS = [f"{kind}{version}" for kind in ("graphics", "mps") for version in ("", "_v2", "_v3")]

# ---- the card as it is ----


def test_memory_and_processes_are_those_that_the_driver_counts(simulated: Simulated) -> None:
    env = simulated("V100-SXM2-16GB")
    empty = view(env)
    assert empty["v2"]["total"] == 16 * GIB
    assert empty["v2"]["used"] == 0
    with holding(env, 1024) as one, holding(env, 512) as other:
        used = support.driver_used(env)
        assert set(used) == {one.pid, other.pid}
        told = view(env)
        assert all(told["lists"][kind] == used for kind in LISTS)
        assert all(told["lists"][kind] == {} for kind in EMPTY_LISTS)
        assert told["details"] == used
        new, old = told["v2"], told["v1"]
        assert new["used"] == sum(used.values())
        assert new["total"] == new["used"] + new["free"] + new["reserved"]
        assert (old["total"], old["free"]) == (new["total"], new["free"])
        assert old["used"] == new["used"] + new["reserved"]
        other.kill()
        other.wait()
        assert view(env)["lists"]["compute_v3"] == {one.pid: used[one.pid]}
    assert view(env) == empty


def test_looking_leaves_no_trace(simulated: Simulated) -> None:
    env = simulated()
    for _ in range(3):
        view(env)
    assert support.machine_state(env)["cards"][0]["processes"] == []


def test_utilisation_is_that_of_the_kernels_and_of_the_process_that_launched_them(
    simulated: Simulated,
) -> None:
    env = simulated()
    with holding(env, 64, "busy") as busy, holding(env, 64) as idle:
        deadline = time.monotonic() + 30
        while (told := view(env))["samples"].get(busy.pid) != 100 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert told["samples"] == {busy.pid: 100}
        told = view(env)
        assert told["utilisation"] == 100
        assert told["new_samples"] == {busy.pid: 100}
        samples = python(
            env,
            "import json, pynvml as n; n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex(0)\n"
            "kind, samples = n.nvmlDeviceGetSamples(d, n.NVML_GPU_UTILIZATION_SAMPLES, 0)\n"
            "print(json.dumps([(s.timeStamp, s.sampleValue.uiVal) for s in samples]))",
        )
        assert samples[-1][1] == 100
        assert samples == sorted(samples)
        assert idle.pid not in told["samples"]


CARDS = {
    "V100-SXM2-16GB": ("Tesla V100-SXM2-16GB", 16384, [7, 0], "Volta", None),
    "T4": ("Tesla T4", 15360, [7, 5], "Turing", None),
    "A100-SXM4-80GB": ("NVIDIA A100-SXM4-80GB", 81920, [8, 0], "Ampere", [0, 0]),
    "L4": ("NVIDIA L4", 23034, [8, 9], "Ada", None),
    "H100-SXM5-80GB": ("NVIDIA H100 80GB HBM3", 81559, [9, 0], "Hopper", [0, 0]),
    "RTX4090": ("NVIDIA GeForce RTX 4090", 24564, [8, 9], "Ada", None),
}

DESCRIBE = """
import json, pynvml as n
def ask(function, *arguments):
    try:
        answer = function(*arguments)
    except n.NVMLError_NotSupported:
        return None
    return answer
n.nvmlInit()
cards = []
for i in range(n.nvmlDeviceGetCount()):
    d = n.nvmlDeviceGetHandleByIndex(i)
    p = n.nvmlDeviceGetPciInfo(d)
    cards.append({
        "name": n.nvmlDeviceGetName(d), "mib": n.nvmlDeviceGetMemoryInfo(d).total >> 20,
        "capability": n.nvmlDeviceGetCudaComputeCapability(d), "architecture": n.nvmlDeviceGetArchitecture(d),
        "mig": ask(n.nvmlDeviceGetMigMode, d), "ecc": ask(n.nvmlDeviceGetEccMode, d),
        "fan": ask(n.nvmlDeviceGetFanSpeed, d),
        "uuid": n.nvmlDeviceGetUUID(d), "bus": p.busId, "id": p.pciDeviceId,
        "power": [n.nvmlDeviceGetPowerUsage(d), n.nvmlDeviceGetEnforcedPowerLimit(d)],
        "state": n.nvmlDeviceGetPerformanceState(d),
        "same": [
            n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(n.nvmlDeviceGetUUID(d))),
            n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(p.busId)),
        ],
    })
print(json.dumps(cards))
"""


def test_each_card_says_what_such_a_card_says(simulated: Simulated) -> None:
    told = python(simulated(",".join(CARDS)), DESCRIBE)
    architectures = {"Volta": 5, "Turing": 6, "Ampere": 7, "Ada": 8, "Hopper": 9}
    for index, (card, (name, mib, capability, architecture, mig)) in enumerate(
        zip(told, CARDS.values(), strict=True)
    ):
        assert card["name"] == name
        assert card["mib"] == mib
        assert card["capability"] == capability
        assert card["architecture"] == architectures[architecture]
        assert card["mig"] == mig
        assert card["ecc"] == (None if "GeForce" in name else [1, 1])
        assert card["fan"] == (0 if "GeForce" in name else None)
        assert card["same"] == [index, index]
        assert card["id"] & 0xFFFF == 0x10DE
        assert 0 < card["power"][0] < card["power"][1]
        assert card["state"] == (
            8 if card["name"] in {"Tesla T4", "NVIDIA L4", "NVIDIA GeForce RTX 4090"} else 0
        )
    for unique in ("uuid", "bus"):
        assert len({card[unique] for card in told}) == len(CARDS)


def test_every_card_of_the_table_has_a_board() -> None:
    lines = (support.ROOT / "native" / "simgpu" / "cards.csv").read_text().splitlines()
    cards = {
        row["pci_device_id"] for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    }
    boards = (support.ROOT / "native" / "simgpu" / "nvml_board.c").read_text()
    assert {number.upper() for number in re.findall(r"\{0x([0-9a-f]{4}), ", boards)} == cards


def test_bus_ids_are_the_same_in_cuda_and_in_nvml(simulated: Simulated) -> None:
    env = simulated("T4,A10,V100-SXM2-16GB")
    told = python(
        env,
        "import ctypes, json\n"
        "cuda = ctypes.CDLL('libcuda.so.1')\n"
        "assert cuda.cuInit(0) == 0\n"
        "text = ctypes.create_string_buffer(32)\n"
        "ids = [(cuda.cuDeviceGetPCIBusId(text, 32, i), text.value.decode())[1] for i in range(3)]\n"
        "print(json.dumps(ids))",
    )
    assert [f"0000{bus}" for bus in told] == [card["bus"] for card in python(env, DESCRIBE)]


EVERY_FUNCTION = """
import ctypes, json, os, re, sys
text = re.sub(r"/\\*.*?\\*/", "", open(sys.argv[1]).read(), flags=re.S)
names = sorted(set(re.findall(r"\\bDECLDIR\\s+(nvml\\w+)\\s*\\(", text)))
library = ctypes.CDLL("libnvidia-ml.so.1")
device = ctypes.c_void_p()
def calls(name, *arguments):
    child = os.fork()
    if child == 0:
        function = library[name]
        function.restype = ctypes.c_void_p
        function(*arguments, *[None] * 10)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
ends = {name: [calls(name)] for name in names}
assert library.nvmlInit_v2() == 0 and library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)) == 0
for name in names:
    ends[name] += [calls(name), calls(name, device)]
print(json.dumps(ends))
"""


def test_every_function_of_the_header_is_there_and_none_crashes(simulated: Simulated) -> None:
    header = support.ROOT / "build" / "include" / "nvml" / "nvml.h"
    ends = python(simulated("A100-SXM4-40GB"), EVERY_FUNCTION, str(header))
    assert len(ends) > 400
    assert {name: codes for name, codes in ends.items() if any(codes)} == {}


LOSE = """
import json, os, pynvml as n, subprocess, sys
n.nvmlInit()
devices = [n.nvmlDeviceGetHandleByIndex(i) for i in (0, 1)]
events = n.nvmlEventSetCreate()
for device in devices:
    n.nvmlDeviceRegisterEvents(device, n.nvmlEventTypeXidCriticalError, events)
def wait(milliseconds):
    try:
        event = n.nvmlEventSetWait_v2(events, milliseconds)
    except n.NVMLError_Timeout:
        return None
    return [event.eventType, event.eventData]
def memory(device):
    try:
        return n.nvmlDeviceGetMemoryInfo(device).total >> 20
    except n.NVMLError_GpuIsLost:
        return "lost"
before = wait(0)
fault = {**os.environ, "SIMGPU_FAULTS": "card0:lost"}
subprocess.run([sys.argv[1], "0"], stdin=subprocess.DEVNULL, capture_output=True, env=fault)
print(json.dumps([before, wait(20000), wait(0), *map(memory, devices)]))
n.nvmlEventSetFree(events)
"""


def test_losing_a_card_is_an_event_and_an_error(simulated: Simulated) -> None:
    env = simulated("T4,T4")
    assert python(env, LOSE, str(HOLD)) == [None, [8, 79], None, "lost", 15360]


# ---- a share of it ----


def test_a_share_looks_like_a_card_of_its_own(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    bare = view(env)
    limit = 4 * GIB
    inside, directory = shared(env, grant_dir, limit)
    with holding(env, 2048), holding(inside, 1024) as own:
        used = support.driver_used(env)[own.pid]
        assert support.ledger_used(directory) == used
        told = view(inside)
        assert told["v1"] == {"total": limit, "used": used, "free": limit - used}
        assert told["v2"] == {"total": limit, "used": used, "free": limit - used, "reserved": 0}
        assert told["bar1"] == bare["bar1"]
        assert told["name"] == bare["name"]
        assert all(told["lists"][kind] == {own.pid: used} for kind in LISTS)
        assert all(told["lists"][kind] == {} for kind in EMPTY_LISTS)
        assert told["details"] == {own.pid: used}
    told = view(inside)
    assert told["v2"] == {"total": limit, "used": 0, "free": limit, "reserved": 0}
    assert told["lists"]["compute_v3"] == {}


def test_two_shares_of_a_card_see_only_their_own(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    one, one_directory = shared(env, grant_dir, 4 * GIB, name="one")
    other, other_directory = shared(env, grant_dir, 6 * GIB, name="other")
    with holding(one, 512) as first, holding(one, 256) as second, holding(other, 1024) as third:
        used = support.driver_used(env)
        assert view(one)["lists"]["compute_v3"] == {pid: used[pid] for pid in (first.pid, second.pid)}
        assert view(other)["lists"]["compute_v3"] == {third.pid: used[third.pid]}
        assert (
            view(one)["v2"]["used"]
            == used[first.pid] + used[second.pid]
            == support.ledger_used(one_directory)
        )
        assert view(other)["v2"]["used"] == used[third.pid] == support.ledger_used(other_directory)
        assert view(env)["lists"]["compute_v3"] == used


def test_samples_of_neighbours_do_not_show(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    one, _ = shared(env, grant_dir, 4 * GIB, name="one")
    other, _ = shared(env, grant_dir, 4 * GIB, name="other")
    with holding(one, 64, "busy") as own, holding(other, 64) as idle:
        deadline = time.monotonic() + 30
        while not (told := view(one))["samples"] and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(told["samples"]) == {own.pid}
        assert set(view(one)["new_samples"]) == {own.pid}
        assert view(other)["samples"] == {}
        assert view(other)["new_samples"] == {}
        assert idle.pid in view(other)["lists"]["compute"]


def test_free_is_never_more_than_the_card_has(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    inside, _ = shared(env, grant_dir, 12 * GIB)
    with holding(env, 8192):
        told, card = view(inside), view(env)
        assert told["v2"] == {"total": 12 * GIB, "used": 0, "free": card["v2"]["free"], "reserved": 0}


def test_a_whole_card_is_shown_as_it_is(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    inside, _ = shared(env, grant_dir, 16 * GIB, whole=True)
    with holding(env, 512), holding(inside, 256):
        told = view(env)
        assert len(told["lists"]["compute_v3"]) == 2
        assert view(inside) == told


def test_without_a_grant_the_card_is_shown_as_it_is(simulated: Simulated) -> None:
    env = simulated()
    with holding(env, 512):
        assert view(support.shim_environment(env, None)) == view(env)


def test_a_card_that_is_not_granted_shows_nobodys_processes(
    simulated: Simulated, grant_dir: GrantDir
) -> None:
    env = simulated("T4,V100-SXM2-16GB")
    directory = grant_dir(support.card_uuids(env)[1], 2 * GIB)
    with holding(env, 512):  # of card 0, which is not granted
        told, card = view(support.shim_environment(env, directory)), view(env)
        assert told["v2"] == card["v2"]
        assert told["lists"]["compute_v3"] == {}


WATCH = """
import pynvml, sys
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
for line in sys.stdin:
    print(pynvml.nvmlDeviceGetMemoryInfo(device).total, flush=True)
"""


def test_a_limit_that_changes_is_shown_at_once(
    simulated: Simulated, grant_dir: GrantDir, tmp_path: Path
) -> None:
    env = simulated()
    inside, directory = shared(env, grant_dir, 2 * GIB)
    larger = support.make_share(tmp_path / "larger", support.card_uuids(env)[0], 3 * GIB)
    watching = subprocess.Popen(
        [sys.executable, "-c", WATCH], env=inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with watching:
        assert watching.stdin is not None
        assert watching.stdout is not None

        def total() -> int:
            print(file=watching.stdin, flush=True)
            return int(watching.stdout.readline())

        assert total() == 2 * GIB
        (directory / "grant").chmod(0o644)
        with (directory / "grant").open("r+b") as grant:  # in place, as whoever resizes a share does it
            grant.write((larger / "grant").read_bytes())
        assert total() == 3 * GIB
        watching.stdin.close()


FORK = """
import json, os, pynvml
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
def told():
    found = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
    return [pynvml.nvmlDeviceGetMemoryInfo(device).total, [one.pid for one in found]]
before = told()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, json.dumps(told()).encode())
    os._exit(0)
os.close(writer)
after = os.read(reader, 4096).decode()
assert os.waitpid(child, 0)[1] == 0
print(json.dumps([before, json.loads(after), told()]))
"""


def test_a_forked_child_sees_what_its_parent_saw(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    inside, _ = shared(env, grant_dir, 2 * GIB)
    with holding(inside, 64) as own:
        assert python(inside, FORK) == [[2 * GIB, [own.pid]]] * 3


SELF = """
import ctypes, json, os, pynvml
cuda = ctypes.CDLL("libcuda.so.1")
context, memory = ctypes.c_void_p(), ctypes.c_uint64()
assert cuda.cuInit(0) == 0
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
assert cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(64 << 20)) == 0
pynvml.nvmlInit()
device = pynvml.nvmlDeviceGetHandleByIndex(0)
found = {one.pid: one.usedGpuMemory for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
used = pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2).used
print(json.dumps([list(found) == [os.getpid()], used == found[os.getpid()] > 64 << 20]))
"""


@pytest.mark.parametrize("inside", [False, True], ids=["card", "share"])
def test_a_program_finds_itself(simulated: Simulated, grant_dir: GrantDir, inside: bool) -> None:
    env = simulated()
    if inside:
        env, _ = shared(env, grant_dir, 2 * GIB)
    assert python(env, SELF) == [True, True]


def test_programs_are_listed_as_long_as_they_live(simulated: Simulated, grant_dir: GrantDir) -> None:
    env = simulated()
    inside, _ = shared(env, grant_dir, 4 * GIB)
    with holding(inside, 512) as own:
        assert list(view(inside)["lists"]["compute_v3"]) == [own.pid]
        own.kill()
        own.wait()
        told = view(inside)
        assert told["lists"]["compute_v3"] == {}
        assert told["v2"]["used"] < PAGE_BYTES
    assert [path.name for path in Path(env["SIMGPU_DIR"]).iterdir()] == ["machine"]

"""What contexts cost: green ones, and what a program has a context keep for its kernels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from tests.support import (
    BUILD,
    GIB,
    MIB,
    SHIM,
    SIMULATOR,
    card_uuids,
    make_share,
    need,
    simulator_environment,
)
from vcuda.ledger import Kind, Ledger

OUT_OF_MEMORY = 2
STACK, FIFO, HEAP = 0, 1, 2
CONTEXT = 300 * MIB
TRIVIAL_UUID = "GPU-11111111-1111-1111-1111-111111111111"

PROLOGUE = """
import ctypes, json, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, other, value = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
def tell(*results):
    print(json.dumps(results), flush=True)
    sys.stdin.readline()
assert cuda.cuInit(0) == 0
"""


class Program:
    """A CUDA program that stops at each `tell`, and the share's ledger at that moment."""

    def __init__(self, script: str, env: dict[str, str], share: Path) -> None:
        self.share = share
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", PROLOGUE + script],
            env={**env, "LD_PRELOAD": str(SHIM), "VCUDA_GRANT_DIR": str(share)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def told(self) -> list[Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def charged(self) -> int:
        with Ledger(self.share / "ledger") as ledger:
            (process,) = ledger.read().processes
            return process.cards[0].bytes_by_kind[Kind.CONTEXT]

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)


@pytest.fixture
def simulated(tmp_path: Path) -> tuple[dict[str, str], Path]:
    need(SHIM, SIMULATOR / "libcuda.so.1", SIMULATOR / "libnvidia-ml.so.1")
    env = simulator_environment(tmp_path)
    return env, make_share(tmp_path, card_uuids(env)[0], 2 * GIB, context_bytes=CONTEXT)


LIMITS = f"""
assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
assert cuda.cuCtxSetCurrent(context) == 0
def set(limit, bytes):
    result = cuda.cuCtxSetLimit(limit, ctypes.c_size_t(bytes))
    assert cuda.cuCtxGetLimit(ctypes.byref(value), limit) == 0
    tell(result, value.value)
set({HEAP}, {64 * MIB})
set({HEAP}, {16 * MIB})
set({FIFO}, {5 * MIB})
set({STACK}, 2048)
set({HEAP}, {4 * GIB})
set({HEAP}, {MIB})
assert cuda.cuDevicePrimaryCtxRelease_v2(0) == 0
tell()
"""


def test_heap_queue_and_stack_of_a_context_are_charged_beyond_the_defaults(
    simulated: tuple[dict[str, str], Path],
) -> None:
    stack = 1024 * 80 * 2048  # of a V100: threads that can be resident at once
    heap, queue = 8 * MIB, MIB  # the driver's defaults
    with Program(LIMITS, *simulated) as program:
        for answer, charged in [
            ([0, 64 * MIB], 64 * MIB - heap),
            ([0, 16 * MIB], 16 * MIB - heap),
            ([0, 5 * MIB], 16 * MIB - heap + 5 * MIB - queue),
            ([0, 2048], 16 * MIB - heap + 5 * MIB - queue + stack),
            ([OUT_OF_MEMORY, 16 * MIB], 16 * MIB - heap + 5 * MIB - queue + stack),
            ([0, MIB], 5 * MIB - queue + stack),
        ]:
            assert program.told() == answer
            assert program.charged() == CONTEXT + charged
            program.go_on()
        assert program.told() == []
        assert program.charged() == 0
        program.go_on()


GREEN = """
tell(cuda.cuGreenCtxCreate(ctypes.byref(context), None, 0, 0))
tell(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(other), 0))
tell(cuda.cuGreenCtxDestroy(context))
tell(cuda.cuDevicePrimaryCtxRelease_v2(0))
tell(cuda.cuGreenCtxCreate(ctypes.byref(context), None, 0, 0))
tell(cuda.cuGreenCtxDestroy(context))
"""


def test_green_context_is_charged_as_the_primary_one_that_it_retains(tmp_path: Path) -> None:
    need(SHIM, BUILD / "trivial" / "libcuda.so.1")
    env = {**simulator_environment(tmp_path), "LD_LIBRARY_PATH": str(BUILD / "trivial")}
    share = make_share(tmp_path, TRIVIAL_UUID, 2 * GIB, context_bytes=CONTEXT)
    with Program(GREEN, env, share) as program:
        for charged in (CONTEXT, CONTEXT, CONTEXT, 0, CONTEXT, 0):
            assert program.told() == [0]
            assert program.charged() == charged
            program.go_on()


def test_green_context_beyond_the_share_is_refused(tmp_path: Path) -> None:
    need(SHIM, BUILD / "trivial" / "libcuda.so.1")
    env = {**simulator_environment(tmp_path), "LD_LIBRARY_PATH": str(BUILD / "trivial")}
    share = make_share(tmp_path, TRIVIAL_UUID, CONTEXT - 2 * MIB, context_bytes=CONTEXT)
    with Program("tell(cuda.cuGreenCtxCreate(ctypes.byref(context), None, 0, 0))", env, share) as program:
        assert program.told() == [OUT_OF_MEMORY]
        assert program.charged() == 0
        program.go_on()

"""Programs on the simulated card, each a real client: `python simgpu_clients.py NAME [ARGUMENT]...`.

They print one JSON object. test_simgpu_work.py starts them, in an environment that leads to the simulated
driver.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path

MS = 1_000_000

SPIN = """
.version 6.0
.target sm_50
.address_size 64
.visible .entry spin(.param .u64 duration) {
  .reg .u64 %r<5>; .reg .pred %p;
  ld.param.u64 %r1, [duration];
  mov.u64 %r2, %globaltimer;
again:
  mov.u64 %r3, %globaltimer;
  sub.u64 %r4, %r3, %r2;
  setp.lt.u64 %p, %r4, %r1;
  @%p bra again;
  ret;
}
"""


def cubin(path: str) -> dict[str, object]:
    """What cuda-bindings learns of the kernel `add` of a cubin, and of its variables."""
    from cuda.bindings import driver

    def must(result: tuple) -> object:
        code, *values = result
        assert code == driver.CUresult.CUDA_SUCCESS, code
        return values[0] if len(values) == 1 else tuple(values)

    must(driver.cuInit(0))
    context = must(driver.cuDevicePrimaryCtxRetain(0))
    must(driver.cuCtxSetCurrent(context))
    module = must(driver.cuModuleLoadData(Path(path).read_bytes()))
    function = must(driver.cuModuleGetFunction(module, b"add"))
    count = must(driver.cuModuleGetFunctionCount(module))
    prefix = "CU_FUNC_ATTRIBUTE_"

    def attribute(name: str) -> object:
        return must(driver.cuFuncGetAttribute(getattr(driver.CUfunction_attribute, prefix + name), function))

    answers = {
        "kernels": count,
        "parameters": [list(must(driver.cuFuncGetParamInfo(function, i))) for i in range(4)],
        "shared": attribute("SHARED_SIZE_BYTES"),
        "threads": attribute("MAX_THREADS_PER_BLOCK"),
        "binary": attribute("BINARY_VERSION"),
        "constants": attribute("CONST_SIZE_BYTES"),
    }
    for name in ("counter", "table", "factors", "started"):
        address, size = must(driver.cuModuleGetGlobal(module, name.encode()))
        content = bytearray(size)
        must(driver.cuMemcpyDtoH(content, address, size))
        answers[name] = content.hex() if size <= 16 else size
    return answers


def core() -> dict[str, object]:
    """cuda-core: a compiled kernel, timed events, a graph of branches, memory and a callback in a graph."""
    from cuda.core import (
        Device,
        EventOptions,
        GraphMemoryResource,
        LaunchConfig,
        ObjectCode,
        Program,
        ProgramOptions,
        launch,
    )
    from cuda.core.graph import GraphBuilder

    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    timed = EventOptions(timing_enabled=True)
    spin = ObjectCode.from_ptx(SPIN.encode()).get_kernel("spin")
    one = LaunchConfig(grid=1, block=1)

    def elapsed(work: Callable[[], object]) -> float:
        launch(stream, one, spin, ctypes.c_uint64(400 * MS))  # until all that follows is submitted
        start = stream.record(options=timed)
        work()
        end = stream.record(options=timed)
        stream.sync()
        return round(end - start, 4)

    source = (
        'extern "C" __global__ void scale(float *values, float factor, signed char) { values[0] *= factor; }'
    )
    options = ProgramOptions(arch=f"sm_{device.arch}")
    scale = Program(source, code_type="c++", options=options).compile("cubin").get_kernel("scale")

    builder = device.create_graph_builder()
    builder.begin_building()
    launch(builder, one, spin, ctypes.c_uint64(1 * MS))
    left, right = builder.split(2)
    launch(left, one, spin, ctypes.c_uint64(2 * MS))
    launch(right, one, spin, ctypes.c_uint64(4 * MS))
    branches = GraphBuilder.join(left, right).end_building().complete()

    memory = GraphMemoryResource(device)
    builder = device.create_graph_builder()
    builder.begin_building("thread_local")
    buffer = memory.allocate(3 << 20, stream=builder)
    buffer.fill(b"\x01", stream=builder)
    launch(builder, one, scale, buffer, ctypes.c_float(1), ctypes.c_int8(1))
    buffer.close(builder)
    called: list[int] = []
    builder.callback(lambda: called.append(1))
    allocating = builder.end_building().complete()
    allocating.launch(stream)
    allocating.launch(stream)
    stream.sync()
    reserved = memory.attributes.reserved_mem_current
    memory.trim()
    return {
        "arguments": [[info.offset, info.size] for info in scale.arguments_info],
        "spin": elapsed(lambda: launch(stream, one, spin, ctypes.c_uint64(3 * MS))),
        "branches": elapsed(lambda: branches.launch(stream)),
        "called": len(called),
        "reserved": reserved,
        "trimmed": memory.attributes.reserved_mem_current,
    }


def numba() -> dict[str, object]:
    """numba-cuda: kernels on streams, events, a cooperative kernel, atomics, managed and pinned memory."""
    import warnings

    import numpy as np
    from numba import cuda

    warnings.simplefilter("ignore")

    @cuda.jit
    def copy(source, target):
        at = cuda.grid(1)
        shared = cuda.shared.array(128, dtype=np.float32)
        if at < source.size:
            shared[cuda.threadIdx.x] = source[at]
            target[at] = shared[cuda.threadIdx.x]

    @cuda.jit
    def together(values):
        cuda.cg.this_grid().sync()
        values[0] = 1

    stream = cuda.stream()
    source = cuda.to_device(np.arange(1 << 16, dtype=np.float32), stream=stream)
    target = cuda.device_array_like(source)
    copy[512, 128, stream](source, target)  # compiled, and loaded
    start, end = cuda.event(), cuda.event()
    start.record(stream)
    copy[512, 128, stream](source, target)
    end.record(stream)
    end.synchronize()
    together[10, 32](source)
    managed = cuda.managed_array(100, dtype=np.int32)
    managed[:] = 3
    pinned = cuda.pinned_array(10)
    pinned[:] = 7
    back = source.copy_to_host(stream=stream)
    stream.synchronize()
    shared = next(iter(copy.get_shared_mem_per_block().values()))
    answers = {
        "elapsed": cuda.event_elapsed_time(start, end) > 0,
        "shared": shared,
        "managed": int(managed.sum()),
        "pinned": float(pinned.sum()),
        "back": bool((back == np.arange(1 << 16)).all()),
    }
    cuda.close()
    return answers


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    print(json.dumps({"cubin": cubin, "core": core, "numba": numba}[name](*arguments)))

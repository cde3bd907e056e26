"""NVIDIA's cuda-bindings: every entry point through cuGetProcAddress, memory by cuMemCreate and cuMemMap.

The kernel comes from cuda-core's Program, so from NVIDIA's run-time compiler.
"""

import ctypes
from dataclasses import dataclass
from importlib.metadata import version

from cuda.bindings import driver
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
from script import OutOfMemoryError, follow

SOURCE = """
extern "C" __global__ void scale(float *values, float factor) {
    values[blockIdx.x * blockDim.x + threadIdx.x] *= factor;
}
"""
THREADS = 256


@dataclass(frozen=True)
class Block:
    """Physical memory of the card, mapped at an address of this process."""

    handle: driver.CUmemGenericAllocationHandle
    address: int
    size_bytes: int


def must(result: tuple) -> object:
    """The values of a call that went well."""
    code, *values = result
    if code == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfMemoryError
    if code != driver.CUresult.CUDA_SUCCESS:
        raise SystemExit(f"cuda_bindings: {code.name}")
    return values[0] if len(values) == 1 else tuple(values)


class Bindings:
    """The client."""

    def __init__(self) -> None:
        self._device = Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()
        options = ProgramOptions(arch=f"sm_{self._device.arch}")
        compiled = Program(SOURCE, code_type="c++", options=options).compile("cubin")
        self._scale = compiled.get_kernel("scale")
        location = driver.CUmemLocation()
        location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        location.id = 0
        self._wanted = driver.CUmemAllocationProp()
        self._wanted.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        self._wanted.location = location
        self._access = driver.CUmemAccessDesc()
        self._access.location = location
        self._access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE

    def describe(self) -> str:
        return f"cuda-bindings {version('cuda-bindings')}, cuda-core {version('cuda-core')}"

    def memory(self) -> tuple[int, int]:
        return must(driver.cuMemGetInfo())

    def allocate(self, size_bytes: int) -> Block:
        handle = must(driver.cuMemCreate(size_bytes, self._wanted, 0))
        address = must(driver.cuMemAddressReserve(size_bytes, 0, 0, 0))
        must(driver.cuMemMap(address, size_bytes, 0, handle, 0))
        must(driver.cuMemSetAccess(address, size_bytes, [self._access], 1))
        return Block(handle, int(address), size_bytes)

    def release(self, block: Block) -> None:
        must(driver.cuMemUnmap(block.address, block.size_bytes))
        must(driver.cuMemAddressFree(block.address, block.size_bytes))
        must(driver.cuMemRelease(block.handle))

    def write(self, block: Block, offset: int, content: bytes) -> None:
        must(driver.cuMemcpyHtoD(block.address + offset, content, len(content)))

    def read(self, block: Block, offset: int, size_bytes: int) -> bytes:
        content = bytearray(size_bytes)
        must(driver.cuMemcpyDtoH(content, block.address + offset, size_bytes))
        return bytes(content)

    def launch(self, block: Block, size_bytes: int) -> None:
        # Times one: what is read back is what was written, on a card that computes and on one that does not.
        config = LaunchConfig(grid=size_bytes // 4 // THREADS, block=THREADS)
        launch(self._stream, config, self._scale, block.address, ctypes.c_float(1.0))
        self._stream.sync()


if __name__ == "__main__":
    follow(Bindings())

"""numba-cuda: a kernel in Python, compiled for this card by NVIDIA's NVVM, memory by cuMemAlloc."""

import warnings
from importlib.metadata import version

import numpy as np
from numba import cuda
from numba.core.errors import NumbaPerformanceWarning
from numba.cuda.cudadrv.devicearray import DeviceNDArray
from numba.cuda.cudadrv.driver import CudaAPIError
from script import OutOfMemoryError, follow

CUDA_ERROR_OUT_OF_MEMORY = 2
THREADS = 256

warnings.simplefilter("ignore", NumbaPerformanceWarning)


@cuda.jit
def keep(values):  # noqa: ANN001, ANN201 (numba's own types)
    """Write each value to where it is: what is read back is what was written, on any card."""
    index = cuda.grid(1)
    if index < values.size:
        values[index] = values[index] ^ 0


class Numba:
    """The client. Blocks are known by number, since numba frees an array with the last reference to it."""

    def __init__(self) -> None:
        self._context = cuda.current_context()
        self._arrays: dict[int, DeviceNDArray] = {}
        self._next = 0

    def describe(self) -> str:
        return f"numba-cuda {version('numba-cuda')}"

    def memory(self) -> tuple[int, int]:
        free, total = self._context.get_memory_info()
        return free, total

    def allocate(self, size_bytes: int) -> int:
        try:
            array = cuda.device_array(size_bytes, dtype=np.uint8)
        except CudaAPIError as error:
            if error.code == CUDA_ERROR_OUT_OF_MEMORY:
                raise OutOfMemoryError from error
            raise
        self._next += 1
        self._arrays[self._next] = array
        return self._next

    def release(self, block: int) -> None:
        del self._arrays[block]
        # numba keeps what is free for later; a neighbour of ours would rather have it now.
        self._context.memory_manager.deallocations.clear()

    def write(self, block: int, offset: int, content: bytes) -> None:
        part = self._arrays[block][offset : offset + len(content)]
        part.copy_to_device(np.frombuffer(content, dtype=np.uint8))

    def read(self, block: int, offset: int, size_bytes: int) -> bytes:
        return self._arrays[block][offset : offset + size_bytes].copy_to_host().tobytes()

    def launch(self, block: int, size_bytes: int) -> None:
        keep[size_bytes // THREADS, THREADS](self._arrays[block][:size_bytes])
        cuda.synchronize()


if __name__ == "__main__":
    follow(Numba())

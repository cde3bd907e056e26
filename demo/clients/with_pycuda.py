"""pycuda: linked with libcuda.so.1 directly, a context of its own, memory by cuMemAlloc, a kernel in PTX."""

import numpy as np
import pycuda
import pycuda.driver as driver
from script import OutOfMemoryError, follow

PTX = b"""
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
SPIN_NS = 200_000


class PyCuda:
    """The client."""

    def __init__(self) -> None:
        driver.init()
        self._context = driver.Device(0).make_context()
        self._spin = driver.module_from_buffer(PTX).get_function("spin")

    def describe(self) -> str:
        return f"pycuda {pycuda.VERSION_TEXT}"

    def memory(self) -> tuple[int, int]:
        return driver.mem_get_info()

    def allocate(self, size_bytes: int) -> driver.DeviceAllocation:
        try:
            return driver.mem_alloc(size_bytes)
        except driver.MemoryError as error:
            raise OutOfMemoryError from error

    def release(self, block: driver.DeviceAllocation) -> None:
        block.free()

    def write(self, block: driver.DeviceAllocation, offset: int, content: bytes) -> None:
        driver.memcpy_htod(int(block) + offset, np.frombuffer(content, dtype=np.uint8))

    def read(self, block: driver.DeviceAllocation, offset: int, size_bytes: int) -> bytes:
        content = np.empty(size_bytes, dtype=np.uint8)
        driver.memcpy_dtoh(content, int(block) + offset)
        return content.tobytes()

    def launch(self, block: driver.DeviceAllocation, size_bytes: int) -> None:  # noqa: ARG002 (it only waits)
        self._spin(np.uint64(SPIN_NS), block=(1, 1, 1), grid=(1, 1))
        driver.Context.synchronize()

    def close(self) -> None:
        """Give the context back before Python takes the module apart."""
        self._context.pop()


if __name__ == "__main__":
    client = PyCuda()
    try:
        follow(client)
    finally:
        client.close()

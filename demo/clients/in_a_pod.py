"""A program that knows nothing of shares, on NVIDIA's own bindings: `python in_a_pod.py [hold BYTES]`.

Without arguments it prints the size of the card that it sees, whether all that is free of it can be had, and
whether more can: 0 is success, 2 is CUDA_ERROR_OUT_OF_MEMORY. With `hold` it takes so much, says whether it
got it, and keeps it until its input ends.
"""

import sys

from cuda.bindings import driver

GRANULARITY = 2 << 20


def memory() -> None:
    """Take all of it, and more."""
    _, free, total = driver.cuMemGetInfo()
    fits, _ = driver.cuMemAlloc(free // GRANULARITY * GRANULARITY - GRANULARITY)
    beyond, _ = driver.cuMemAlloc(4 * GRANULARITY)
    print(total, int(fits), int(beyond), flush=True)


def hold(size: int) -> None:
    """Take a part of it, for as long as somebody wants."""
    result, _ = driver.cuMemAlloc(size)
    print(int(result), flush=True)
    sys.stdin.readline()


def main() -> None:
    """Use the first card."""
    driver.cuInit(0)
    _, context = driver.cuDevicePrimaryCtxRetain(0)
    driver.cuCtxSetCurrent(context)
    if sys.argv[1:2] == ["hold"]:
        hold(int(sys.argv[2]))
    else:
        memory()


if __name__ == "__main__":
    main()

"""Where the native libraries are: in the package (a wheel), or in build/native (a checkout)."""

from pathlib import Path

from vcuda.errors import VcudaError

_PACKAGE = Path(__file__).resolve().parent


def directory() -> Path:
    """The directory that holds libvcuda.so and sim/.

    Raises:
        VcudaError: the libraries were not built.

    """
    for candidate in (_PACKAGE / "_lib", _PACKAGE.parent / "build" / "native"):
        if (candidate / "libvcuda.so").exists():
            return candidate
    raise VcudaError("libvcuda.so is not built; run 'make setup' in the checkout, or install the wheel")


def shim() -> Path:
    """libvcuda.so, at a path that LD_PRELOAD can hold.

    Raises:
        VcudaError: it was not built, or its path has a space or a colon, at which the dynamic linker splits.

    """
    path = directory() / "libvcuda.so"
    if any(character in str(path) for character in " :"):
        raise VcudaError(
            f"{path}: LD_PRELOAD cannot name a path with a space or a colon; install vcuda elsewhere"
        )
    return path


def simulator() -> Path:
    """The directory of the simulated libcuda.so.1 and libnvidia-ml.so.1.

    Raises:
        VcudaError: they were not built.

    """
    path = directory() / "sim"
    if not (path / "libcuda.so.1").exists():
        raise VcudaError(f"{path}/libcuda.so.1 is not there; run 'make setup' in the checkout")
    return path

"""What pyproject.toml cannot say of the build: the C binding, the kubelet's protocol, the wheel's libraries.

The binding (vcuda._abi) is compiled from the same ledger.c and grant.c as the shim, against Python's stable
ABI. A wheel also holds libvcuda.so, the simulated driver, and the benchmark's workload, built by
native/Makefile. An editable install holds none of them: it uses build/native, where `make` puts them.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CARRIED = ("libvcuda.so", "sim/libcuda.so.1", "sim/libnvidia-ml.so.1", "sim/simgpu-stat", "bench/cores")


class BuildWithLibraries(build_py):
    """build_py that also builds the native libraries and copies them into the package."""

    def run(self) -> None:
        """Build the package, then, unless the install is editable, add the libraries."""
        super().run()
        if self.editable_mode:
            return
        subprocess.run([os.environ.get("MAKE", "make"), "-C", str(ROOT / "native"), "package"], check=True)
        for name in CARRIED:
            target = Path(self.build_lib) / "vcuda" / "_lib" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # A checkout keeps what debuggers need; a wheel has no use for it.
            strip = os.environ.get("STRIP", "strip")
            source = str(ROOT / "build" / "native" / name)
            subprocess.run([strip, "--strip-unneeded", "-o", str(target), source], check=True)
            target.chmod(0o755)


class TaggedWheel(bdist_wheel):
    """bdist_wheel whose tag says what `tests/native/test_wheel.py` checks: glibc 2.17 is enough."""

    def get_tag(self) -> tuple[str, str, str]:
        """Replace linux_ARCH by manylinux2014_ARCH."""
        python, abi, platform = super().get_tag()
        return python, abi, platform.replace("linux_", "manylinux2014_", 1)


# The node agent's side of the kubelet's protocol is made by protoc; setuptools must find it as a package.
if not (ROOT / "deviceplugin" / "_proto" / "__init__.py").exists():
    subprocess.run([sys.executable, str(ROOT / "deviceplugin" / "protocol" / "generate.py")], check=True)

setup(
    cffi_modules=["native/binding.py:ffibuilder"],
    cmdclass={"build_py": BuildWithLibraries, "bdist_wheel": TaggedWheel},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)

"""Makes deviceplugin/_proto from the .proto files beside this one, with types: `python generate.py`.

Run by the build; what it writes is not kept in the repository. Needs grpcio-tools and mypy-protobuf.
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "_proto"
_TITLE = '"""Generated from deviceplugin/protocol by generate.py; not to be edited."""\n'
_KINDS = ("python", "grpc_python", "mypy", "mypy_grpc")


def generate(package: Path = PACKAGE) -> None:
    """Write the messages, the services and their types; files that are there already are replaced.

    Raises:
        subprocess.CalledProcessError: protoc refused.

    """
    package.mkdir(exist_ok=True)
    # So that what is generated imports itself by its place in the package.
    virtual = f"deviceplugin/{package.name}"
    names = [f"{virtual}/{path.name}" for path in sorted(HERE.glob("*.proto"))]
    outputs = [f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{package.parents[1]}" for kind in _KINDS]
    # protoc finds the plugins for types beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{virtual}={HERE}", *outputs, *names],
        env={**os.environ, "PATH": path},
        check=True,
    )
    (package / "__init__.py").write_text(_TITLE, encoding="utf-8")


if __name__ == "__main__":
    generate()

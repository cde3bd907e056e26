"""Real clients at work on the simulated card, and images from NVIDIA's own assembler."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT, SIMULATOR, simulator_environment

CLIENTS = Path(__file__).with_name("simgpu_clients.py")

PTX = """
.version {version}
.target {target}
.address_size 64
.visible .global .align 4 .u32 counter;
.visible .global .align 8 .b8 table[4096];
.visible .const .align 4 .f32 factors[4] = {{0f3F800000, 0f40000000, 0f40400000, 0f40800000}};
.visible .global .align 4 .u32 started = 7;
.visible .entry spin(.param .u64 duration) {{ ret; }}
.visible .entry add(.param .u64 a, .param .u32 n, .param .align 8 .b8 s[24], .param .u8 c) .maxntid 256,1,1 {{
  .reg .u64 %r<5>; .reg .u32 %x<5>;
  .shared .align 4 .b8 buffer[1024];
  ld.param.u64 %r1, [a];
  ld.param.u32 %x1, [n];
  mov.u32 %x2, buffer;
  st.shared.u32 [%x2], %x1;
  ld.const.u32 %x3, [factors];
  mov.u64 %r2, started;
  ld.global.u32 %x4, [%r2];
  mov.u64 %r3, counter;
  st.global.u32 [%r3], %x4;
  st.global.u32 [%r1], %x3;
  ret;
}}
"""


def run_client(environment: dict[str, str], *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, str(CLIENTS), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ptxas() -> Path:
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    found = [place / "bin" / "ptxas" for place in places if (place / "bin" / "ptxas").exists()]
    if not found:
        pytest.skip("NVIDIA's assembler, ptxas, is not installed")
    return found[0]


@pytest.mark.parametrize(
    ("card", "target", "version"),
    [("V100-SXM2-16GB", "sm_70", "6.0"), ("H100-SXM5-80GB", "sm_90", "7.8"), ("B200", "sm_100", "8.6")],
)
def test_cubins_of_nvidias_assembler_are_understood(
    tmp_path: Path, card: str, target: str, version: str
) -> None:
    source, cubin = tmp_path / "add.ptx", tmp_path / "add.cubin"
    source.write_text(PTX.format(version=version, target=target))
    subprocess.run([str(ptxas()), f"-arch={target}", str(source), "-o", str(cubin)], check=True)
    assert run_client(simulator_environment(tmp_path, card), "cubin", str(cubin)) == {
        "kernels": 2,
        "parameters": [[0, 8], [8, 4], [16, 24], [40, 1]],
        "shared": 1024,
        "threads": 256,
        "binary": int(target.removeprefix("sm_")),
        "constants": 16,
        "counter": "00000000",
        "table": 4096,
        "factors": "0000803f000000400000404000008040",
        "started": "07000000",
    }


def test_cuda_core_launches_times_and_builds_graphs(tmp_path: Path) -> None:
    assert run_client(simulator_environment(tmp_path), "core") == {
        "arguments": [[0, 8], [8, 4], [12, 1]],
        "spin": 3.0,
        "branches": 5.0,
        "called": 2,
        "reserved": 4 << 20,
        "trimmed": 0,
    }


def test_numba_launches_on_streams_and_closes(tmp_path: Path) -> None:
    assert run_client(simulator_environment(tmp_path), "numba") == {
        "elapsed": True,
        "shared": 512,
        "managed": 300,
        "pinned": 70.0,
        "back": True,
    }


def declared_functions() -> set[str]:
    """Every function of NVIDIA's headers of CUDA 11, 12 and 13 and NVML, as the preprocessor leaves them."""
    found: set[str] = set()
    include = ROOT / "build" / "include"
    for version in ("cuda11", "cuda12", "cuda13"):
        command = [
            "cc",
            "-E",
            "-P",
            "-D__CUDA_API_VERSION_INTERNAL",
            "-x",
            "c",
            str(include / version / "cuda.h"),
        ]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", text))
    nvml = (include / "nvml" / "nvml.h").read_text()
    return found | set(re.findall(r"nvmlReturn_t\s+DECLDIR\s+(nvml\w+)\s*\(", nvml))


def test_every_function_of_the_headers_is_exported() -> None:
    exported: set[str] = set()
    for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
        command = ["nm", "-D", "--defined-only", str(SIMULATOR / library)]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        exported |= {line.split()[-1].split("@")[0] for line in lines}
    wanted = declared_functions()
    assert len(wanted) > 1000
    assert wanted - exported == set()
    assert not {name for name in exported if not re.match(r"(cu[A-Z]|nvml)", name)}

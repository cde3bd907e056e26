"""What the simulated driver exports, made from NVIDIA's headers: `python stubs.py --headers DIR --out DIR`.

Writes stubs_cuda.c and stubs_nvml.c. Every function of the headers gets a weak definition that answers "not
supported"; where a source of the simulator defines it, the linker takes that one. stubs_cuda.c also has the
table of cuGetProcAddress (which version of CUDA brought which symbol) and the names of the errors.
"""

import argparse
import os
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

VARIANTS = ("", "_ptds", "_ptsz")
CUDA = ("cuda11", "cuda12", "cuda13")
NOT_HERE = re.compile(r"cuWGL")  # of other systems

ERROR_TEXTS = {
    "CUDA_SUCCESS": "no error",
    "CUDA_ERROR_INVALID_VALUE": "invalid argument",
    "CUDA_ERROR_NOT_INITIALIZED": "initialization error",
    "CUDA_ERROR_DEINITIALIZED": "driver shutting down",
    "CUDA_ERROR_NO_DEVICE": "no CUDA-capable device is detected",
    "CUDA_ERROR_INVALID_DEVICE": "invalid device ordinal",
    "CUDA_ERROR_INVALID_IMAGE": "device kernel image is invalid",
    "CUDA_ERROR_INVALID_CONTEXT": "invalid device context",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "no kernel image is available for execution on the device",
    "CUDA_ERROR_INVALID_PTX": "a PTX JIT compilation failed",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the provided PTX was compiled with an unsupported toolchain.",
    "CUDA_ERROR_INVALID_SOURCE": "device kernel image is invalid",
    "CUDA_ERROR_INVALID_HANDLE": "invalid resource handle",
    "CUDA_ERROR_NOT_FOUND": "named symbol not found",
    "CUDA_ERROR_NOT_READY": "device not ready",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "an illegal memory access was encountered",
    "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES": "too many resources requested for launch",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "the launch timed out and was terminated",
    "CUDA_ERROR_LAUNCH_FAILED": "unspecified launch failure",
    "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE": "too many blocks in cooperative launch",
    "CUDA_ERROR_NOT_PERMITTED": "operation not permitted",
    "CUDA_ERROR_NOT_SUPPORTED": "operation not supported",
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": "operation not permitted when stream is capturing",
    "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "operation failed due to a previous error during capture",
    "CUDA_ERROR_UNKNOWN": "unknown error",
}
"""What drivers say; of an error that is not here, its name is told in words."""


@dataclass
class Versions:
    """Of one base name, per variant: the CUDA versions that brought a symbol, and the symbols' numbers."""

    cuda: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    symbols: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def numbers(self, variant: str) -> list[int]:
        """The symbols' numbers, ascending; from the versions where the header itself could not be read."""
        known = sorted(self.symbols[variant])
        return known or list(range(1, len(self.cuda[variant]) + 1))


def declared(header: Path, *, include: Path) -> set[str]:
    """The functions that a header of CUDA declares, all versions and variants of each."""
    command = [
        os.environ.get("CC", "cc"),
        "-E",
        "-P",
        "-D__CUDA_API_VERSION_INTERNAL",
        "-isystem",
        str(include),
    ]
    done = subprocess.run([*command, "-x", "c", str(header)], capture_output=True, text=True, check=False)
    return set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", done.stdout))


def read_versions(headers: Path) -> dict[str, Versions]:
    """All base names with their versions."""
    names: dict[str, Versions] = defaultdict(Versions)
    for version in CUDA:
        for path in sorted((headers / version).glob("cuda*Typedefs.h")):
            pattern = r"\*PFN_(cu\w+?)_v(\d+)(_ptds|_ptsz)?\)"
            for name, cuda, variant in re.findall(pattern, path.read_text()):
                names[name].cuda[variant].add(int(cuda))
        for path in sorted((headers / version).glob("cuda*.h")):
            if re.fullmatch(r"cuda(|GL|EGL|VDPAU|Profiler)\.h", path.name):
                for symbol in declared(path, include=headers / version):
                    parts = re.fullmatch(r"(cu\w+?)(?:_v(\d))?(_ptds|_ptsz)?", symbol)
                    assert parts
                    names[parts[1]].symbols[parts[3] or ""].add(int(parts[2] or 1))
    return {name: names[name] for name in sorted(names) if not NOT_HERE.match(name)}


def symbol_of(name: str, number: int, variant: str) -> str:
    """As it is exported."""
    return f"{name}{f'_v{number}' if number > 1 else ''}{variant}"


def procs_of(name: str, versions: Versions) -> list[tuple[int, str, str | None]]:
    """(CUDA version, symbol, its per-thread variant) in ascending order.

    The k-th version in which the header's typedefs name a function is that of its k-th symbol.
    """
    plain = dict(zip(sorted(versions.cuda[""]), versions.numbers(""), strict=False))
    thread: dict[int, str] = {}
    for variant in VARIANTS[1:]:
        pairs = zip(sorted(versions.cuda[variant]), versions.numbers(variant), strict=False)
        thread |= {number: symbol_of(name, number, variant) for _, number in pairs}
    return [(cuda, symbol_of(name, number, ""), thread.get(number)) for cuda, number in plain.items()]


def read_errors(headers: Path) -> dict[int, str]:
    """The enumeration CUresult of all versions: number to name."""
    errors: dict[int, str] = {}
    for version in CUDA:
        text = (headers / version / "cuda.h").read_text()
        body = text[text.index("typedef enum cudaError_enum") :]
        body = body[: body.index("} CUresult;")]
        errors |= {
            int(number): name
            for name, number in re.findall(r"^\s*(CUDA_\w+)\s*=\s*(\d+)", body, re.MULTILINE)
        }
    return dict(sorted(errors.items()))


def text_of(error: str) -> str:
    """What cuGetErrorString says of it."""
    return ERROR_TEXTS.get(error) or error.removeprefix("CUDA_ERROR_").replace("_", " ").lower()


def cuda_source(headers: Path) -> str:
    """The text of stubs_cuda.c."""
    names = read_versions(headers)
    symbols = sorted(
        symbol_of(name, number, variant)
        for name, versions in names.items()
        for variant in VARIANTS
        for number in versions.numbers(variant)
    )
    lines = [
        "/* Made by stubs.py from NVIDIA's headers; not to be changed by hand. */",
        '#include "generated.h"',
        "",
    ]
    lines += [
        "#define NOT_SUPPORTED 801",
        "#define STUB(name)                                                                  \\",
        '    __attribute__((weak, visibility("default"))) int name(void);                     \\',
        "    int name(void) {                                                                  \\",
        "        return NOT_SUPPORTED;                                                         \\",
        "    }",
    ]
    lines += [f"STUB({symbol})" for symbol in symbols]
    lines += ["", "const struct sim_proc sim_procs[] = {"]
    for name, versions in names.items():
        for cuda, symbol, thread in procs_of(name, versions):
            per_thread = f"(void *){thread}" if thread else "NULL"
            lines.append(f'    {{"{name}", {cuda}, (void *){symbol}, {per_thread}}},')
    lines += ["};", "const size_t sim_proc_count = sizeof sim_procs / sizeof sim_procs[0];", ""]
    lines.append("const struct sim_error sim_errors[] = {")
    lines += [
        f'    {{{number}, "{name}", "{text_of(name)}"}},' for number, name in read_errors(headers).items()
    ]
    lines += ["};", "const size_t sim_error_count = sizeof sim_errors / sizeof sim_errors[0];", ""]
    return "\n".join(lines)


def nvml_source(headers: Path) -> str:
    """The text of stubs_nvml.c."""
    text = (headers / "nvml" / "nvml.h").read_text()
    names = sorted(set(re.findall(r"nvmlReturn_t\s+DECLDIR\s+(nvml\w+)\s*\(", text)))
    lines = ["/* Made by stubs.py from NVIDIA's header; not to be changed by hand. */", ""]
    lines += [
        "#define NOT_SUPPORTED 3",
        "#define STUB(name)                                                                  \\",
        '    __attribute__((weak, visibility("default"))) int name(void);                     \\',
        "    int name(void) {                                                                  \\",
        "        return NOT_SUPPORTED;                                                         \\",
        "    }",
    ]
    return "\n".join([*lines, *(f"STUB({name})" for name in names), ""])


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--headers", type=Path, required=True)
    parser.add_argument("--sources", type=Path, help="not needed, since stubs are weak; for older callers")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "stubs_cuda.c").write_text(cuda_source(options.headers))
    (options.out / "stubs_nvml.c").write_text(nvml_source(options.headers))


if __name__ == "__main__":
    main()

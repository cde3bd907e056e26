"""NVIDIA's headers as data: which functions there are, under which names, and since when.

A header is read as a compiler with `__CUDA_API_VERSION_INTERNAL` and `NVML_NO_UNVERSIONED_FUNC_DEFS` would
read it: with these, every variant of the ABI (`_v2`, `_ptds`, `_ptsz`) is declared under the name that a
driver exports. Only what this takes of the preprocessor is here: conditions, and macros that rename.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

DRIVER = ("cuda11", "cuda12", "cuda13")
"""Directories of CUDA headers, oldest first: of two declarations of a name, the newest counts."""
DRIVER_HEADERS = ("cuda.h", "cudaGL.h", "cudaEGL.h", "cudaVDPAU.h", "cudaProfiler.h")
TYPEDEFS = (
    "cudaTypedefs.h",
    "cudaGLTypedefs.h",
    "cudaEGLTypedefs.h",
    "cudaVDPAUTypedefs.h",
    "cudaProfilerTypedefs.h",
)
NVML = "nvml"

COMPILER = (
    "__CUDA_API_VERSION_INTERNAL",
    "NVML_NO_UNVERSIONED_FUNC_DEFS",
    "__GNUC__",
    "__LP64__",
    "__linux__",
)
"""Macros that are defined."""

_PROTOTYPE = re.compile(
    r"(?P<result>CUresult|nvmlReturn_t|const\s+DECLDIR\s+char\s*\*)\s+(?:CUDAAPI|DECLDIR)?\s*"
    r"(?P<name>(?:cu|nvml)[A-Z]\w*)\s*\((?P<parameters>[^()]*)\)\s*;"
)
_TYPEDEF = re.compile(r"\bPFN_(?P<base>\w+?)_v(?P<version>\d{4,5})(?P<stream>_ptds|_ptsz)?\s*\)")
_SUFFIX = re.compile(r"(?P<base>\w+?)(?P<version>_v\d+)?(?P<stream>_ptds|_ptsz)?")


@dataclass(frozen=True, order=True)
class Function:
    """A function as the driver exports it."""

    name: str
    result: str = field(compare=False)
    parameters: str = field(compare=False)
    """As in the header, without comments; `void` where there are none."""
    headers: tuple[str, ...] = field(compare=False)
    """The headers that declare it, as `cuda12/cuda.h`, oldest first."""

    @property
    def base(self) -> str:
        """The name without the suffixes of its variants."""
        return split(self.name)[0]

    @property
    def newest(self) -> bool:
        """Whether the headers that the shim is compiled with declare it."""
        return self.headers[-1] in {f"{DRIVER[-1]}/cuda.h", f"{NVML}/nvml.h"}

    def arguments(self) -> list[str]:
        """The names of the parameters."""
        if self.parameters in {"", "void"}:
            return []
        return [re.findall(r"\w+", re.sub(r"\[.*", "", one))[-1] for one in self.parameters.split(",")]


@dataclass(frozen=True)
class Headers:
    """All functions of all headers, and what cuGetProcAddress needs to know of them."""

    functions: dict[str, Function]
    versions: dict[str, tuple[int, ...]]
    """Base name: the CUDA versions in which a variant of its ABI came (11030 = 11.3), oldest first."""

    def variants(self, base: str) -> list[str]:
        """A base's ABI variants, oldest first, without those of the per-thread default stream."""
        found = [name for name in self.functions if split(name)[0] == base and not split(name)[2]]
        return sorted(found, key=lambda name: split(name)[1])

    def since(self, name: str) -> int:
        """The CUDA version in which this variant came; 0 where the headers don't tell."""
        base, _, stream = split(name)
        variants, versions = self.variants(base), self.versions.get(base, ())
        if len(variants) != len(versions):
            return 0
        return versions[variants.index(name.removesuffix(stream))]


def split(name: str) -> tuple[str, int, str]:
    """A name's base, the number of its ABI version (1 if none is named), and its kind of default stream."""
    match = _SUFFIX.fullmatch(name)
    assert match
    return match["base"], int((match["version"] or "_v1")[2:]), match["stream"] or ""


class _Preprocessor:
    """Goes through one header; keeps which lines count and what names are renamed to at each."""

    def __init__(self) -> None:
        self.macros: dict[str, str] = dict.fromkeys(COMPILER, "1")
        self.stack: list[tuple[bool, bool]] = []  # (this branch counts, a branch of this #if has counted)

    def counts(self) -> bool:
        return all(here for here, _ in self.stack)

    def condition(self, text: str) -> bool:
        text = re.sub(r"defined\s*\(?\s*(\w+)\s*\)?", lambda m: str(int(m[1] in self.macros)), text)
        text = re.sub(r"\b([A-Za-z_]\w*)\b", "0", text)
        text = re.sub(r"\b(\d+)[uUlL]+\b", r"\1", text)
        text = text.replace("&&", " and ").replace("||", " or ")
        text = re.sub(r"!(?!=)", " not ", text)
        return bool(eval(text, {"__builtins__": {}}))

    def directive(self, word: str, rest: str) -> None:
        if word in {"if", "ifdef", "ifndef"}:
            name = rest.split()[0] if rest.split() else ""
            here = {
                "if": lambda: self.condition(rest),
                "ifdef": lambda: name in self.macros,
                "ifndef": lambda: name not in self.macros,
            }[word]() if self.counts() else False  # fmt: skip
            self.stack.append((here, here))
        elif word in {"elif", "else"}:
            _, had = self.stack.pop()
            here = not had and self.counts() and (word == "else" or self.condition(rest))
            self.stack.append((here, had or here))
        elif word == "endif":
            self.stack.pop()
        elif self.counts() and word == "define":
            name, _, value = rest.partition(" ")
            if "(" not in name:
                self.macros[name] = value.strip()
        elif self.counts() and word == "undef":
            self.macros.pop(rest.strip(), None)

    def renamed(self, name: str) -> str:
        seen: set[str] = set()
        while name in self.macros and name not in seen:
            seen.add(name)
            value = self.macros[name]
            if match := re.fullmatch(r"__CUDA_API_(PTDS|PTSZ)\((\w+)\)", value):
                # An operand of ## is not expanded: no further renaming of the argument.
                name = match[2] + "_" + match[1].lower()
            elif re.fullmatch(r"\w+", value):
                name = value
            else:
                break
        return name


def _lines(text: str) -> Iterator[str]:
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    yield from re.sub(r"\\\n", " ", text).splitlines()


def _read(path: Path) -> Iterator[tuple[str, str, str]]:
    """(name, result, parameters) of each prototype; each piece of text is renamed as it would be there."""
    preprocessor = _Preprocessor()
    pending = ""
    for line in _lines(path.read_text(encoding="utf-8", errors="replace")):
        if match := re.match(r"\s*#\s*(\w+)\s*(.*)", line):
            preprocessor.directive(match[1], match[2])
        elif preprocessor.counts():
            pending += " " + line
            if ";" not in line:
                continue
            for found in _PROTOTYPE.finditer(pending):
                parameters = " ".join(found["parameters"].split())
                yield preprocessor.renamed(found["name"]), " ".join(found["result"].split()), parameters
            pending = pending.rpartition(";")[2]


def read(root: Path) -> Headers:
    """Read the headers below `root` (tools/headers.py puts them there)."""
    functions: dict[str, Function] = {}
    versions: dict[str, set[int]] = {}
    paths = [(f"{home}/{name}", root / home / name) for home in DRIVER for name in DRIVER_HEADERS]
    paths.append((f"{NVML}/nvml.h", root / NVML / "nvml.h"))
    for label, path in paths:
        if not path.exists():  # cudaProfiler.h comes with another wheel
            continue
        for name, result, parameters in _read(path):
            before = functions[name].headers if name in functions else ()
            headers = before if label in before else (*before, label)
            functions[name] = Function(name, result, parameters, headers)
    for home in DRIVER:
        for name in TYPEDEFS:
            for match in _TYPEDEF.finditer((root / home / name).read_text()):
                if not match["stream"]:
                    versions.setdefault(match["base"], set()).add(int(match["version"]))
                if match["base"].startswith("cuProfiler"):
                    label = f"{home}/{name}"
                    known = functions.get(match["base"], Function(match["base"], "CUresult", "", ()))
                    functions[match["base"]] = Function(
                        match["base"], "CUresult", "", (*known.headers, label)
                    )
    return Headers(functions, {base: tuple(sorted(found)) for base, found in versions.items()})

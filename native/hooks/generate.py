"""The table of hooked functions, made from NVIDIA's headers and rules.toml: as C, and as a page of the docs.

    python3 native/hooks/generate.py --headers build/include --out build/gen    what the shim is compiled with
    python3 native/hooks/generate.py --headers build/include --doc docs/reference/hooks.md

Written into `--out`:
    hooks.h         the driver's declarations, and `vcuda_real`, a pointer to each function that is called
    hooks_table.c   the names, in the order of the pointers, with what is to be known of each
    hooks_lazy.c    what each pointer leads to before the driver has been looked up
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.dont_write_bytecode = True

import headers as nvidia  # noqa: E402
import rules as ruleset  # noqa: E402
from headers import Function, Headers  # noqa: E402
from rules import Rule, Rules  # noqa: E402

HERE = Path(__file__).parent
BANNER = (
    "/* Made by native/hooks/generate.py from NVIDIA's headers and native/hooks/rules.toml. Do not edit. */\n"
)

OPAQUE = {"VdpDevice": "uint32_t", "VdpGetProcAddress": "void"}
"""Types of headers that are not there to be included, as what they are to a caller."""


def members(rules: Rules, headers: Headers) -> list[Function]:
    """The functions that have a pointer, sorted by name."""
    names = set(ruleset.hooked(rules, headers)) | set(rules.called)
    return [headers.functions[name] for name in sorted(names)]


def parameters(function: Function) -> str:
    """The parameters as C that compiles with cuda.h and nvml.h alone."""
    text = function.parameters or "void"
    for name, stands_for in OPAQUE.items():
        text = text.replace(f"{name} ", f"{stands_for} ")
    return text


def header(rules: Rules, headers: Headers) -> str:
    """hooks.h."""
    functions = members(rules, headers)
    foreign = "".join(f"{one.result} {one.name}({parameters(one)});\n" for one in functions if not one.newest)
    pointers = "".join(f"    __typeof__({one.name}) *_Atomic {one.name};\n" for one in functions)
    return f"""{BANNER}#ifndef VCUDA_HOOKS_H
#define VCUDA_HOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Every variant of a function is declared under the name that the driver exports; none is renamed. */
#ifndef __CUDA_API_VERSION_INTERNAL
#define __CUDA_API_VERSION_INTERNAL
#endif
#ifndef NVML_NO_UNVERSIONED_FUNC_DEFS
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#endif
#include <cuda.h>
#include <nvml.h>

/* Of headers whose own needs (OpenGL, VDPAU) are not at hand. */
{foreign}
#define VCUDA_EXPORT __attribute__((visibility("default")))

/*
 * The driver's own functions. Each may be called at any time. The first call looks the function up; where the
 * driver lacks it, or there is none, the answer is CUDA_ERROR_NOT_FOUND or NVML_ERROR_FUNCTION_NOT_FOUND.
 */
struct vcuda_real {{
{pointers}}};
extern struct vcuda_real vcuda_real;

#define VCUDA_FUNCTIONS {len(functions)}

#endif
"""


def flags(function: Function, hooked: dict[str, Rule]) -> str:
    """What is to be known of a name, as an expression."""
    rule = hooked.get(function.name)
    found = ["VCUDA_NVML"] if function.name.startswith("nvml") else []
    if rule:
        found.append("VCUDA_HOOKED")
        if rule.whole:
            found.append("VCUDA_HOOKED_WHOLE")
        stream = nvidia.split(function.name)[2]
        if stream:
            found.append("VCUDA_PER_THREAD")
    return " | ".join(found) or "0"


def table(rules: Rules, headers: Headers) -> str:
    """hooks_table.c."""
    functions = members(rules, headers)
    hooked = ruleset.hooked(rules, headers)
    index = {one.name: place for place, one in enumerate(functions)}
    offset, text, rows = 0, "", ""
    for one in functions:
        text += f'    "{one.name}\\0"\n'
        rows += f"    {{{offset}, {flags(one, hooked)}}}, /* {one.name} */\n"
        offset += len(one.name) + 1
    driver = [name for name in hooked if not name.startswith("nvml")]
    versions = sorted((nvidia.split(name)[0], headers.since(name), name) for name in driver)
    lines = ""
    for base, since, name in versions:
        if since:
            lines += f'    {{"{base}", {since}, {index[name]}}}, /* {name} */\n'
    width = max(len(base) for base, _, _ in versions) + 1
    return f"""{BANNER}#include "real.h"

const char vcuda_names[] =
{text}    ;

const struct vcuda_name vcuda_name[VCUDA_FUNCTIONS] = {{
{rows}}};

_Static_assert(VCUDA_BASE_BYTES >= {width}, "real.h");
const struct vcuda_version vcuda_versions[] = {{
{lines}}};
const unsigned int vcuda_version_count = sizeof vcuda_versions / sizeof *vcuda_versions;
"""


def lazy(rules: Rules, headers: Headers) -> str:
    """hooks_lazy.c."""
    body, rows = "", ""
    for place, one in enumerate(members(rules, headers)):
        missing = "NVML_ERROR_FUNCTION_NOT_FOUND" if one.name.startswith("nvml") else "CUDA_ERROR_NOT_FOUND"
        body += f"""
static {one.result} lazy_{one.name}({parameters(one)}) {{
    __typeof__({one.name}) *real = (__typeof__({one.name}) *)vcuda_real_find({place});
    return real ? real({", ".join(one.arguments())}) : {missing};
}}
"""
        rows += f"    .{one.name} = lazy_{one.name},\n"
    return f"""{BANNER}#include "real.h"
{body}
struct vcuda_real vcuda_real = {{
{rows}}};
"""


def page(rules: Rules, headers: Headers) -> str:
    """docs/reference/hooks.md."""

    def variants(names: list[str]) -> str:
        listed: list[str] = []
        bases: dict[str, list[str]] = {}
        for name in names:
            bases.setdefault(nvidia.split(name)[0], []).append(name)
        for base, found in sorted(bases.items()):
            suffixes = [f"`{name.removeprefix(base)}`" for name in sorted(found) if name != base]
            whole = f"`{base}`" if base in found else f"`{base}` (not itself exported)"
            listed.append(whole + (" (" + ", ".join(suffixes) + ")" if suffixes else ""))
        return ", ".join(listed)

    by_rule: dict[Rule, list[str]] = {}
    for name, function in headers.functions.items():
        rule = rules.of(function)
        if rule:
            by_rule.setdefault(rule, []).append(name)
    hooked = ruleset.hooked(rules, headers)
    text = f"""# Hooked functions

<!-- Made by native/hooks/generate.py from NVIDIA's headers and native/hooks/rules.toml. Do not edit. -->

What `libvcuda.so` does with each of the {len(headers.functions)} functions that NVIDIA's headers declare for
the CUDA driver (11.8, 12.9 and 13.5, with OpenGL, EGL, VDPAU and profiler) and for NVML: {len(hooked)} are
hooked, the others pass through, each for a reason. In parentheses are the variants of a function's ABI.

## Hooked

Where every card of a grant is granted whole, only what metering needs is hooked; without a grant, nothing.

| kind | functions | why | whole cards |
|---|---|---|---|
"""
    for rule in rules.rules:
        if rule.kind != "pass":
            whole = "hooked" if rule.whole else "-"
            text += f"| {rule.kind} | {variants(by_rule[rule])} | {rule.why} | {whole} |\n"
    text += """
`dlsym`, `dlvsym` and `dlopen` are hooked beside these: the first two hand out entry points, the last is where
a library can ask to be bound past all preloaded ones (see [trust and limits](../explanation/trust.md)).

## Passed through

| functions | why |
|---|---|
"""
    for rule in rules.rules:
        if rule.kind == "pass":
            text += f"| {variants(by_rule[rule])} | {rule.why} |\n"
    return text


def main() -> None:
    """Write what is asked for; a fault in the rules is an error that names all faults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--headers", type=Path, required=True, help="where tools/headers.py has put NVIDIA's headers"
    )
    parser.add_argument("--out", type=Path, help="directory for hooks.h, hooks_table.c, hooks_lazy.c")
    parser.add_argument("--doc", type=Path, help="file for the page of the documentation")
    options = parser.parse_args()
    headers, rules = nvidia.read(options.headers), ruleset.load(HERE / "rules.toml")
    if faults := ruleset.faults(rules, headers):
        sys.exit("\n".join(f"native/hooks/rules.toml: {fault}" for fault in faults))
    if options.doc:
        options.doc.write_text(page(rules, headers), encoding="utf-8")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, make in (("hooks.h", header), ("hooks_table.c", table), ("hooks_lazy.c", lazy)):
            path, text = options.out / name, make(rules, headers)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

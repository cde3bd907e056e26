"""The hook table: no function of NVIDIA's headers without a decision, no decision without effect."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import BUILD, ROOT, SHIM, need

HOOKS = ROOT / "native" / "hooks"
INCLUDE = ROOT / "build" / "include"
sys.path.insert(0, str(HOOKS))

import generate  # noqa: E402  # pyright: ignore
import headers as nvidia  # noqa: E402  # pyright: ignore
import rules as ruleset  # noqa: E402  # pyright: ignore


@pytest.fixture(scope="module")
def headers() -> nvidia.Headers:
    need(INCLUDE / "nvml" / "nvml.h")
    return nvidia.read(INCLUDE)


@pytest.fixture(scope="module")
def rules() -> ruleset.Rules:
    return ruleset.load(HOOKS / "rules.toml")


# ---- the rules, against NVIDIA's headers ----


def test_every_function_has_exactly_one_rule_and_every_rule_a_function(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    assert ruleset.faults(rules, headers) == []


def test_every_hooked_function_has_a_handler_and_every_handler_a_rule(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    assert ruleset.handlers(ROOT / "native" / "shim") == set(ruleset.hooked(rules, headers))


def test_library_exports_the_hooked_functions_and_the_doors_of_the_linker(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    need(SHIM, "nm")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(SHIM)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert exported == set(ruleset.hooked(rules, headers)) | {"dlsym", "dlvsym", "dlopen"}


def test_what_handlers_call_of_the_driver_is_listed_and_nothing_else(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    calls = ruleset.calls(ROOT / "native" / "shim")
    assert calls - set(ruleset.hooked(rules, headers)) == set(rules.called)


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        (r"cuMem(Alloc|Create).*", {"charge", "pass"}),
        (
            r"cuMem(Alloc|AllocPitch|AllocManaged|AllocAsync|AllocFromPoolAsync|Create)(_v2|_ptsz)*",
            {"charge"},
        ),
        (r"cu(Array|Array3D|MipmappedArray)Create(_v2)?", {"charge"}),
        (r"cu(Ctx|GreenCtx|GLCtx|VDPAUCtx)Create(_v\d)?", {"charge"}),
        (r"cu(Module|Library)Load.*", {"charge"}),
        (r"cuGraph(Launch|Upload).*", {"launch"}),
        (r"cuLaunch(?!HostFunc).*", {"launch"}),
        (r"cuGetProcAddress.*", {"door"}),
    ],
)
def test_functions_that_take_memory_or_submit_work_are_hooked(
    rules: ruleset.Rules, headers: nvidia.Headers, pattern: str, kinds: set[str]
) -> None:
    found = {
        name: rules.of(one).kind for name, one in headers.functions.items() if re.fullmatch(pattern, name)
    }
    assert found
    assert set(found.values()) <= kinds, found


def test_allocations_that_pass_take_host_memory(rules: ruleset.Rules, headers: nvidia.Headers) -> None:
    passed = {
        name
        for name, one in headers.functions.items()
        if re.search(r"Alloc(?!ation)|Create", name)
        and rules.of(one).kind == "pass"
        and name.startswith("cuMem")
    }
    assert passed == {"cuMemAllocHost", "cuMemAllocHost_v2", "cuMemHostAlloc"}


def test_only_metering_is_hooked_where_cards_are_whole(rules: ruleset.Rules) -> None:
    whole = {rule.kind for rule in rules.rules if rule.whole}
    assert whole == {"launch", "sync", "init", "door", "free"}
    assert [rule.names[0] for rule in rules.rules if rule.whole and rule.kind == "free"] == ["cuCtxDestroy"]


def test_page_of_the_documentation_is_what_the_generator_makes(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    page = ROOT / "docs" / "reference" / "hooks.md"
    command = "python3 native/hooks/generate.py --headers build/include --doc docs/reference/hooks.md"
    assert page.read_text() == generate.page(rules, headers), f"run: {command}"


def test_page_names_every_function_of_the_headers(headers: nvidia.Headers) -> None:
    text = (ROOT / "docs" / "reference" / "hooks.md").read_text()
    assert [name for name, one in headers.functions.items() if f"`{one.base}`" not in text] == []


# ---- the headers ----


def test_headers_are_read_as_the_compiler_reads_them(headers: nvidia.Headers, tmp_path: Path) -> None:
    need("gcc")
    source = tmp_path / "all.c"
    source.write_text(
        "#define __CUDA_API_VERSION_INTERNAL\n#define NVML_NO_UNVERSIONED_FUNC_DEFS\n"
        "#include <cuda.h>\n#include <nvml.h>\n"
    )
    declared: set[str] = set()
    for home in nvidia.DRIVER:
        options = ["-isystem", str(INCLUDE / home), "-isystem", str(INCLUDE / "nvml")]
        done = subprocess.run(
            ["gcc", "-E", *options, str(source)], capture_output=True, text=True, check=True
        )
        text = re.sub(r"(?m)^#.*$", "", done.stdout)
        declared |= set(re.findall(r"\b(?:CUresult|nvmlReturn_t)\s+((?:cu|nvml)[A-Z]\w*)\s*\(", text))
    ours = {
        name
        for name, one in headers.functions.items()
        if {"cuda.h", "nvml.h"} & {label.partition("/")[2] for label in one.headers}
    }
    assert ours == declared | {"nvmlErrorString"}  # which answers a text


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("cuMemAlloc", 2000),
        ("cuMemAlloc_v2", 3020),
        ("cuCtxCreate_v3", 11040),
        ("cuCtxCreate_v4", 12050),
        ("cuStreamBeginCapture", 10000),
        ("cuStreamBeginCapture_v2_ptsz", 10010),
        ("cuGetProcAddress", 11030),
        ("cuGetProcAddress_v2", 12000),
        ("cuMemAllocAsync_ptsz", 11020),
        ("cuGraphAddNode_v3", 13040),
    ],
)
def test_variants_are_dated_by_the_typedefs(headers: nvidia.Headers, name: str, since: int) -> None:
    assert headers.since(name) == since


def test_every_hooked_function_of_the_driver_is_dated(rules: ruleset.Rules, headers: nvidia.Headers) -> None:
    driver = [name for name in ruleset.hooked(rules, headers) if name.startswith("cu")]
    assert [name for name in driver if not headers.since(name)] == []


# ---- the audit itself: on a small header it finds what is wrong ----

CUDA_H = """
#if defined(__CUDA_API_VERSION_INTERNAL)
    #define __CUDA_API_PTSZ(api) api ## _ptsz
#else
    #define __CUDA_API_PTSZ(api) api
#endif
#define cuTake cuTake_v2
#define cuRun __CUDA_API_PTSZ(cuRun)
CUresult CUDAAPI cuTake(CUdeviceptr *dptr, /* comment ) */ size_t bytes);
CUresult CUDAAPI cuRun(CUfunction f, void **extra,
                       CUstream hStream);
#if defined(_WIN32)
CUresult CUDAAPI cuWindow(void);
#endif
#if defined(__CUDA_API_VERSION_INTERNAL)
    #undef cuTake
    #undef cuRun
    CUresult CUDAAPI cuTake(unsigned int *dptr, unsigned int bytes);
    CUresult CUDAAPI cuRun(CUfunction f, void **extra, CUstream hStream);
#endif
"""
TYPEDEFS_H = """
typedef CUresult (CUDAAPI *PFN_cuTake_v2000)(unsigned int *dptr, unsigned int bytes);
typedef CUresult (CUDAAPI *PFN_cuTake_v3020)(CUdeviceptr *dptr, size_t bytes);
typedef CUresult (CUDAAPI *PFN_cuRun_v4000)(CUfunction f, void **extra, CUstream hStream);
typedef CUresult (CUDAAPI *PFN_cuRun_v7000_ptsz)(CUfunction f, void **extra, CUstream hStream);
"""


@pytest.fixture
def small(tmp_path: Path) -> nvidia.Headers:
    for home in nvidia.DRIVER:
        (tmp_path / home).mkdir()
        (tmp_path / home / "cuda.h").write_text(CUDA_H)
        for name in nvidia.TYPEDEFS:
            (tmp_path / home / name).write_text(TYPEDEFS_H if name == "cudaTypedefs.h" else "")
    (tmp_path / "nvml").mkdir()
    (tmp_path / "nvml" / "nvml.h").write_text("nvmlReturn_t DECLDIR nvmlLook(void);\n")
    return nvidia.read(tmp_path)


def small_rules(tmp_path: Path, text: str) -> ruleset.Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return ruleset.load(path)


HOOK_TAKE = '[[hook]]\nkind = "charge"\nwhy = "takes memory"\nnames = ["cuTake"]\n'
PASS_RUN = '[[pass]]\nreason = "takes nothing"\nnames = ["cuRun", "nvmlLook"]\n'


def test_all_variants_are_found_under_their_exported_names(small: nvidia.Headers) -> None:
    assert sorted(small.functions) == ["cuRun", "cuRun_ptsz", "cuTake", "cuTake_v2", "nvmlLook"]
    assert small.functions["cuTake_v2"].parameters == "CUdeviceptr *dptr, size_t bytes"
    assert small.functions["cuTake"].arguments() == ["dptr", "bytes"]
    assert (small.since("cuTake_v2"), small.since("cuRun_ptsz")) == (3020, 4000)


@pytest.mark.parametrize(
    ("called", "hook", "passed", "fault"),
    [
        ("[]", HOOK_TAKE, PASS_RUN, None),
        ("[]", HOOK_TAKE, PASS_RUN.replace('"cuRun", ', ""), "cuRun: no rule for it"),
        ("[]", HOOK_TAKE, PASS_RUN.replace('"cuRun"', '"cuRun_ptsz"'), "cuRun: no rule for it"),
        ("[]", HOOK_TAKE.replace("cuTake", "cuTake_v2"), PASS_RUN, "cuTake: no rule for it"),
        (
            "[]",
            HOOK_TAKE,
            PASS_RUN.replace('"cuRun"', '"cuRun", "cuGone"'),
            "cuGone: no header has such a function",
        ),
        ("[]", HOOK_TAKE, PASS_RUN.replace('"cuRun"', '"cuRun", "cuTake"'), "cuTake: has two rules"),
        ("[]", HOOK_TAKE, PASS_RUN.replace("takes nothing", ""), "cuRun ...: a reason is missing"),
        ("[]", HOOK_TAKE.replace("charge", "charm"), PASS_RUN, "charm: no such kind"),
        ('["cuTake"]', HOOK_TAKE, PASS_RUN, "cuTake: called, but hooked anyway"),
        ('["cuGone"]', HOOK_TAKE, PASS_RUN, "cuGone: called, but no header has such a function"),
    ],
)
def test_audit_names_the_fault(
    small: nvidia.Headers, tmp_path: Path, called: str, hook: str, passed: str, fault: str | None
) -> None:
    found = ruleset.faults(small_rules(tmp_path, f"called = {called}\n{hook}{passed}"), small)
    assert fault in found if fault else found == []


def test_rule_for_a_variant_goes_before_the_rule_for_all(small: nvidia.Headers, tmp_path: Path) -> None:
    text = f"called = []\n{HOOK_TAKE}{PASS_RUN}" + PASS_RUN.replace('"cuRun", "nvmlLook"', '"cuTake_v2"')
    rules = small_rules(tmp_path, text)
    assert ruleset.faults(rules, small) == []
    assert list(ruleset.hooked(rules, small)) == ["cuTake"]


SHIM_C = """
VCUDA_EXPORT CUresult cuOne(int a,
                            int b) {
    return vcuda_real.cuOther(a);
}
static CUresult cuNot(void) {
    return 0;
}
#define SAME(name, parameters) \\
    VCUDA_EXPORT CUresult name parameters { \\
    }
SAME(cuTwo, (void))
SAME(nvmlThree, (int a))
"""


def test_handlers_are_found_in_sources_and_in_macros(tmp_path: Path) -> None:
    (tmp_path / "one.c").write_text(SHIM_C)
    assert ruleset.handlers(tmp_path) == {"cuOne", "cuTwo", "nvmlThree"}
    assert ruleset.calls(tmp_path) == {"cuOther"}


def test_generated_files_are_the_ones_that_were_compiled(
    rules: ruleset.Rules, headers: nvidia.Headers
) -> None:
    generated = BUILD.parent / "gen"
    need(generated / "hooks.h")
    assert (generated / "hooks.h").read_text() == generate.header(rules, headers)
    assert (generated / "hooks_table.c").read_text() == generate.table(rules, headers)

"""The Python binding of the grant and the ledger: abi.h as cffi reads it, over the shim's own C.

cffi runs this file while the package is built; the result is vcuda._abi. The layouts have one source,
native/include/vcuda/abi.h; the functions below are those of ledger.h and grant.h that Python calls.
"""

import re
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).resolve().parent if "__file__" in globals() else Path("native").resolve()

FUNCTIONS = """
struct vcuda_ledger_map {
    struct vcuda_ledger *header;
    uint32_t slot_count;
    uint16_t other_major, other_minor;
    ...;
};
enum vcuda_ledger_status {
    VCUDA_LEDGER_OK, VCUDA_LEDGER_MISSING, VCUDA_LEDGER_READ_ONLY, VCUDA_LEDGER_TRUNCATED,
    VCUDA_LEDGER_GARBAGE, VCUDA_LEDGER_VERSION, VCUDA_LEDGER_FULL, VCUDA_LEDGER_NO_SPACE,
    VCUDA_LEDGER_NO_LOCKS, ...
};
enum vcuda_ledger_status vcuda_ledger_create(const char *path, uint32_t slot_count);
enum vcuda_ledger_status vcuda_ledger_open(struct vcuda_ledger_map *map, const char *path, bool writable);
enum vcuda_ledger_status vcuda_ledger_attach(struct vcuda_ledger_map *map, const char *path);
void vcuda_ledger_close(struct vcuda_ledger_map *map);
struct vcuda_slot *vcuda_ledger_slot(const struct vcuda_ledger_map *map, uint32_t index);
bool vcuda_ledger_alive(const struct vcuda_ledger_map *map, uint32_t index);
uint32_t vcuda_ledger_reclaim(const struct vcuda_ledger_map *map);
bool vcuda_ledger_reserve(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes, uint64_t limit);
void vcuda_ledger_release(const struct vcuda_ledger_map *map, uint32_t card, enum vcuda_kind kind,
                          uint64_t bytes);
uint64_t vcuda_ledger_used(const struct vcuda_ledger_map *map, uint32_t card);
uint64_t vcuda_slot_used(const struct vcuda_slot *slot, uint32_t card);

enum vcuda_grant_status { VCUDA_GRANT_OK, ... };
enum vcuda_grant_status vcuda_grant_check(const void *data, size_t bytes, char *why, size_t why_bytes);
"""


def layouts() -> str:
    """abi.h without the preprocessor lines that cffi does not read."""
    text = (NATIVE / "include/vcuda/abi.h").read_text(encoding="utf-8")
    return re.sub(r"^#(?:ifndef|include|endif|define VCUDA_ABI_H\b).*$", "", text, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef(layouts() + FUNCTIONS)
ffibuilder.set_source(
    "vcuda._abi",
    '#include "ledger.h"\n#include "grant.h"\n',
    sources=[f"native/shim/{name}.c" for name in ("ledger", "ledger_file", "ledger_slots", "grant")],
    include_dirs=["native/include", "native/shim"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
    depends=[
        "native/include/vcuda/abi.h",
        *(f"native/shim/{name}.h" for name in ("ledger", "ledger_parts", "grant", "lock", "sys")),
    ],
    py_limited_api=True,
)

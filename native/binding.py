"""The Python binding of the grant and the ledger: abi.h as cffi reads it, over the shim's own C.

cffi runs this file while the package is built; the result is vcuda._abi. The layouts have one source,
native/include/vcuda/abi.h; the functions below are those of ledger.h and grant.h that Python calls, and the
limiter's arithmetic (bucket.h, plan.h), whose properties are tested from Python.
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

#define VCUDA_BUCKET_BURST_NS ...
#define VCUDA_BUCKET_LEAST_NS ...
#define VCUDA_BUCKET_STEP_NS ...
#define VCUDA_BUCKET_AHEAD_NS ...
#define VCUDA_DEBT_NS ...
void vcuda_bucket_refill(struct vcuda_bucket *bucket, uint64_t now_ns, uint32_t rate_ppm);
int64_t vcuda_bucket_balance(const struct vcuda_bucket *bucket);
uint64_t vcuda_bucket_take(struct vcuda_bucket *bucket, uint64_t cost_ns);
uint64_t vcuda_bucket_wait_at_ns(const struct vcuda_bucket *bucket, uint64_t ticket, uint32_t rate_ppm);
void vcuda_bucket_correct(struct vcuda_bucket *bucket, int64_t more_ns);

#define VCUDA_PLAN_LANES ...
#define VCUDA_PLAN_LONGEST_NS ...
#define VCUDA_WEIGHT_FULL ...
struct vcuda_lane { const void *stream; uint64_t until_ns; uint32_t weight; ...; };
struct vcuda_plan { uint64_t until_ns, gate_ns, ticket; struct vcuda_lane lane[...]; ...; };
struct vcuda_step { uint64_t end_ns, adds_ns; uint32_t lane; ...; };
struct vcuda_step vcuda_plan_look(const struct vcuda_plan *plan, const void *stream, uint64_t at_ns,
                                  uint64_t length_ns, uint32_t weight);
void vcuda_plan_do(struct vcuda_plan *plan, const void *stream, const struct vcuda_step *step,
                   uint32_t weight);
void vcuda_plan_move(struct vcuda_plan *plan, const void *stream, int64_t later_ns, uint64_t now_ns);
void vcuda_plan_idle(struct vcuda_plan *plan, const void *stream, uint64_t now_ns);
"""


def layouts() -> str:
    """abi.h without the preprocessor lines that cffi does not read."""
    text = (NATIVE / "include/vcuda/abi.h").read_text(encoding="utf-8")
    return re.sub(r"^#(?:ifndef|include|endif|define VCUDA_ABI_H\b).*$", "", text, flags=re.MULTILINE)


ffibuilder = FFI()
ffibuilder.cdef(layouts() + FUNCTIONS)
ffibuilder.set_source(
    "vcuda._abi",
    "".join(f'#include "{name}.h"\n' for name in ("ledger", "grant", "bucket", "plan")),
    sources=[
        f"native/shim/{name}.c"
        for name in ("ledger", "ledger_file", "ledger_slots", "grant", "bucket", "plan")
    ],
    include_dirs=["native/include", "native/shim"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden"],
    depends=[
        "native/include/vcuda/abi.h",
        *(
            f"native/shim/{name}.h"
            for name in ("ledger", "ledger_parts", "grant", "bucket", "plan", "lock", "sys")
        ),
    ],
    py_limited_api=True,
)

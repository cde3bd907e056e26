"""The benchmark says what it has measured, in full; how fast anything was is not a test's to judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import BUILD, ROOT, need

NAMES = [
    "launch",
    "launch-default",
    "launch-mixed",
    "launch-ex",
    "graph-launch",
    "alloc",
    "alloc-small",
    "alloc-8-threads",
    "alloc-8-processes",
    "small-8-threads",
    "small-8-processes",
    "info",
    "dlsym",
    "true",
    "python",
    "size",
    "memory",
    "starts",
]
FIELDS = {
    "name", "title", "unit", "without", "with_shim", "judged", "bound", "bound_unit", "ratio", "within",
}  # fmt: skip


def test_results_are_complete(tmp_path: Path) -> None:
    need(BUILD / "bench" / "calls", "strip")
    command = [sys.executable, str(ROOT / "native" / "bench" / "run.py"), "--out", str(tmp_path)]
    short = ["--seconds", "0.02", "--repeats", "1", "--starts", "5"]
    done = subprocess.run([*command, *short], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) == {"machine", "effort", "results", "comparison"}
    assert content["effort"] == {"seconds": 0.02, "repeats": 1, "starts": 5}
    assert [one["name"] for one in content["results"]] == NAMES
    for one in content["results"]:
        assert set(one) == FIELDS
        assert one["with_shim"] > 0
        assert one["bound"] > 0
        assert one["within"] == (one["judged"] <= one["bound"])
        assert one["title"] in done.stdout
    assert all(one["without"] > 0 for one in content["results"] if one["name"] != "size")

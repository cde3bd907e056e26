"""What a benchmark found, as JSON: one object, and a line for each case."""

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vcuda.bench.cases import Case
from vcuda.bench.judge import Accuracy, Check, Verdict

SERIES_STEP = 5
"""Of the windows, one begins at each look: so many of them say nearly the same."""


def as_json(verdicts: Sequence[tuple[Case, Verdict]], *, seconds: float, card: str) -> str:
    """The whole of it."""
    content = {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "libc": " ".join(platform.libc_ver()),
        },
        "card": card,
        "seconds": seconds,
        "kept": all(verdict.kept for _, verdict in verdicts),
    }
    head = json.dumps(content, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(_case(case, verdict)) for case, verdict in verdicts)
    return f'{head},\n "cases": [\n  {lines}\n ]\n}}\n'


def write(path: Path, text: str) -> None:
    """Put it at `path`, in a directory that is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _case(case: Case, verdict: Verdict) -> dict[str, Any]:
    return {
        "name": case.name,
        "kept": verdict.kept,
        "problem": verdict.problem,
        "pressure": verdict.pressure,
        "shares": [_share(each) for each in verdict.shares],
        "checks": [_check(each) for each in verdict.checks],
    }


def _share(found: Accuracy) -> dict[str, Any]:
    """Errors, bounds and the series in percent of the card, times in ns and s."""
    derived = {
        "series": found.series[::SERIES_STEP],
        "kept": found.kept,
        "error": found.error,
        "of_longest": found.of_longest,
        "of_bound": found.of_bound,
        "wakeups_per_wait": found.wakeups_per_wait,
    }
    return _finite({**asdict(found), **derived})


def _check(check: Check) -> dict[str, Any]:
    return _finite({**asdict(check), "kept": check.kept})


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: what has no bound has null there."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }

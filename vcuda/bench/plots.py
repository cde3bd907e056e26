"""Achieved share against time, for each container, with the bound drawn in. Needs matplotlib, an extra."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcuda.bench.cases import Case
from vcuda.bench.judge import Verdict
from vcuda.errors import VcudaError

COLUMNS = 4
PANEL_INCHES = (4.0, 2.2)


def draw(path: Path, verdicts: Sequence[tuple[Case, Verdict]]) -> None:
    """One panel for each case with shares; the file's ending says which format.

    Raises:
        VcudaError: matplotlib is not installed, or has no such format.

    """
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise VcudaError("--plot needs matplotlib; install it with: pip install 'vcuda[plot]'") from error
    shown = [(case, verdict) for case, verdict in verdicts if verdict.shares]
    columns = min(COLUMNS, len(shown)) or 1
    rows = (len(shown) + columns - 1) // columns or 1
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(shown) :]:
        panel.axis("off")
    for panel, (case, verdict) in zip(axes.flat, shown, strict=False):
        _panel(panel, case, verdict)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, dpi=90)
    except ValueError as error:
        raise VcudaError(f"{path}: {error}") from error
    finally:
        pyplot.close(figure)


def _panel(panel: Any, case: Case, verdict: Verdict) -> None:  # noqa: ANN401 (matplotlib's)
    top = 0.0
    for index, share in enumerate(verdict.shares):
        colour = f"C{index % 10}"
        low, high = share.granted - share.worst_bound, share.granted + share.worst_bound
        times, values = zip(*share.series, strict=True) if share.series else ((), ())
        panel.plot(times, values, color=colour, linewidth=0.8, label=share.member)
        panel.axhline(share.granted, color=colour, linewidth=0.5, linestyle="--")
        panel.axhspan(max(0.0, low), high, color=colour, alpha=0.15, linewidth=0)
        top = max(top, high, *values) if values else max(top, high)
    panel.set_ylim(0, top * 1.1)
    panel.set_title(case.name, fontsize=7, color="black" if verdict.kept else "red")
    panel.tick_params(labelsize=6)
    panel.set_ylabel("% of the card, last 1 s", fontsize=6)
    panel.set_xlabel("s", fontsize=6)
    if len(verdict.shares) > 1:
        panel.legend(fontsize=5, ncols=5)

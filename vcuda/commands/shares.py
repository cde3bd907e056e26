"""Shares as a table: what `ps` and `top` have in common."""

from collections.abc import Mapping, Sequence

from rich.table import Table

from vcuda import report
from vcuda.commands import tables
from vcuda.ledger import Process
from vcuda.report import ShareReport
from vcuda.units import format_cores, format_duration, format_size

_HEADINGS = ("SHARE", "CARD", "CORES", "LIMIT", "USED", "GPU TIME", "LAUNCHES", "REFUSED")
_RIGHT = ("CORES", "LIMIT", "USED", "GPU TIME", "GPU%", "LAUNCHES", "REFUSED", "PID")


def table(reports: Sequence[ShareReport], *, busy: Mapping[str, float] | None = None) -> Table:
    """A line for each share, and one for each of its processes.

    `busy` is each share's part of its card's time since the last look, by the share's directory.
    """
    headings = [*_HEADINGS, "PID", "PROGRAM", "MEMORY BY KIND"]
    if busy is not None:
        headings.insert(headings.index("GPU TIME"), "GPU%")
    rows: list[tuple[str, ...]] = []
    for each in reports:
        part = None if busy is None else _percent(busy.get(each.share.directory))
        rows.append(_share(each, part))
        rows += [_process(process, extra=busy is not None) for process in each.processes]
    return tables.columns(headings, rows, right=_RIGHT)


def _percent(part: float | None) -> str:
    return "-" if part is None else f"{part:.0f}"


def _share(each: ShareReport, part: str | None) -> tuple[str, ...]:
    share = each.share
    return (
        share.name,
        f"{share.card_name} (simulated)" if share.sim_dir else share.card_name,
        "-" if share.core_ppm is None else f"{format_cores(share.core_ppm)}%",
        "whole card" if share.whole else format_size(share.memory_bytes),
        format_size(each.used_bytes),
        *(() if part is None else (part,)),
        format_duration(each.gpu_ns),
        str(each.launches),
        str(each.refused),
        *("", "", ""),
    )


def _process(process: Process, *, extra: bool) -> tuple[str, ...]:
    use = process.cards[0]
    pid = f"{process.pid} elsewhere" if report.foreign(process) else str(process.pid)
    held = ", ".join(f"{kind} {format_size(size)}" for kind, size in report.kinds(use).items())
    return (
        *("", "", "", ""),
        format_size(use.used_bytes),
        *(("",) if extra else ()),
        format_duration(use.gpu_ns),
        str(use.launches),
        str(use.refused),
        pid,
        process.comm,
        held,
    )

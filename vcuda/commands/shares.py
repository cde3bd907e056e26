"""Shares as a table: what `ps` and `top` have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from vcuda import report
from vcuda.commands import tables
from vcuda.ledger import Process
from vcuda.registry import Share
from vcuda.report import ShareReport
from vcuda.units import PPM, format_cores, format_duration, format_priority, format_size

HISTORY = 30
"""Looks that a sparkline shows."""
_WIDE = 140
"""From this width of a screen on, all of them fit."""
_PAST = "OF CEILING"
_WHO = ("SHARE", "CARD", "CORES", "NOW")
_WHAT = ("LIMIT", "USED", "GPU TIME", "LAUNCHES", "REFUSED", "PID", "PROGRAM")
_HEADINGS = (*_WHO, *_WHAT, "MEMORY BY KIND")
_LEAST = {"CORES": 11, "NOW": 4, "GPU%": 5, "USED": 6, "GPU TIME": 8}
"""Of these columns nothing is left out on a narrow screen."""
_LIVE_HEADINGS = (*_WHO, "GPU%", _PAST, *_WHAT)
_RIGHT = ("NOW", "LIMIT", "USED", "GPU TIME", "GPU%", "LAUNCHES", "REFUSED", "PID")


@dataclass(frozen=True, kw_only=True)
class Busy:
    """A share's part of its card's time, in percent."""

    last: float | None
    """Since the last look; None at the first."""
    history: Sequence[float]
    """At the looks before, and this one; oldest first."""


def table(
    reports: Sequence[ShareReport], *, busy: Mapping[str, Busy] | None = None, width: int = 4096
) -> Table:
    """A line for each share, and one for each of its processes.

    With `busy`, by a share's key, live: with what each share uses, and without what memory is held for,
    on a screen of that width.
    """
    bars = HISTORY if width >= _WIDE else HISTORY // 3
    headings = list(_HEADINGS if busy is None else _LIVE_HEADINGS)
    rows: list[tuple[str, ...]] = []
    for each in reports:
        live = () if busy is None else _live(each, busy[each.share.key], bars)
        rows.append(_share(each, live))
        rows += [_process(process, each.share.card, extra=len(live)) for process in each.processes]
    if busy is None:
        return tables.columns(headings, rows, right=_RIGHT)
    return tables.columns(headings, [row[:-1] for row in rows], right=_RIGHT, whole={**_LEAST, _PAST: bars})


def _live(each: ShareReport, busy: Busy, bars: int) -> tuple[str, str]:
    """Percent of the card now; and how it was, from nothing to all that the share may use."""
    ceiling = (each.share.core_max_ppm or PPM) * 100 / PPM
    now = "-" if busy.last is None else f"{busy.last:.1f}"
    return now, tables.sparkline(busy.history[-bars:], ceiling)


def _cores(share: Share) -> str:
    """The guarantee, up to the ceiling if that is more, and the priority if it is not the usual one."""
    if share.core_ppm is None:
        return "-"
    most = share.core_max_ppm or share.core_ppm
    to = f"-{format_cores(most)}" if most != share.core_ppm else ""
    rank = f" {format_priority(share.priority)}" if share.priority else ""
    return f"{format_cores(share.core_ppm)}{to}%{rank}"


def _share(each: ShareReport, live: tuple[str, ...]) -> tuple[str, ...]:
    share = each.share
    return (
        share.name,
        f"{share.card_name} (simulated)" if share.sim_dir else share.card_name,
        _cores(share),
        "-" if each.rate_ppm is None else f"{each.rate_ppm * 100 / PPM:.0f}%",
        *live,
        "whole card" if share.whole else format_size(share.memory_bytes),
        format_size(each.used_bytes),
        format_duration(each.gpu_ns),
        str(each.launches),
        str(each.refused),
        *("", "", ""),
    )


def _process(process: Process, card: int, *, extra: int) -> tuple[str, ...]:
    use = process.cards[card]
    pid = f"{process.pid} elsewhere" if report.foreign(process) else str(process.pid)
    held = ", ".join(f"{kind} {format_size(size)}" for kind, size in report.kinds(use).items())
    return (
        *[""] * (len(_WHO) + extra),
        "",
        format_size(use.used_bytes),
        format_duration(use.gpu_ns),
        str(use.launches),
        str(use.refused),
        pid,
        process.comm,
        held,
    )

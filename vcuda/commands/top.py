"""vcuda top"""

import json
import time
from collections.abc import Iterator, Mapping

import click
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from vcuda import report
from vcuda.commands import shares, tables
from vcuda.commands.options import json_option
from vcuda.commands.shares import Busy
from vcuda.registry import Registry, runtime_directory
from vcuda.report import ShareReport

_Look = tuple[list[ShareReport], Mapping[str, Busy]]
_FOOT = "CORES: guaranteed-ceiling; NOW: in force; GPU%: used since the last look; bars: of the ceiling"


@click.command("top", short_help="Show the shares' GPU time against what is theirs, live.")
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Time between two looks.",
)
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=1),
    help="Looks until the end; else until Ctrl-C on a terminal, and one elsewhere.",
)
@json_option
def command(interval: float, count: int | None, *, as_json: bool) -> None:
    """Show the shares and their processes as ps does, refreshed, with what they use of their cards.

    GPU% is the share's part of its card's time since the last look, to be held against CORES, what is
    guaranteed and the ceiling, and NOW, what is in force with what others leave idle. The bars are the last
    30 looks (fewer on a narrow screen), from nothing to the ceiling. With --json, one line per look.

    \b
    Examples:
      vcuda top
      vcuda top -n 10 --json > use.jsonl
    """
    console = tables.console()
    live = console.is_terminal and not as_json
    looks = _looks(interval, count if count is not None or live else 1)
    try:
        if as_json:
            for reports, busy in looks:
                click.echo(json.dumps(_json(reports, busy)))
        elif live:
            with Live(console=console, auto_refresh=False, screen=count is None) as screen:
                for reports, busy in looks:
                    screen.update(_screen(reports, busy, console.width), refresh=True)
        else:
            _print(console, looks)
    except KeyboardInterrupt:
        return  # the usual way out


def _looks(interval: float, count: int | None) -> Iterator[_Look]:
    """Look again and again: the shares, and how busy each was, by its directory."""
    registry = Registry(runtime_directory())
    before: dict[str, tuple[int, int]] = {}
    history: dict[str, list[float]] = {}
    done = 0
    while count is None or done < count:
        if done:
            time.sleep(interval)
        reports = report.shares(registry)
        busy: dict[str, Busy] = {}
        for each in reports:
            name = each.share.key
            past = history.setdefault(name, [])
            last = None
            if name in before:
                then_ns, gpu_ns = before[name]
                last = min(100.0, max(0.0, 100 * (each.gpu_ns - gpu_ns) / (each.seen_ns - then_ns)))
                past.append(last)
                del past[: -shares.HISTORY]
            busy[name] = Busy(last=last, history=past)
        before = {each.share.key: (each.seen_ns, each.gpu_ns) for each in reports}
        history = {name: past for name, past in history.items() if name in before}
        done += 1
        yield reports, busy


def _json(reports: list[ShareReport], busy: Mapping[str, Busy]) -> dict[str, object]:
    """One look; `gpu_percent` is null where there was no look before."""
    return {
        "time": time.time(),
        "shares": [{**each.as_json(), "gpu_percent": busy[each.share.key].last} for each in reports],
    }


def _screen(reports: list[ShareReport], busy: Mapping[str, Busy], width: int) -> Group:
    head = f"vcuda top  {time.strftime('%H:%M:%S')}  {len(reports)} shares"
    return Group(
        Text(head, style="bold"), shares.table(reports, busy=busy, width=width), Text(_FOOT, style="dim")
    )


def _print(console: Console, looks: Iterator[_Look]) -> None:
    for reports, busy in looks:
        if not reports:
            click.echo("vcuda top: there are no shares; start one with 'vcuda run'", err=True)
            continue
        tables.show(console, shares.table(reports, busy=busy))

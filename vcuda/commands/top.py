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
from vcuda.registry import Registry, runtime_directory
from vcuda.report import ShareReport

_FOOT = "memory limits are enforced; core shares are recorded, not enforced yet"


@click.command("top", short_help="Show the same as ps, live.")
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
    """Show the shares and their processes, refreshed.

    GPU% is the part of the last interval in which the share had work on the card; where several shares use a
    card at once, that includes the time slices of the others. With --json, one line per look.

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
                    screen.update(_screen(reports, busy), refresh=True)
        else:
            _print(console, looks)
    except KeyboardInterrupt:
        return  # the usual way out


def _looks(interval: float, count: int | None) -> Iterator[tuple[list[ShareReport], Mapping[str, float]]]:
    """Look again and again: the shares, and the percentage of time each was busy since the look before."""
    registry = Registry(runtime_directory())
    before: dict[str, int] = {}
    before_ns = 0
    done = 0
    while count is None or done < count:
        if done:
            time.sleep(interval)
        reports = report.shares(registry)
        now_ns = time.monotonic_ns()
        passed = now_ns - before_ns
        busy = {
            each.share.directory: min(
                100.0, max(0.0, 100 * (each.gpu_ns - before[each.share.directory]) / passed)
            )
            for each in reports
            if each.share.directory in before
        }
        before = {each.share.directory: each.gpu_ns for each in reports}
        before_ns = now_ns
        done += 1
        yield reports, busy


def _json(reports: list[ShareReport], busy: Mapping[str, float]) -> dict[str, object]:
    """One look; `gpu_percent` is null where there was no look before."""
    return {
        "time": time.time(),
        "shares": [{**each.as_json(), "gpu_percent": busy.get(each.share.directory)} for each in reports],
    }


def _screen(reports: list[ShareReport], busy: Mapping[str, float]) -> Group:
    head = f"vcuda top  {time.strftime('%H:%M:%S')}  {len(reports)} shares"
    return Group(Text(head, style="bold"), shares.table(reports, busy=busy), Text(_FOOT, style="dim"))


def _print(console: Console, looks: Iterator[tuple[list[ShareReport], Mapping[str, float]]]) -> None:
    for reports, busy in looks:
        if not reports:
            click.echo("vcuda top: there are no shares; start one with 'vcuda run'", err=True)
            continue
        tables.show(console, shares.table(reports, busy=busy))

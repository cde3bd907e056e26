"""vcuda bench"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vcuda.bench import cases, plots, results, runs
from vcuda.bench.cases import Case
from vcuda.bench.judge import Accuracy, Check, Verdict

Verdicts = Sequence[tuple[Case, Verdict]]


@click.group("bench", short_help="Measure what vcuda promises.")
def command() -> None:
    """Measure what vcuda promises, on the present driver.

    \b
    Examples:
      vcuda bench cores --list
      vcuda bench cores --cases together --plot shares.png
    """


@command.command("cores", short_help="Measure how exact core shares are.")
@click.option("--sim", is_flag=True, help="Use simulated cards even where there is a real one.")
@click.option(
    "--cases",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Only cases whose name begins so, or matches this (alone/*-mix-*). Can be given several times.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=2),
    default=20,
    show_default=True,
    help="What is measured of a run, after 2 s that are not.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 32),
    default=5,
    show_default=True,
    help="Cases with one share that run at the same time, each on a simulated card of its own.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write this too.")
@click.option(
    "--plot",
    "plot_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the shares against time, with their bounds: a .png, .svg or .pdf. Needs matplotlib.",
)
@click.option("--list", "only_list", is_flag=True, help="Print the cases' names, and run none.")
def cores(
    *,
    sim: bool,
    patterns: tuple[str, ...],
    seconds: float,
    at_once: int,
    json_file: Path | None,
    plot_file: Path | None,
    only_list: bool,
) -> None:
    """Run programs in core shares, and compare what each had of the card's time with its share.

    The time is the card's own count: exact on simulated cards; on a real one as good as NVML's samples are.
    Each share's mean, every window of 1 s, and the work that was done are held against their bounds. All
    cases take about ten minutes on a quiet machine.

    \b
    Examples:
      vcuda bench cores
      vcuda bench cores --cases 'alone/30-*' --seconds 10 --json cores.json

    \b
    Exit status: 0 if all bounds were kept, 1 if one was not or a case could not be measured, 2 if this
    command line is wrong.
    """
    from vcuda import driver as drivers

    real = None if sim else drivers.real()
    if real and patterns == () and not only_list:
        click.echo(
            "vcuda bench: this card has to be idle; only NVML's samples are there to judge by", err=True
        )
    chosen = cases.selected(cases.every(simulated=real is None), patterns)
    if not chosen:
        raise click.UsageError(f"no case has a name like {' or '.join(patterns)}; see --list")
    if only_list:
        click.echo("\n".join(case.name for case in chosen))
        return
    place = runs.Place(uuid=real.cards[0].uuid if real else None)
    found = _run([cases.lasting(case, seconds) for case in chosen], place, at_once)
    _show(found)
    if json_file:
        card = real.cards[0].short_name if real else "simulated"
        results.write(json_file, results.as_json(found, seconds=seconds, card=card))
    if plot_file:
        plots.draw(plot_file, found)
    missed = [case.name for case, verdict in found if not verdict.kept]
    click.echo("\n  ".join([f"{len(found)} cases, {len(missed)} missed a bound", *missed]))
    sys.exit(1 if missed else 0)


def _run(chosen: Sequence[Case], place: runs.Place, at_once: int) -> Verdicts:
    """Run them, with a line that says how far it is."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from vcuda.commands import tables

    columns = (
        TextColumn("cores"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    console = tables.errors()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen))

        def done(case: Case, verdict: Verdict) -> None:
            progress.update(
                task, advance=1, description=f"{case.name}: {'kept' if verdict.kept else 'MISSED'}"
            )

        verdicts = runs.run_cases(chosen, place, at_once=at_once, done=done)
    return list(zip(chosen, verdicts, strict=True))


# ---- what is shown ----

_SHARES = (
    "case",
    "share",
    "had",
    "error",
    "worst 1 s",
    "bound",
    "of L/W",
    "work",
    "waits",
    "looks",
    "host",
    "kept",
)
_CHECKS = ("case", "figure", "measured", "bound", "host", "kept")


def _show(found: Verdicts) -> None:
    from vcuda.commands import tables

    console = tables.console()
    shares = [_share(case, verdict, each) for case, verdict in found for each in verdict.shares]
    checks = [_check(case, verdict, each) for case, verdict in found for each in verdict.checks]
    problems = [[case.name, verdict.problem] for case, verdict in found if verdict.problem]
    if shares:
        tables.show(console, tables.columns(_SHARES, shares, right=_SHARES[1:-1]))
        click.echo(
            "share, had: % of the card; error, worst 1 s, bound: points of that; L/W: one launch of the\n"
            "longest in 1 s; work: by the work expected of the share; looks: wake-ups per wait; host: how\n"
            "much of the time something waited for a processor, which disturbs simulated cards\n"
        )
    if checks:
        tables.show(console, tables.columns(_CHECKS, checks, right=_CHECKS[2:-1]))
        click.echo()
    for name, problem in problems:
        click.echo(f"{name}: {problem}")


def _share(case: Case, verdict: Verdict, found: Accuracy) -> list[str]:
    several = len(case.runs[-1].members) > 1
    looks = found.wakeups_per_wait
    return [
        f"{case.name} {found.member}" if several else case.name,
        f"{found.granted:g}",
        f"{found.achieved:.2f}",
        f"{found.error:+.2f}",
        f"{found.worst:+.2f}",
        f"{found.worst_bound:.2f}",
        f"{found.of_longest:.2f}" if found.longest_ns >= cases.MS else "",
        "" if found.throughput is None else f"{100 * found.throughput:.1f}%",
        "" if found.waits is None else str(found.waits),
        "" if looks is None else f"{looks:.2f}",
        _host(verdict),
        _kept(kept=found.kept),
    ]


def _check(case: Case, verdict: Verdict, check: Check) -> list[str]:
    unit = f" {check.unit}" if check.unit else ""
    if check.around is not None:
        bound = f"{check.around:.4g} ± {check.bound:.2f}"
    elif math.isfinite(check.bound):
        bound = f"{'>=' if check.at_least else '<='} {check.bound:.4g}"
    else:
        bound = ""
    return [case.name, check.what, f"{check.value:.4g}{unit}", bound, _host(verdict), _kept(kept=check.kept)]


def _host(verdict: Verdict) -> str:
    return "" if verdict.pressure is None else f"{100 * verdict.pressure:.0f}%"


def _kept(*, kept: bool) -> str:
    return "yes" if kept else "NO"

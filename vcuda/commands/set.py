"""vcuda set"""

import click

from vcuda import run
from vcuda.commands.options import PERCENT, PRIORITY
from vcuda.registry import Registry, runtime_directory
from vcuda.units import format_cores, format_priority


@click.command("set", short_help="Change a share's cores while it runs.")
@click.option("--cores", type=PERCENT, help="The share's part of the card's SM time, guaranteed.")
@click.option(
    "--cores-max",
    type=PERCENT,
    help="Up to here it may use what others leave idle. Left out: as it was, or --cores if it was that.",
)
@click.option("--priority", metavar="low|normal|high", type=PRIORITY, help="Who goes first.")
@click.argument("share")
def command(share: str, cores: int | None, cores_max: int | None, priority: int | None) -> None:
    """Change the cores, the ceiling or the priority of SHARE, a name in 'vcuda ps'.

    Its programs go on, and what they launch from now on gets the new share. Where two shares have one name,
    the last part of a share's directory, as 'vcuda ps --json' prints it, names it.

    \b
    Examples:
      vcuda set train --cores 50
      vcuda set train --cores-max 80 --priority low

    \b
    Exit status: 0; 1 if there is no such share, or others have been promised too much; 2 if this
    command line is wrong.
    """
    if cores is None and cores_max is None and priority is None:
        raise click.UsageError("nothing to change; give --cores, --cores-max or --priority")
    changed = run.change(
        Registry(runtime_directory()), share, core_ppm=cores, core_max_ppm=cores_max, priority=priority
    )
    ceiling = (
        "" if changed.core_max_ppm == changed.core_ppm else f" to {format_cores(changed.core_max_ppm or 0)}%"
    )
    click.echo(
        f"{changed.name}: {format_cores(changed.core_ppm or 0)}%{ceiling} of {changed.card_name}, "
        f"priority {format_priority(changed.priority)}"
    )

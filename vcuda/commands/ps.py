"""vcuda ps"""

import json

import click

from vcuda import report
from vcuda.commands.options import json_option
from vcuda.registry import Registry, runtime_directory


@click.command("ps", short_help="List the shares, their processes, and what these hold.")
@json_option
def command(*, as_json: bool) -> None:
    """List this user's shares, and the processes in each that use CUDA.

    Of each: memory held, by kind; GPU time; launches; allocations refused by the limit. A share's line is the
    sum, with what its ended processes used and were refused. CORES is what is guaranteed of the card's SM
    time, up to the ceiling, and the priority if it is not normal; NOW is the share in force. With --json,
    also what the limiter does: balance, waits, corrections. A PID marked "elsewhere" is one of another pid
    namespace.

    \b
    Examples:
      vcuda ps
      vcuda ps --json | jq '.shares[] | {name, used_bytes, refused}'
      vcuda ps --json | jq '.shares[] | {name, core_percent, limiter}'
    """
    reports = report.shares(Registry(runtime_directory()))
    if as_json:
        click.echo(json.dumps({"shares": [each.as_json() for each in reports]}, indent=2))
        return
    if not reports:
        click.echo("vcuda ps: there are no shares; start one with 'vcuda run'", err=True)
        return
    from vcuda.commands import shares, tables  # not above: rich takes a while to load

    tables.show(tables.console(), shares.table(reports))

"""vcuda doctor"""

import json
import sys

import click

from vcuda.checks import Check, State, checklist
from vcuda.commands.options import json_option, sim_option

_MARKS = {State.OK: ("ok", "green"), State.WARNING: ("!!", "yellow"), State.BROKEN: ("XX", "red")}


@click.command("doctor", short_help="Check whether a program would be limited here.")
@sim_option("Check with a simulated machine with these cards.")
@json_option
def command(sim: str | None, *, as_json: bool) -> None:
    """Check whether a program would be limited here, and say what to do where it would not.

    Is the library built, and does the dynamic linker take it? Which driver is there, with which cards? Is
    each function that can take memory caught? A program is started in a small share of each card, and tries
    to take more than it has. Exits with 1 if anything is broken.

    \b
    Examples:
      vcuda doctor
      vcuda doctor --json | jq '.checks[] | select(.state != "ok")'
    """
    checks: list[Check] = []
    for check in checklist(sim=sim):
        checks.append(check)
        if as_json:
            continue
        mark, colour = _MARKS[check.state]
        click.echo(f"{click.style(mark, fg=colour)}  {check.name}: {check.found}")
        if check.fix:
            click.echo(f"      {check.fix}")
    broken = sum(check.state is State.BROKEN for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not broken, "checks": [check.as_json() for check in checks]}, indent=2))
    elif broken:
        click.echo(f"{broken} broken: a program would not be limited here")
    else:
        click.echo("a program would be limited here")
    sys.exit(1 if broken else 0)

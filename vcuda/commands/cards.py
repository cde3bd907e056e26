"""vcuda cards"""

import json

import click

from vcuda import machine, report
from vcuda.commands.options import json_option, sim_option
from vcuda.report import CardReport
from vcuda.units import format_cores, format_size


@click.command("cards", short_help="List the cards, and what is promised of them.")
@sim_option(
    "The simulated machine with these cards; else the real cards, and the simulated ones with shares."
)
@json_option
def command(sim: str | None, *, as_json: bool) -> None:
    """List the cards: memory, what is promised to shares, and what is still free for them.

    PROMISED is the sum of the shares' limits, USED what the driver says is taken, by anybody. FREE and CORES
    are what a share can still be made of. Shares are those of this user.

    \b
    Examples:
      vcuda cards
      vcuda cards --json | jq '.cards[].free_bytes'
      vcuda cards --sim A100-SXM4-80GB,T4
    """
    with machine.every(sim=sim) as machines:
        cards = report.cards(machines)
        if as_json:
            click.echo(json.dumps({"cards": [card.as_json() for card in cards]}, indent=2))
            return
        for note in (found.driver.note for found in machines if found.driver.note):
            click.echo(
                f"vcuda cards: {note}: this is the simulated card that 'vcuda run' would use", err=True
            )
    from vcuda.commands import tables  # not above: rich takes a while to load

    headings = ("CARD", "MODEL", "MEMORY", "PROMISED", "USED", "FREE", "CORES", "SHARES", "DRIVER", "UUID")
    right = ("CARD", "MEMORY", "PROMISED", "USED", "FREE", "CORES", "SHARES")
    tables.show(tables.console(), tables.columns(headings, (_row(card) for card in cards), right=right))


def _row(card: CardReport) -> tuple[str, ...]:
    driver = card.machine.driver
    return (
        str(card.card.index),
        card.card.short_name,
        format_size(card.card.usable_bytes),
        format_size(card.promised_bytes),
        format_size(card.card.used_bytes),
        format_size(card.room.free_bytes),
        f"{format_cores(card.room.free_ppm)}%",
        f"{card.room.shares} (whole)" if card.room.whole else str(card.room.shares),
        f"{driver.version} simulated" if driver.simulated else str(driver.version),
        card.card.uuid,
    )

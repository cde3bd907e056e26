"""vcuda run"""

import click

from vcuda import attend, run
from vcuda.commands.options import PERCENT, PRIORITY, Parsed, sim_option
from vcuda.errors import RefusedError
from vcuda.placement import Request
from vcuda.units import parse_size


def _say(text: str) -> None:
    click.echo(f"vcuda run: {text}", err=True)


def _name(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (
        0 < len(value) <= run.NAME_BYTES and value.isascii() and value.isprintable()
    ):
        raise click.BadParameter(f"{value!r} is not 1 to {run.NAME_BYTES} printable ASCII characters")
    return value


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS] [--]",
    short_help="Run a program in a share of a card.",
)
@click.option(
    "--memory",
    type=Parsed("size", parse_size),
    help="The share's memory: 4GiB, 512MiB, 1.5g or bytes; sizes are binary. "
    "Left out: with --cores all that is free on the card, else the whole card.",
)
@click.option(
    "--cores",
    type=PERCENT,
    help="The share's part of the card's SM time, guaranteed: 30 or 12.5. Left out: not limited.",
)
@click.option(
    "--cores-max",
    type=PERCENT,
    help="Up to here it may use what others leave idle. Left out: --cores, and nothing beyond.",
)
@click.option(
    "--priority",
    metavar="low|normal|high",
    type=PRIORITY,
    default="normal",
    show_default=True,
    help="Who goes first: high is given idle time before others; low gives way to high, down to 1 percent.",
)
@click.option(
    "--card",
    metavar="INDEX|UUID",
    help="The card: its number in 'vcuda cards', or (the beginning of) its UUID. "
    "Left out: the fullest card that has room.",
)
@sim_option(
    "Use a simulated machine with these cards: V100-SXM2-16GB, T4, A100-SXM4-80GB, ... All shares that name "
    "the same cards are on the same machine."
)
@click.option(
    "--name", callback=_name, help="What the share is called in 'vcuda ps'; else the command's name."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGUMENT...]")
def command(
    memory: int | None,
    cores: int | None,
    cores_max: int | None,
    priority: int,
    card: str | None,
    sim: str | None,
    name: str | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a share of a card.

    The command sees a card of the share's size, and CUDA_ERROR_OUT_OF_MEMORY at its limit. Signals reach it,
    and its exit status, or the signal that ended it, is passed on. The share ends with the command; what the
    command leaves running stays in it. Where there is no NVIDIA driver, a simulated card is used, and a line
    on standard error says so.

    \b
    Examples:
      vcuda run --memory 4GiB -- python train.py
      vcuda run --memory 4GiB --cores 30 --card 1 -- python train.py
      vcuda run --memory 4GiB --cores 30 --cores-max 60 --priority low -- python train.py
      vcuda run --sim T4,T4 --memory 12GiB -- ./a.out
      vcuda run -- python train.py                 # a whole card, alone

    \b
    Exit status: the command's; 126 if it can't be started, 127 if there is none;
    1 if there is no room or no card, 2 if this command line is wrong.
    """
    try:
        request = Request(
            memory_bytes=memory, core_ppm=cores, core_max_ppm=cores_max, priority=priority, card=card
        )
    except RefusedError as error:
        raise click.UsageError(str(error)) from error
    attend.end_like(run.run(run.Order(command=command, request=request, name=name, sim=sim), say=_say))

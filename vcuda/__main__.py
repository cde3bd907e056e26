"""The command line, `vcuda` and `python -m vcuda`."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from vcuda.errors import StartError, VcudaError

NAMES = ("run", "set", "cards", "ps", "top", "doctor", "bench", "queue", "explain")
"""The sub-commands, in the order of the help; each is vcuda.commands.NAME, loaded when it is needed."""


class _Commands(click.Group):
    """A group that loads its commands late, and says what went wrong in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in NAMES:
            return None
        return importlib.import_module(f"vcuda.commands.{cmd_name}").command

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,  # noqa: ARG002 (these are click's parameters)
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: ARG002
        windows_expand_args: bool = True,  # noqa: ARG002
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Run the command line; the process ends with 1 for what went wrong, 2 for a wrong command line."""
        given = list(sys.argv[1:] if args is None else args)
        who = " ".join(["vcuda", *(name for name in given[:1] if name in NAMES)])
        try:
            sys.exit(super().main(given, "vcuda", complete_var, standalone_mode=False, **extra))
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message())
            sys.exit(2)
        except click.UsageError as error:
            click.echo(f"{who}: {_sentence(error)}; see '{who} --help'", err=True)
            sys.exit(2)
        except StartError as error:
            click.echo(f"{who}: {error}", err=True)
            sys.exit(error.status)
        except VcudaError as error:
            click.echo(f"{who}: {error}", err=True)
            sys.exit(1)
        except BrokenPipeError:  # who read our output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            click.echo(f"{who}: {error.filename or 'input or output'}: {error.strerror}", err=True)
            sys.exit(1)
        except (click.Abort, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
            raise


def _sentence(error: click.UsageError) -> str:
    """Click's message as a part of a longer line."""
    message = " ".join(error.format_message().split()).rstrip(".")
    return message[:1].lower() + message[1:]


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if not value or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version  # not above: a fifth of the time to start

    try:
        click.echo(f"vcuda {version('vcuda')}")
    except PackageNotFoundError:
        click.echo("vcuda, from a directory where it is not installed")
    ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Share one NVIDIA GPU among programs that know nothing of it.

    Each program gets a share: it sees a card of the share's size, and at its limit it gets
    CUDA_ERROR_OUT_OF_MEMORY, as on a full card. Without an NVIDIA driver, a simulated card is used.

    \b
    Examples:
      vcuda run --memory 4GiB -- python train.py   # in a share of 4 GiB
      vcuda ps                                     # shares, and what they hold
      vcuda doctor                                 # would a program be limited here?
    """


def main() -> None:
    """Entry point of the `vcuda` script."""
    cli()


if __name__ == "__main__":
    main()

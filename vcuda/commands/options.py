"""Options and types that several commands have."""

from collections.abc import Callable
from typing import TypeVar

import click

from vcuda.errors import VcudaError
from vcuda.units import parse_cores, parse_priority

Function = TypeVar("Function", bound=Callable[..., object])


class Parsed(click.ParamType[int]):
    """A value that one of vcuda.units' parsers reads."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, with the parser's own message for what it does not take."""
        try:
            return self._parse(str(value))
        except VcudaError as error:
            self.fail(str(error), param, ctx)


def sim_option(text: str) -> Callable[[Function], Function]:
    """--sim, with its help for one command."""
    return click.option("--sim", metavar="MODEL[,MODEL...]", help=text)


PERCENT = Parsed("percent", parse_cores)
PRIORITY = Parsed("priority", parse_priority)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")

"""Tables for people: aligned columns, which `grep` and `awk` can read too."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 4096
"""Where no terminal sets a width, no line is broken."""


def console() -> Console:
    """Standard output."""
    made = Console(highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def errors() -> Console:
    """Standard error, for what is no result."""
    return Console(stderr=True, highlight=False)


def columns(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    whole: Mapping[str, int] | None = None,
) -> Table:
    """A table without lines; the columns in `right` are numbers, those in `whole` never narrower."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        side = "right" if heading in right else "left"
        overflow = "fold" if heading == headings[-1] else "ellipsis"
        table.add_column(
            heading,
            justify=side,
            overflow=overflow,
            min_width=(whole or {}).get(heading),
            no_wrap=bool(whole),
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Iterable[float], most: float) -> str:
    """A line of bars, one for each value, from 0 to `most`; more than that is drawn as that."""
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round(max(0.0, min(1.0, value / most)) * steps)] for value in values)


def show(console: Console, table: Table) -> None:
    """Print a table, without the blanks that pad its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))

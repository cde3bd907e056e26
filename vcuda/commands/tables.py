"""Tables for people: aligned columns, which `grep` and `awk` can read too."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPED_WIDTH = 4096
"""Where no terminal sets a width, no line is broken."""


def console() -> Console:
    """Standard output."""
    made = Console(highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def columns(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns in `right` are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        side = "right" if heading in right else "left"
        table.add_column(heading, justify=side, overflow="fold" if heading == headings[-1] else "ellipsis")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def show(console: Console, table: Table) -> None:
    """Print a table, without the blanks that pad its lines."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))

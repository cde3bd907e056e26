"""The live table: what each share uses of the card, read from the ledgers while the clients run."""

from collections.abc import Mapping, Sequence
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.machine import Use
from demo.shares import Share
from vcuda.units import format_duration, format_size

BAR_CELLS = 10


class Board:
    """One table, redrawn whenever there is something new; on a terminal in place, else only at the end."""

    def __init__(self, console: Console, shares: Sequence[Share], card: str) -> None:
        self._shares = shares
        self._card = card
        self._step = ""
        self._uses: Mapping[str, Use] = {}
        self._console = console
        self._live = Live(self.render(), console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def step(self, text: str) -> None:
        """Say what happens now."""
        self._step = text
        if self._console.is_terminal:
            self.show(self._uses)
        else:
            self._console.print(f"- {text}")

    def show(self, uses: Mapping[str, Use]) -> None:
        """Draw the table anew; a share that has ended keeps its last line."""
        self._uses = {**self._uses, **uses}
        if self._console.is_terminal:
            self._live.update(self.render(), refresh=True)

    def keep(self) -> None:
        """Where there is no terminal to draw on again and again, this is the moment worth printing."""
        if not self._console.is_terminal:
            self._console.print(self.render())

    def render(self) -> RenderableType:
        """The table as it stands."""
        table = Table(title=f"one card, {len(self._shares)} shares", title_justify="left", title_style="bold")
        table.add_column("share", style="bold")
        table.add_column("client")
        table.add_column("limit", justify="right")
        table.add_column("used", justify="right")
        table.add_column("", no_wrap=True)
        table.add_column("by kind")
        table.add_column("refused", justify="right")
        table.add_column("launches", justify="right")
        table.add_column("GPU time", justify="right")
        table.add_column("state")
        for share in self._shares:
            use = self._uses.get(share.plan.name, Use())
            part = use.used_bytes / share.plan.memory_bytes
            table.add_row(
                share.plan.name,
                share.client,
                format_size(share.plan.memory_bytes),
                format_size(use.used_bytes),
                _bar(part),
                ", ".join(
                    f"{kind.lower()} {format_size(size)}" for kind, size in use.by_kind.items() if size
                ),
                str(use.refused),
                str(use.launches),
                format_duration(use.gpu_ns),
                share.state,
            )
        return Group(Text(f"{self._card}; now: {self._step}" if self._step else self._card), table)


def _bar(part: float) -> Text:
    cells = min(BAR_CELLS, round(part * BAR_CELLS))
    colour = "red" if part > 0.98 else "green"
    return Text("█" * cells, style=colour) + Text("░" * (BAR_CELLS - cells), style="dim")

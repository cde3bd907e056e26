"""What the demo claims, each claim with what was expected and what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

PAGE_BYTES = 2 * 2**20
"""The granularity of device memory: to this a limit can be used up, and no further."""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """One claim about one share (or about the card)."""

    share: str
    claim: str
    expected: str
    measured: str
    holds: bool


def equal(share: str, claim: str, *, expected: object, measured: object) -> Proof:
    """A claim that two values are the same."""
    return Proof(
        share=share,
        claim=claim,
        expected=_text(expected),
        measured=_text(measured),
        holds=expected == measured,
    )


def within_page(share: str, claim: str, *, limit: int, used: int) -> Proof:
    """A claim that a limit was used up to the last page, and not exceeded."""
    return Proof(
        share=share,
        claim=claim,
        expected=f"> {limit - PAGE_BYTES:,}, <= {limit:,}",
        measured=f"{used:,}",
        holds=limit - PAGE_BYTES < used <= limit,
    )


def summary(proofs: Sequence[Proof]) -> Table:
    """All claims as a table, grouped by claim."""
    table = Table(title="what was proven (memory in bytes)", title_justify="left", title_style="bold")
    table.add_column("claim")
    table.add_column("share", style="bold")
    table.add_column("expected", justify="right")
    table.add_column("measured", justify="right")
    table.add_column("")
    before = None
    for proof in sorted(proofs, key=lambda proof: _first(proofs, proof.claim)):
        if before is not None and before != proof.claim:
            table.add_section()
        table.add_row(
            proof.claim if before != proof.claim else "",
            proof.share,
            proof.expected,
            proof.measured,
            "[green]ok[/]" if proof.holds else "[bold red]FAILED[/]",
        )
        before = proof.claim
    return table


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case "":
            return "none"
        case _:
            return str(value)


def _first(proofs: Sequence[Proof], claim: str) -> int:
    return next(index for index, proof in enumerate(proofs) if proof.claim == claim)

"""Which card a share goes to. A pure function of what the cards have and what is asked."""

from collections.abc import Sequence
from dataclasses import dataclass

from vcuda.errors import RefusedError
from vcuda.units import PPM, format_cores, format_size


@dataclass(frozen=True, kw_only=True)
class CardRoom:
    """What one card has, and what of it is not yet promised to a share."""

    index: int
    uuid: str
    name: str
    usable_bytes: int
    free_bytes: int
    free_ppm: int
    shares: int
    whole: bool = False
    """One share has the card to itself."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked. Neither memory nor cores: a whole card. Cores alone: with all memory that is free.

    Raises:
        RefusedError: a ceiling or a priority without cores, or a ceiling below them.

    """

    memory_bytes: int | None = None
    core_ppm: int | None = None
    core_max_ppm: int | None = None
    """The ceiling up to which idle time is used; None for none beyond the cores."""
    priority: int = 0
    """-1, 0 or 1."""
    card: str | None = None
    """An index or a UUID (or its beginning); None for any card."""

    def __post_init__(self) -> None:
        if self.core_ppm is None and self.priority:
            raise RefusedError("a priority is that of a core share; give one with --cores")
        if self.core_max_ppm is not None:
            check_ceiling(self.core_ppm, self.core_max_ppm)

    @property
    def whole(self) -> bool:
        """Whether a card without other shares is asked."""
        return self.memory_bytes is None and self.core_ppm is None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The card that was chosen, and what the share gets of it."""

    card: CardRoom
    memory_bytes: int
    core_ppm: int
    """Guaranteed; PPM when cores were not asked: then they are not limited either."""
    core_max_ppm: int
    """The ceiling; the guarantee itself when none was asked."""
    priority: int
    whole: bool


def place(cards: Sequence[CardRoom], request: Request) -> Placement:
    """Choose the fullest card that has room, so that large shares find large gaps; then the lowest index.

    Raises:
        RefusedError: no card has room, or the card that was named does not exist.

    """
    candidates = _named(cards, request.card)
    fitting = [card for card in candidates if _fits(card, request)]
    if not fitting:
        raise RefusedError(_why_not(candidates, request))
    chosen = min(fitting, key=lambda card: (card.free_bytes, card.index))
    core_ppm = PPM if request.core_ppm is None else request.core_ppm
    return Placement(
        card=chosen,
        memory_bytes=chosen.free_bytes if request.memory_bytes is None else request.memory_bytes,
        core_ppm=core_ppm,
        core_max_ppm=core_ppm if request.core_max_ppm is None else request.core_max_ppm,
        priority=request.priority,
        whole=request.whole,
    )


def check_ceiling(core_ppm: int | None, core_max_ppm: int) -> None:
    """See that a ceiling goes with the cores.

    Raises:
        RefusedError: there are none, or they are more.

    """
    ceiling = format_cores(core_max_ppm)
    if core_ppm is None:
        raise RefusedError(f"a ceiling of {ceiling}% without a share; give one with --cores")
    if core_max_ppm < core_ppm:
        raise RefusedError(
            f"a ceiling of {ceiling}% is below the share of {format_cores(core_ppm)}%; "
            f"raise --cores-max or lower --cores"
        )


def check_change(card: str, *, taken_ppm: int, had_ppm: int, asked_ppm: int) -> None:
    """See that a share that has `had_ppm` of the `taken_ppm` that a card has promised can have `asked_ppm`.

    Raises:
        RefusedError: others have been promised so much that it does not fit.

    """
    free_ppm = max(0, PPM - taken_ppm + had_ppm)
    if asked_ppm > max(free_ppm, had_ppm):  # less than before is never refused
        raise RefusedError(
            f"{format_cores(asked_ppm)}% of cores asked, {format_cores(free_ppm)}% can be had on {card}; "
            "see 'vcuda ps'"
        )


def _named(cards: Sequence[CardRoom], name: str | None) -> list[CardRoom]:
    if name is None:
        return list(cards)
    if name.isdecimal():
        matches = [card for card in cards if card.index == int(name)]
    else:
        matches = [card for card in cards if card.uuid.lower().startswith(name.lower())]
    if len(matches) != 1:
        problem = "no such card" if not matches else f"fits {len(matches)} cards"
        have = ", ".join(f"{card.index} ({card.uuid})" for card in cards)
        raise RefusedError(f"card {name!r}: {problem}; this machine has {have}")
    return matches


def _fits(card: CardRoom, request: Request) -> bool:
    if request.whole:
        return card.shares == 0
    if card.whole or card.free_bytes == 0:
        return False
    memory_fits = request.memory_bytes is None or request.memory_bytes <= card.free_bytes
    return memory_fits and (request.core_ppm is None or request.core_ppm <= card.free_ppm)


def _why_not(cards: Sequence[CardRoom], request: Request) -> str:
    """The refusal, with what is free on the card that comes closest."""
    if not cards:
        return "there is no card; see 'vcuda doctor'"
    best = max(cards, key=lambda card: (not card.whole, card.free_bytes, -card.index))
    where = f"card {best.index} ({best.name})"
    if request.whole:
        busy = "1 share" if best.shares == 1 else f"{best.shares} shares"
        every = f"{where} has" if len(cards) == 1 else f"no card is without shares: {where} has"
        return f"a whole card asked, {every} {busy}; ask for a part with --memory, or see 'vcuda cards'"
    if best.whole:
        asked = "" if request.memory_bytes is None else f"{format_size(request.memory_bytes)} asked, "
        return f"{asked}{where} is taken whole by one share; see 'vcuda ps'"
    if best.free_bytes == 0 or (request.memory_bytes is not None and request.memory_bytes > best.free_bytes):
        asked = "memory" if request.memory_bytes is None else format_size(request.memory_bytes)
        return f"{asked} asked, {format_size(best.free_bytes)} free on {where}; see 'vcuda cards'"
    best = max(cards, key=lambda card: (not card.whole, card.free_ppm, -card.index))
    asked_ppm = request.core_ppm or 0
    return (
        f"{format_cores(asked_ppm)}% of cores asked, {format_cores(best.free_ppm)}% free on "
        f"card {best.index} ({best.name}); see 'vcuda cards'"
    )

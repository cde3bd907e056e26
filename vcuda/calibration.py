"""What a context costs, per card model and driver: measured once, kept in the user's cache."""

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from vcuda import driver as drivers
from vcuda.driver import Card, Driver
from vcuda.errors import VcudaError


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a grant has to say of a card and its driver; 0 for what could not be measured."""

    context_bytes: int = 0
    """With 0 the shim charges contexts nothing."""
    page_bytes: int = 0
    """With 0 the shim takes the usual 2 MiB."""


def calibrate(driver: Driver, card: Card) -> Calibration:
    """What is known of this card with this driver, measured now if it was not before."""
    cache = _cache()
    key = _key(driver, card)
    known = _read(cache) if cache else {}
    if key in known:
        return known[key]
    try:
        answer = drivers.ask(driver.environment, "context", str(card.index))
    except VcudaError:
        return Calibration()
    measured = Calibration(
        context_bytes=max(0, answer["context_bytes"] or 0), page_bytes=answer["page_bytes"] or 0
    )
    if cache and measured.context_bytes:
        _write(cache, {**known, key: measured})
    return measured


def _cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(base or Path.home() / ".cache") / "vcuda" / "calibration.json"
    except RuntimeError:
        return None  # a user without a home


def _key(driver: Driver, card: Card) -> str:
    """Model, driver version, and which build of it: what was measured on another is not believed."""
    try:
        status = Path(driver.libcuda).stat()
        build = f"{status.st_size}.{status.st_mtime_ns}"
    except OSError:
        build = "?"
    return f"{card.name}|{driver.version}|{build}"


def _read(cache: Path) -> dict[str, Calibration]:
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        return {
            str(key): Calibration(
                context_bytes=int(value["context_bytes"]), page_bytes=int(value["page_bytes"])
            )
            for key, value in content.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(cache: Path, known: dict[str, Calibration]) -> None:
    with contextlib.suppress(OSError):  # a cache: without it the next run measures again
        cache.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=cache.parent, prefix=".calibration-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({key: asdict(value) for key, value in known.items()}, file)
        Path(name).replace(cache)

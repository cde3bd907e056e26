"""Options and fixtures for all tests. What the fixtures do is in tests/support.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import support


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long tests too (marker: soak)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="takes long; run with --soak ('make soak')"))


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether this is the long run: for tests that do the same thing more often then."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture
def simulated(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """simulated(cards="V100-SXM2-16GB", SIMGPU_DRIVER=...): the environment of the test's own machine."""

    def make(cards: str = "V100-SXM2-16GB", **variables: str) -> dict[str, str]:
        return support.simulator_environment(tmp_path, cards, **variables)

    return make


@pytest.fixture
def grant_dir(tmp_path: Path) -> Callable[..., Path]:
    """grant_dir(uuid, memory_bytes, context_bytes=...): the directory of a new share's grant and ledger."""

    def make(uuid: str, memory_bytes: int, **card: object) -> Path:
        return support.make_share(tmp_path, uuid, memory_bytes, **card)

    return make


@pytest.fixture
def user(tmp_path: Path) -> Iterator[support.Commands]:
    """Somebody who types vcuda's commands, with all their files in this test's directory."""
    commands = support.Commands(tmp_path)
    yield commands
    commands.close()

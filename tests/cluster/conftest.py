"""The cluster of the tests: one for the whole session, since coming up takes seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machine import CannotRunContainers, Cluster, binaries

_HERE = Path(__file__).parent
_reason = pytest.StashKey[str]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build what is missing before the first test, whose time is limited; the first build takes minutes."""
    here = [item for item in session.items if _HERE in item.path.parents]
    if not here or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    shown = capture.global_and_fixture_disabled() if capture else contextlib.nullcontext()
    try:
        with shown:  # its progress
            binaries.find()
    except CannotRunContainers as reason:
        session.config.stash[_reason] = str(reason)
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"no cluster on this machine: {reason}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why the tests of clusters were skipped, which `-q` does not."""
    if _reason in config.stash:
        terminalreporter.write_line(f"tests/cluster skipped: {config.stash[_reason]}")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A running cluster, shared: a test removes what it made, and brings back what it killed."""
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(Cluster(users={"alice": ["team-a"], "bob": ["team-b"]}))
        except CannotRunContainers as reason:
            pytest.skip(f"no cluster on this machine: {reason}")
        yield running
        if request.session.testsfailed:
            running.keep_logs()

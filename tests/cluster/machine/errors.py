"""What can go wrong with a cluster of the tests, and waiting that says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class ClusterError(Exception):
    """A cluster did not do what it was asked to: the message has who, what, and the last lines of its log."""


class CannotRunContainers(ClusterError):
    """This machine cannot run a cluster; the message says why. Tests are skipped with it."""


def until(what: str, ask: Callable[[], T | None], *, timeout_s: float = 60, every_s: float = 0.05) -> T:
    """The first true answer of `ask`, which may raise any Exception meanwhile; a ClusterError is let through.

    Raises:
        ClusterError: No answer was true in `timeout_s` seconds; names `what` and the last answer.
    """
    end = time.monotonic() + timeout_s
    while True:
        cause: Exception | None = None
        answer: object
        try:
            if answer := ask():
                return answer
        except ClusterError:
            raise
        except Exception as error:
            answer, cause = error, error
        if time.monotonic() > end:
            raise ClusterError(f"{what}: not within {timeout_s:g} s; last seen: {answer!r}") from cause
        time.sleep(every_s)

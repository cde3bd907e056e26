"""Pauses between attempts: each twice as long as the one before, up to a bound, and a bit at random."""

import asyncio
import random

_FIRST_S = 0.1


class BackOff:
    """The pauses of one who tries again and again."""

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._next_s = min(_FIRST_S, most_s)

    def reset(self) -> None:
        """It went well: the next pause is the shortest again."""
        self._next_s = min(_FIRST_S, self._most_s)

    async def pause(self) -> None:
        """Wait; replicas that failed together do not try again together."""
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))  # noqa: S311 (no secret)
        self._next_s = min(self._most_s, self._next_s * 2)

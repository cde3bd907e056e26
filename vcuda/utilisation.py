"""Asking sampler.py, without ever waiting for it: what was answered is there at a later look."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcuda.driver import outside_shares

_PROGRAM = Path(__file__).with_name("sampler.py")
_SILENT_NS = 30_000_000_000
"""A driver may take long to start. One that does not answer for so long is hung."""
_AGAIN_NS = 60_000_000_000
"""After a fault, the next attempt."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the processes of a card have used since some instant in the past."""

    until_ns: int
    """CLOCK_MONOTONIC."""
    used_ns: Mapping[int, int]
    """By pid, as the driver knows it."""


class Utilisation:
    """The sampler of one driver, the one that `environment` leads to. Started when it is first asked."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._answers: dict[str, Answer] = {}
        self._unanswered_since_ns = 0
        self._not_before_ns = 0
        self.fault: str | None = None
        """Why there are no answers."""

    def prepare(self, now_ns: int) -> None:
        """Start the sampler, which then waits: soon it may be asked."""
        if self._process is None and now_ns >= self._not_before_ns:
            self._start()

    def ask(self, uuid: str, now_ns: int) -> None:
        """Have a card watched for the next seconds, and its counts sent."""
        if now_ns < self._not_before_ns:
            return None
        if self._process is None:
            self._start()
        if self._process is None or self._process.stdin is None:
            return self._give_up("cannot be started", now_ns)
        if self._unanswered_since_ns == 0:
            self._unanswered_since_ns = now_ns
        try:
            os.write(self._process.stdin.fileno(), f"{uuid}\n".encode())
        except BlockingIOError:
            pass  # it has not read what it was asked before
        except OSError:
            self._give_up("has ended", now_ns)
        return None

    def look(self, uuid: str, now_ns: int) -> Answer | None:
        """The latest answer about a card, if there is any."""
        self._read(now_ns)
        return self._answers.get(uuid)

    def close(self) -> None:
        """End the sampler, and wait for its end."""
        process, self._process = self._process, None
        self._answers = {}
        self._rest = b""
        self._unanswered_since_ns = 0
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _start(self) -> None:
        try:
            process = subprocess.Popen(
                # -P as in driver.ask; a session of its own, which no key in a terminal reaches.
                [sys.executable, "-P", str(_PROGRAM)],
                env=outside_shares(self._environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        self._process = process

    def _read(self, now_ns: int) -> None:
        if self._process is None or self._process.stdout is None:
            return None
        try:
            content = os.read(self._process.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            silent = self._unanswered_since_ns and now_ns - self._unanswered_since_ns > _SILENT_NS
            return self._give_up("does not answer", now_ns) if silent else None
        except OSError:
            content = b""
        if not content:
            return self._give_up("has ended", now_ns)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._take(json.loads(line), now_ns)
        return None

    def _take(self, answer: dict[str, object], now_ns: int) -> None:
        self._unanswered_since_ns = 0
        uuid, until_ns, used = (answer.get(name) for name in ("uuid", "until_ns", "used_ns"))
        if isinstance(uuid, str) and isinstance(until_ns, int) and isinstance(used, dict):
            counts = {int(str(pid)): int(str(ns)) for pid, ns in used.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
            self._answers[uuid] = Answer(until_ns=until_ns, used_ns=counts)
            self.fault = None
        elif "fault" in answer:
            self._give_up(str(answer["fault"]), now_ns)

    def _give_up(self, fault: str, now_ns: int) -> None:
        self.close()
        self.fault = fault
        self._not_before_ns = now_ns + _AGAIN_NS

"""The shares of the demo: each is a `vcuda run` as a user would start it, with one client inside."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from demo.machine import Machine

CLIENTS = Path(__file__).parent / "clients"
ANSWER_SECONDS = 120
"""The longest wait for an answer: a client compiles its kernel before it first answers."""


class ClientError(Exception):
    """A client ended, or did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A share to be: its name, its size, and the program in it."""

    name: str
    memory_bytes: int
    command: tuple[str, ...]


def python(script: str) -> tuple[str, ...]:
    """The command of one of the clients in Python."""
    return (sys.executable, str(CLIENTS / script))


@dataclass
class Share:
    """A running client in its share."""

    plan: Plan
    process: subprocess.Popen[str]
    log: Path
    state: str = "starting"
    client: str = ""
    pid: int = 0
    spoiled: int = 0
    """Blocks that did not hold what was written to them."""
    answers: Queue[dict[str, Any]] = field(default_factory=Queue)
    collector: threading.Thread | None = None
    """Fills `answers` until the client closes its standard output."""

    def tell(self, command: str) -> None:
        """Send a command; its answer is fetched with `answer`."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.process.wait(timeout=10)
            raise ClientError(
                f"{self.plan.name}: ended with {self.process.returncode}: {self.errors()}"
            ) from None

    def answer(self, event: str) -> dict[str, Any]:
        """The client's next answer, which must be `event`.

        Raises:
            ClientError: it is another, or none comes.

        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self.answers.get(timeout=0.2)
            except Empty:
                if self.process.poll() is None:
                    continue
                raise ClientError(
                    f"{self.plan.name}: ended with {self.process.returncode}: {self.errors()}"
                ) from None
            if answer["event"] != event:
                raise ClientError(f"{self.plan.name}: {answer} where {event!r} was expected")
            return answer
        raise ClientError(f"{self.plan.name}: no answer within {ANSWER_SECONDS} s: {self.errors()}")

    def ask(self, command: str, event: str) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self.tell(command)
        return self.answer(event)

    def errors(self) -> str:
        """What the client and `vcuda run` wrote to standard error."""
        return self.log.read_text(errors="replace").strip()

    def unexpected(self) -> str:
        """What is on standard error beside the line that says that the card is simulated."""
        return "\n".join(line for line in self.errors().splitlines() if "simulated" not in line)

    def kill(self) -> None:
        """End the client if it still runs, and let go of it; `vcuda run` cleans up behind it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.collector is not None:
            self.collector.join(timeout=10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def end(self) -> int:
        """Close the client's standard input and wait; its exit status."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            return self.process.wait(timeout=10)


def start(plan: Plan, machine: Machine) -> Share:
    """Start `vcuda run` on the simulated machine."""
    log = machine.directory / f"{plan.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            run_command(plan.memory_bytes, machine, plan.command, "--name", plan.name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
            env=machine.environment,
        )
    share = Share(plan=plan, process=process, log=log)
    share.collector = threading.Thread(target=_collect, args=(share,), daemon=True)
    share.collector.start()
    return share


def run_command(memory_bytes: int, machine: Machine, command: tuple[str, ...], *options: str) -> list[str]:
    """The `vcuda run` of one share."""
    return [
        *(sys.executable, "-m", "vcuda", "run"),
        *("--sim", machine.model, "--memory", str(memory_bytes), *options, "--", *command),
    ]


def refused(memory_bytes: int, machine: Machine) -> tuple[int, str]:
    """Exit status and message of a `vcuda run` that asks for `memory_bytes`."""
    done = subprocess.run(
        run_command(memory_bytes, machine, (os.path.realpath("/bin/true"),)),
        env=machine.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.strip()


def _collect(share: Share) -> None:
    assert share.process.stdout is not None
    for line in share.process.stdout:
        share.answers.put(json.loads(line))

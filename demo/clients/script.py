"""What every client of the demo does, told apart from how it reaches the driver.

A client reads one command per line from standard input and answers with one JSON object per line on standard
output. While it waits for the next command it works: allocates, copies a pattern to the card, launches a
kernel, copies the pattern back, compares, frees. driver_api.c does the same in C.

Commands: `tell` says what the client sees and has done; `fill` allocates until the driver says
CUDA_ERROR_OUT_OF_MEMORY, in ever smaller blocks down to 2 MiB, and checks what it wrote; `free` gives all of
it back and allocates once more; `end` leaves.
"""

import json
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO, TypeVar

MIB = 2**20
BLOCKS = (256 * MIB, 32 * MIB, 2 * MIB)
"""Sizes that `fill` asks for, each until it is refused; the last is the granularity of device memory."""
WORK_BYTES = 4 * MIB
STAMP_BYTES = 4096
"""Written at both ends of each block that `fill` gets; the rest of a block is never touched."""


class OutOfMemoryError(Exception):
    """The driver answered CUDA_ERROR_OUT_OF_MEMORY."""


Block = TypeVar("Block")


class Client(Protocol[Block]):
    """One way to reach a driver."""

    def describe(self) -> str:
        """Name and version of what this client is made of."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the card as the driver tells them."""
        ...

    def allocate(self, size_bytes: int) -> Block:
        """Take device memory.

        Raises:
            OutOfMemoryError: the driver refused.

        """
        ...

    def release(self, block: Block) -> None:
        """Give it back."""
        ...

    def write(self, block: Block, offset: int, content: bytes) -> None:
        """Copy to the card."""
        ...

    def read(self, block: Block, offset: int, size_bytes: int) -> bytes:
        """Copy from the card."""
        ...

    def launch(self, block: Block, size_bytes: int) -> None:
        """Submit one kernel over a block, and wait for it."""
        ...


def follow(client: Client[Block]) -> None:
    """Follow the commands on standard input until `end` or the end of the file."""
    with _answers() as say:
        free, total = client.memory()
        say(event="ready", client=client.describe(), pid=os.getpid(), total=total, free=free)
        held: list[tuple[Block, int]] = []
        worked = wrong = 0
        for command in _commands():
            match command:
                case "" if held:
                    pass  # its share is full: it waits
                case "":
                    went = _work(client, worked)
                    worked += went is not None
                    wrong += went is False
                case "tell":
                    say(event="told", free=client.memory()[0], worked=worked, wrong=wrong)
                case "fill":
                    say(event="filled", **_fill(client, held), worked=worked, wrong=wrong)
                case "free":
                    wrong += _check(client, held)
                    while held:
                        client.release(held.pop()[0])
                    again = _work(client, worked)
                    say(
                        event="freed",
                        again=again is True,
                        free=client.memory()[0],
                        worked=worked,
                        wrong=wrong,
                    )
                case "end":
                    break
                case _:
                    raise SystemExit(f"unknown command {command!r}")
        say(event="ended", worked=worked, wrong=wrong)


def _commands() -> Iterator[str]:
    """Each line of standard input; the empty string while there is none."""
    source = sys.stdin.fileno()
    rest = b""
    while True:
        ready, _, _ = select.select([source], [], [], 0.05)
        if not ready:
            yield ""
            continue
        chunk = os.read(source, 4096)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.decode()


def _work(client: Client[Block], turn: int) -> bool | None:
    """Allocate, copy there and back around a kernel launch, free; whether the data came back.

    None for a client that holds its share to the last page: it cannot allocate, and waits for a command.
    """
    try:
        block = client.allocate(WORK_BYTES)
    except OutOfMemoryError:
        return None
    content = _stamp(turn) * 16
    client.write(block, 0, content)
    client.launch(block, len(content))
    came_back = client.read(block, 0, len(content)) == content
    client.release(block)
    return came_back


def _fill(client: Client[Block], held: list[tuple[Block, int]]) -> dict[str, int]:
    for size in BLOCKS:
        try:
            while True:
                block = client.allocate(size)
                stamp = _stamp(len(held))
                client.write(block, 0, stamp)
                client.write(block, size - len(stamp), stamp)
                held.append((block, size))
        except OutOfMemoryError:
            pass
    wrong = _check(client, held)
    return {
        "held": sum(size for _, size in held),
        "blocks": len(held),
        "free": client.memory()[0],
        "spoiled": wrong,
    }


def _check(client: Client[Block], held: list[tuple[Block, int]]) -> int:
    """How many blocks do not hold what was written to them."""
    wrong = 0
    for index, (block, size) in enumerate(held):
        stamp = _stamp(index)
        head, tail = client.read(block, 0, len(stamp)), client.read(block, size - len(stamp), len(stamp))
        wrong += head != stamp or tail != stamp
    return wrong


def _stamp(seed: int) -> bytes:
    """A pattern that differs from block to block and from process to process."""
    word = ((os.getpid() << 32) | seed).to_bytes(8, "little")
    return word * (STAMP_BYTES // len(word))


@contextmanager
def _answers() -> Iterator["_Say"]:
    """Write answers to the real standard output; what else is printed there goes to standard error."""
    with os.fdopen(os.dup(1), "w", buffering=1) as output:
        os.dup2(2, 1)
        yield _Say(output)


class _Say:
    def __init__(self, output: TextIO) -> None:
        self._output = output

    def __call__(self, **answer: object) -> None:
        print(json.dumps(answer), file=self._output, flush=True)

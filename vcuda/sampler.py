"""The driver's count of each process's GPU time, watched in a process of its own: `python vcuda/sampler.py`.

A process of its own, for probe.py's reasons: the driver is that of LD_LIBRARY_PATH, and may hang or crash. It
is run as a file, so that the rest of vcuda is not loaded for it.

Each line of input is a card's UUID, and is answered with a line of JSON:
    {"uuid", "until_ns", "used_ns": {PID: ns}}     what each process has used since the card was first asked
                                                   for, until an instant of CLOCK_MONOTONIC
    {"uuid", "fault"}                              why this cannot be had
A card that nobody has asked for lately is not watched any more. The end of input ends it.

The driver measures in intervals, of 1/6 s to a second, and tells whole percents of the last one, of those
processes that used the card in it. So it is asked often enough to miss none.
"""

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pynvml  # pyright: ignore[reportMissingTypeStubs]

nvml: Any = pynvml

LOOK_SECONDS = 0.08
"""Twice in the shortest interval that drivers have."""
WATCHED_SECONDS = 3.0
SHORTEST_US, LONGEST_US = 20_000, 1_500_000
"""Between these is the interval of any driver's samples."""
MOST_PROCESSES = 512
"""Of more, those that are idle are forgotten."""


@dataclass
class Used:
    """Adds up one card's samples; each is of the time since the one before. Pure."""

    until_us: int = 0
    """Until then everything is known; wall clock, as NVML has it. 0: nothing is."""
    interval_us: int = LONGEST_US
    """Of the samples: the shortest that was seen."""
    used_us: dict[int, float] = field(default_factory=dict[int, float])
    _last_us: int = 0
    """The end of the last interval in which anybody used the card."""

    def add(self, samples: Iterable[tuple[int, int, int]], asked_us: int) -> None:
        """Take in what the driver answered at `asked_us`: (pid, end of the interval, percent) each.

        Who is not in it has not used the card; for as long as nobody is, nobody has.
        """
        seen = False
        for end_us, percents in _intervals(samples):
            if end_us < self.until_us + SHORTEST_US:
                continue  # once more: its end is known to some microseconds only
            seen = True
            if self._last_us:
                self.interval_us = min(self.interval_us, end_us - self._last_us)
            if self.until_us:  # of how long the very first one is, is not known
                span_us = min(end_us - self.until_us, LONGEST_US)
                for pid, percent in percents.items():
                    self.used_us[pid] = self.used_us.get(pid, 0.0) + span_us * percent / 100
            self.until_us = self._last_us = end_us
            if len(self.used_us) > MOST_PROCESSES:
                self.used_us = {pid: used for pid, used in self.used_us.items() if pid in percents}
        if not seen and self.until_us == 0:
            self.until_us = asked_us
        elif (
            not seen
        ):  # whole intervals without a sample: quiet ones. The last may yet be told, a little late
            quiet = (asked_us - self.interval_us // 2 - self.until_us) // self.interval_us
            self.until_us += max(0, quiet) * self.interval_us


def _intervals(samples: Iterable[tuple[int, int, int]]) -> list[tuple[int, dict[int, int]]]:
    """The samples by the interval that they are of, oldest first: its end, and percent by pid."""
    found: list[tuple[int, dict[int, int]]] = []
    for pid, end_us, percent in sorted(samples, key=lambda sample: sample[1]):
        if not found or end_us - found[-1][0] >= SHORTEST_US:
            found.append((end_us, {}))
        found[-1][1][pid] = percent
    return found


def _look(device: Any, used: Used) -> None:  # noqa: ANN401 (NVML's handle)
    samples: list[tuple[int, int, int]] = []
    # Without samples since then, NVML says that there is no such thing.
    with contextlib.suppress(nvml.NVMLError_NotFound):
        samples = [
            (int(sample.pid), int(sample.timeStamp), int(sample.smUtil))
            for sample in nvml.nvmlDeviceGetProcessUtilization(device, used.until_us)
        ]
    used.add(samples, time.time_ns() // 1000)


def _answer(uuid: str, used: Used) -> dict[str, Any]:
    behind_ns = time.time_ns() - used.until_us * 1000
    return {
        "uuid": uuid,
        "until_ns": time.monotonic_ns() - behind_ns,
        "used_ns": {pid: round(used_us * 1000) for pid, used_us in used.used_us.items()},
    }


def main() -> None:
    """Answer until the input ends."""
    watched: dict[str, tuple[Any, Used, float]] = {}
    ready = False
    rest = b""
    while True:
        now = time.monotonic()
        watched = {uuid: each for uuid, each in watched.items() if now - each[2] < WATCHED_SECONDS}
        asked = select.select([sys.stdin], [], [], LOOK_SECONDS if watched else None)[0]
        for device, used, _ in watched.values():
            with contextlib.suppress(nvml.NVMLError):  # a card may be lost, and come back
                _look(device, used)
        if not asked:
            continue
        # Not by lines: select knows nothing of what Python has read ahead.
        content = os.read(sys.stdin.fileno(), 65536)
        if not content:
            return
        *lines, rest = (rest + content).split(b"\n")
        if not ready and not (ready := _ready(lines)):
            continue
        for uuid in dict.fromkeys(line.decode() for line in lines):
            _serve(uuid, watched)


def _ready(lines: Iterable[bytes]) -> bool:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        for line in lines:
            print(json.dumps({"uuid": line.decode(), "fault": str(error)}), flush=True)
        return False
    return True


def _serve(uuid: str, watched: dict[str, tuple[Any, Used, float]]) -> None:
    try:
        if uuid in watched:
            device, used, _ = watched[uuid]
        else:
            device, used = nvml.nvmlDeviceGetHandleByUUID(uuid), Used()
            _look(device, used)
        watched[uuid] = (device, used, time.monotonic())
        print(json.dumps(_answer(uuid, used)), flush=True)
    except nvml.NVMLError as error:
        watched.pop(uuid, None)
        print(json.dumps({"uuid": uuid, "fault": str(error)}), flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()

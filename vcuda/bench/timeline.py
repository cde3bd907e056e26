"""The card's time by the card's own count: which process had how much of it until when.

On the simulated card the count is exact, to the nanosecond, as of the instant that comes with it. On a real
one it is what NVML tells of each process's SM utilisation, a few samples a second.
"""

import json
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from vcuda.bench.judge import Curve, Point

LOOK_SECONDS = 0.02
"""From one look at the simulated card to the next."""
NVML_LOOK_SECONDS = 0.2


class Timeline(Protocol):
    """A count that goes on from entering it until leaving it."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        ...

    def curves(self) -> dict[int, Curve]:
        """What each process had, by pid; to be asked after leaving."""
        ...


class SimulatedTimeline:
    """The first card of the simulated machine in `machine`; simgpu-stat looks at it and writes to `log`."""

    def __init__(self, stat: Path, machine: Path, log: Path) -> None:
        self._command = [str(stat), str(LOOK_SECONDS)]
        self._environment = {"SIMGPU_DIR": str(machine)}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Begin."""
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=file
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        if self._process:
            self._process.terminate()
            self._process.wait()

    def curves(self) -> dict[int, Curve]:
        """What each process had."""
        return curves_of_looks(self._log.read_text(encoding="utf-8").splitlines())


def curves_of_looks(lines: Iterable[str]) -> dict[int, Curve]:
    """What simgpu-stat's lines tell of each process; a last line that was cut off is left out."""
    points: dict[int, list[Point]] = {}
    for line in lines:
        try:
            card: Mapping[str, Any] = json.loads(line)["cards"][0]
        except ValueError:
            continue
        for process in card["processes"]:
            points.setdefault(process["pid"], []).append(
                Point(card["now_ns"], process["busy_ns"], process["kernels"])
            )
    return {pid: Curve(tuple(each)) for pid, each in points.items()}


class NvmlTimeline:
    """A real card, by nvmlDeviceGetProcessUtilization: an estimate, as good as NVML's samples are."""

    def __init__(self, uuid: str) -> None:
        # Not above: it takes a while, and the simulated card needs none of it.
        import pynvml  # pyright: ignore[reportMissingTypeStubs]

        self._nvml: Any = pynvml
        self._uuid = uuid
        self._points: dict[int, list[Point]] = {}
        self._last_us = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        self._nvml.nvmlInit()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""
        self._stop.set()
        self._thread.join()
        self._nvml.nvmlShutdown()

    def curves(self) -> dict[int, Curve]:
        """What each process had."""
        return {pid: Curve(tuple(points)) for pid, points in self._points.items()}

    def _look(self) -> None:
        handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        offset_ns = time.monotonic_ns() - time.time_ns()
        self._last_us = time.time_ns() // 1000
        while not self._stop.wait(NVML_LOOK_SECONDS):
            try:
                samples = self._nvml.nvmlDeviceGetProcessUtilization(handle, self._last_us)
            except self._nvml.NVMLError:
                continue  # there is no new sample
            self._add(samples, offset_ns)

    def _add(self, samples: Iterable[Any], offset_ns: int) -> None:
        for one in sorted(samples, key=lambda each: each.timeStamp):
            self._last_us = max(self._last_us, one.timeStamp)
            now_ns = one.timeStamp * 1000 + offset_ns
            points = self._points.setdefault(one.pid, [Point(now_ns, 0, 0)])
            before = points[-1]
            if now_ns > before.at_ns:
                busy_ns = before.busy_ns + (now_ns - before.at_ns) * min(one.smUtil, 100) // 100
                points.append(Point(now_ns, busy_ns, 0))

"""What the shim costs, measured side by side with the same calls without it: `make bench`.

    python native/bench/run.py [--seconds S] [--repeats N] [--starts PROCESSES] [--out DIRECTORY]

Calls are timed on the empty driver, whose calls return at once, so that the difference is the shim's own;
starts are timed on the simulated GPU. Each measurement is made with and without by turns. Results go to
results.json, with the bound that each has to keep, and are printed as a table; where matplotlib is installed,
calls.png and starts.png show them. The exit status is 0 whatever was measured: a bound is for a reader to
judge, on a machine that was quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "native"
BENCH = BUILD / "bench"
SHIM = BUILD / "libvcuda.so"
SIMULATOR = BUILD / "sim"

sys.path.insert(0, str(ROOT))

from vcuda import grant as grants  # noqa: E402
from vcuda import ledger as ledgers  # noqa: E402
from vcuda.grant import CardGrant, Grant  # noqa: E402

EMPTY_UUID = "GPU-00000000-0000-0000-0000-000000000001"
GIB = 2**30
CORE_PPM = 300_000
"""The shares are limited ones: 30 percent of a card's time."""

PEER = "HAMi-core, limiter on"
PEER_NS = {"launch": (18, 36), "alloc": (810, 850)}
"""The most used peer on such a driver, as a range, for comparison."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One figure, with the shim and without."""

    name: str
    title: str
    unit: str
    without: float
    with_shim: float
    judged: float
    """What the bound is about: what is added, or the size itself, in the bound's unit."""
    bound: float
    bound_unit: str

    @property
    def ratio(self) -> float | None:
        """With the shim to without."""
        return self.with_shim / self.without if self.without else None

    @property
    def within(self) -> bool:
        """Whether the bound is kept."""
        return self.judged <= self.bound


@dataclass(frozen=True)
class Calls:
    """A case of calls.c, and how many make the call at once."""

    name: str
    title: str
    case: str
    bound_ns: float
    threads: int = 1
    processes: int = 1


CALLS = (
    Calls("launch", "launch", "launch", 15),
    Calls("launch-default", "launch on the default stream", "launch-default", 15),
    Calls("launch-mixed", "launch, 16 kernels on 4 streams", "launch-mixed", 15),
    Calls("launch-ex", "launch with cuLaunchKernelEx", "launch-ex", 15),
    Calls("graph-launch", "launch of a graph", "graph-launch", 15),
    Calls("alloc", "allocate and free 2 MiB", "alloc", 150),
    Calls("alloc-small", "allocate and free 4 KiB", "alloc-small", 150),
    Calls("alloc-8-threads", "allocate and free 2 MiB, 8 threads", "alloc", 2000, threads=8),
    Calls("alloc-8-processes", "allocate and free 2 MiB, 8 processes", "alloc", 2000, processes=8),
    Calls("small-8-threads", "allocate and free 4 KiB, 8 threads", "alloc-small", 2000, threads=8),
    Calls("small-8-processes", "allocate and free 4 KiB, 8 processes", "alloc-small", 2000, processes=8),
    Calls("info", "cuMemGetInfo", "info", 150),
    Calls("dlsym", "dlsym of a name that is not the driver's", "dlsym", 10),
)


@dataclass(frozen=True)
class Effort:
    """How long, how often, and how many processes start at once."""

    seconds: float
    repeats: int
    starts: int


# ---- environments ----


@contextmanager
def share(uuid: str) -> Iterator[Path]:
    """A limited share of a card, with room for everything here."""
    with tempfile.TemporaryDirectory(prefix="vcuda-bench-") as name:
        directory = Path(name)
        card = CardGrant(uuid=uuid, memory_bytes=8 * GIB, core_ppm=CORE_PPM, core_max_ppm=CORE_PPM)
        grants.write(directory / "grant", Grant(name="bench", cards=(card,)))
        ledgers.create(directory / "ledger")
        yield directory


def plain(driver: Path, **more: str) -> dict[str, str]:
    """The environment of a program on this driver, without the shim."""
    dropped = ("LD_PRELOAD", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    kept = {
        k: v for k, v in os.environ.items() if k not in dropped and not k.startswith(("VCUDA_", "SIMGPU_"))
    }
    return {**kept, "LD_LIBRARY_PATH": str(driver), **more}


def limited(environment: dict[str, str], directory: Path) -> dict[str, str]:
    """The same with the shim, under a share."""
    return {**environment, "LD_PRELOAD": str(SHIM), "VCUDA_GRANT_DIR": str(directory)}


def output(command: list[str], environment: dict[str, str]) -> str:
    """What a program prints; it has to succeed."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


Pair = tuple[list[float], list[float]]
"""Values measured without the shim, and with it."""


def by_turns(repeats: int, one: Callable[[], float], other: Callable[[], float]) -> Pair:
    """Both measured `repeats` times, who goes first changing."""
    values: Pair = ([], [])
    for turn in range(repeats):
        for index in ((0, 1), (1, 0))[turn % 2]:
            values[index].append((one, other)[index]())
    return values


# ---- measurements ----


def calls(case: Calls, effort: Effort, directory: Path) -> Result:
    """Nanoseconds per call."""
    command = [str(BENCH / "calls"), case.case, str(case.threads), str(case.processes), str(effort.seconds)]
    without = plain(BENCH / "empty")
    alone = case.threads * case.processes == 1
    typical = min if alone else statistics.median
    a, b = (
        typical(values)
        for values in by_turns(
            effort.repeats,
            lambda: float(output(command, without)),
            lambda: float(output(command, limited(without, directory))),
        )
    )
    return Result(
        name=case.name,
        title=case.title,
        unit="ns",
        without=a,
        with_shim=b,
        judged=b - a,
        bound=case.bound_ns,
        bound_unit="ns added",
    )


def spawn(program: list[str], effort: Effort, directory: Path) -> tuple[float, float, float]:
    """Milliseconds to run a program: without, with, and the median of what was added."""
    seconds = effort.seconds * effort.repeats * 4
    environment = {**plain(BENCH / "empty"), "VCUDA_GRANT_DIR": str(directory)}
    line = output([str(BENCH / "spawn"), str(seconds), str(SHIM), *program], environment)
    without, with_shim, added = (float(word) for word in line.split())
    return without, with_shim, added


def spawn_true(effort: Effort, directory: Path) -> Result:
    """`/bin/true`: what every process of a container pays."""
    without, with_shim, added = spawn(["/bin/true"], effort, directory)
    return Result(
        name="true",
        title="run /bin/true",
        unit="ms",
        without=without,
        with_shim=with_shim,
        judged=added,
        bound=0.3,
        bound_unit="ms added",
    )


def spawn_python(effort: Effort, directory: Path) -> Result:
    """`python3 -c pass`, an interpreter that never touches CUDA."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable
    without, with_shim, added = spawn([python, "-c", "pass"], effort, directory)
    return Result(
        name="python",
        title="run python3 -c pass",
        unit="ms",
        without=without,
        with_shim=with_shim,
        judged=100 * added / without,
        bound=2,
        bound_unit="% added",
    )


def library_size() -> Result:
    """Bytes of the library without its debugging symbols."""
    with tempfile.TemporaryDirectory() as name:
        stripped = Path(name) / "stripped"
        subprocess.run(["strip", "-o", str(stripped), str(SHIM)], check=True)
        kib = stripped.stat().st_size / 1024
    return Result(
        name="size",
        title="size of libvcuda.so, stripped",
        unit="KiB",
        without=0,
        with_shim=kib,
        judged=kib,
        bound=256,
        bound_unit="KiB",
    )


def private_kib(environment: dict[str, str]) -> float:
    """Memory that a process has for itself alone, which waits and never touches CUDA."""
    with subprocess.Popen(
        ["/bin/cat"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        if process.stdin and process.stdout:
            process.stdin.write(b"x\n")
            process.stdin.flush()
            process.stdout.readline()
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        process.communicate()
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return sum(float(fields[field].split()[0]) for field in ("Private_Clean", "Private_Dirty"))


def private_memory(effort: Effort, directory: Path) -> Result:
    """What the shim adds to the private memory of a process that never touches CUDA."""
    without = plain(BENCH / "empty")
    a, b = (
        statistics.median(values)
        for values in by_turns(
            effort.repeats, lambda: private_kib(without), lambda: private_kib(limited(without, directory))
        )
    )
    return Result(
        name="memory",
        title="private memory of a process without CUDA",
        unit="KiB",
        without=a,
        with_shim=b,
        judged=b - a,
        bound=300,
        bound_unit="KiB added",
    )


def simulated_uuid(environment: dict[str, str]) -> str:
    """The simulated card's UUID, from the simulator's own program."""
    return json.loads(output([str(SIMULATOR / "simgpu-stat")], environment))["cards"][0]["uuid"]


def start_ms(effort: Effort, *, granted: bool) -> float:
    """Milliseconds until the slowest of many processes that call cuInit at once has it behind it."""
    with tempfile.TemporaryDirectory(prefix="vcuda-bench-") as name:
        environment = plain(SIMULATOR, SIMGPU_DIR=name, SIMGPU_CARDS="V100-SXM2-16GB")
        command = [str(BENCH / "starts"), str(effort.starts)]
        if not granted:
            return float(output(command, environment).split()[0])
        with share(simulated_uuid(environment)) as directory:
            return float(output(command, limited(environment, directory)).split()[0])


def starts(effort: Effort) -> tuple[Result, Pair]:
    """How much longer the slowest start takes."""
    values = by_turns(
        effort.repeats, lambda: start_ms(effort, granted=False), lambda: start_ms(effort, granted=True)
    )
    a, b = (statistics.median(each) for each in values)
    result = Result(
        name="starts",
        title=f"cuInit in {effort.starts} processes at once, the slowest",
        unit="ms",
        without=a,
        with_shim=b,
        judged=100 * (b - a) / a,
        bound=20,
        bound_unit="% added",
    )
    return result, values


# ---- what is shown ----


def table(results: list[Result]) -> None:
    """Print them."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="What the shim costs", title_justify="left")
    columns = ("", "without", "with", "ratio", "", "bound", "kept")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if 0 < index < 6 else "left", no_wrap=True)
    for one in results:
        unit, places = one.bound_unit, 2 if one.unit == "ms" else 1
        shown.add_row(
            one.title,
            f"{one.without:.{places}f} {one.unit}" if one.without else "",
            f"{one.with_shim:.{places}f} {one.unit}",
            f"{one.ratio:.2f}" if one.ratio else "",
            f"{one.judged:.{places}f} {unit}",
            f"{one.bound:g}",
            "yes" if one.within else "[bold red]NO[/]",
        )
    Console(width=120 if not sys.stdout.isatty() else None).print(shown)
    for name, (low, high) in PEER_NS.items():
        print(f"For comparison, {PEER}: {name} {low} to {high} ns added")


def plots(results: list[Result], values: Pair, out: Path) -> list[Path]:
    """Pictures, where there is what draws them."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        return []
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(results) + 1.4), layout="constrained")
    names = [one.title for one in reversed(results)]
    shares = [100 * one.judged / one.bound for one in reversed(results)]
    bars = axes.barh(names, shares, color=["#76b900" if share <= 100 else "#c0392b" for share in shares])
    axes.bar_label(bars, [f" {one.judged:.3g} {one.bound_unit}" for one in reversed(results)], fontsize=8)
    axes.axvline(100, color="black", linewidth=1)
    axes.set_xlabel("percent of the bound")
    axes.set_xlim(0, max(150, *shares) * 1.1)
    figure.savefig(out / "calls.png", dpi=120)
    plt.close(figure)
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.boxplot(values, orientation="horizontal", tick_labels=["without", "with the shim"])
    axes.set_xlabel("ms until the slowest of the processes has returned from cuInit")
    axes.set_xlim(left=0)
    figure.savefig(out / "starts.png", dpi=120)
    plt.close(figure)
    return [out / "calls.png", out / "starts.png"]


def machine() -> dict[str, object]:
    """Where it was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
    }


def main() -> None:
    """Measure, write, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long each measurement takes")
    parser.add_argument("--repeats", type=int, default=7, help="how often each is made, with and without")
    parser.add_argument("--starts", type=int, default=200, help="processes that start at once")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="where the results go")
    options = parser.parse_args()
    effort = Effort(options.seconds, options.repeats, options.starts)
    with share(EMPTY_UUID) as directory:
        results = [calls(case, effort, directory) for case in CALLS]
        results += [spawn_true(effort, directory), spawn_python(effort, directory), library_size()]
        results.append(private_memory(effort, directory))
    slowest, values = starts(effort)
    results.append(slowest)
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "effort": asdict(effort),
        "results": [{**asdict(one), "ratio": one.ratio, "within": one.within} for one in results],
        "comparison": {"who": PEER, "added_ns": PEER_NS},
    }
    (options.out / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    table(results)
    for path in [options.out / "results.json", *plots(results, values, options.out)]:
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    main()

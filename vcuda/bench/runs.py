"""Running cases: clients in shares on a card, a common start, and the card's own count meanwhile.

Every run on the simulated card has a machine and a registry of shares of its own, in a directory that goes
with it; runs on a real card have the registry alone.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from vcuda import libraries, report
from vcuda.bench.cases import MODELS, Case, Member, Run
from vcuda.bench.judge import Curve, Had, Record, Report, Verdict, judge, summed
from vcuda.bench.timeline import NvmlTimeline, SimulatedTimeline, Timeline
from vcuda.errors import VcudaError
from vcuda.registry import Registry
from vcuda.run import change
from vcuda.units import PPM

READY_SECONDS = 90
"""A client may have to compile 100,000 functions first."""
REPORT_SECONDS = 15
"""For the work that a client has queued."""
PRESSURE = Path("/proc/pressure/cpu")
_OURS = ("LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "XDG_RUNTIME_DIR")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where cases run."""

    uuid: str | None = None
    """Of the real card; None for simulated ones."""

    @property
    def simulated(self) -> bool:
        """Whether each run has a simulated card."""
        return self.uuid is None


def workload() -> Path:
    """The client program.

    Raises:
        VcudaError: it was not built.

    """
    path = libraries.directory() / "bench" / "cores"
    if not path.exists():
        raise VcudaError(f"{path} is not there; run 'make setup' in the checkout")
    return path


def run_case(case: Case, place: Place) -> Verdict:
    """Run a case and judge it; what keeps it from being measured is in the verdict."""
    try:
        return judge(case, [_Running(run, case.sms, place).measure() for run in case.runs])
    except (VcudaError, OSError) as error:
        return Verdict(problem=str(error))


def run_cases(
    cases: Sequence[Case], place: Place, *, at_once: int, done: Callable[[Case, Verdict], None]
) -> list[Verdict]:
    """Run cases, those that may on several simulated cards at once; `done` hears of each, in any thread."""

    def one(case: Case) -> Verdict:
        verdict = run_case(case, place)
        done(case, verdict)
        return verdict

    found: dict[str, Verdict] = {}
    for several, count in ((True, at_once if place.simulated else 1), (False, 1)):
        batch = [case for case in cases if case.at_once is several]
        with ThreadPoolExecutor(max_workers=max(1, count)) as pool:
            found.update(zip((case.name for case in batch), pool.map(one, batch), strict=True))
    return [found[case.name] for case in cases]


class _Client:
    """One client program, from its start to its report."""

    def __init__(
        self, member: Member, command: Sequence[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.member = member
        self.pids: tuple[int, ...] = ()
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                process_group=0,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._input().close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def ready(self) -> None:
        """Wait until it has set up.

        Raises:
            VcudaError: it has ended, or does not get ready.

        """
        words = self._line(READY_SECONDS).split()
        if words[:1] != ["ready"]:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise VcudaError(
                f"the client {self.member.name!r} did not start: {said[-1] if said else 'no word'}"
            )
        self.pids = tuple(map(int, words[1:]))

    def say(self, word: str) -> None:
        """Tell it to go on."""
        with contextlib.suppress(BrokenPipeError):
            self._input().write(f"{word}\n")
            self._input().flush()

    def kill(self) -> None:
        """End its processes, as a full host would."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)

    def reports(self) -> tuple[Report, ...]:
        """What it says it did; nothing where it does not come to an end."""
        try:
            content: list[dict[str, Any]] = json.loads(self._line(REPORT_SECONDS))
        except ValueError:
            return ()
        names = Report.__dataclass_fields__
        known = [{name: one[name] for name in names if name != "latency_ns"} for one in content]
        return tuple(
            Report(**each, latency_ns=tuple(one["latency_ns"]))
            for each, one in zip(known, content, strict=True)
        )

    def _input(self) -> Any:  # noqa: ANN401 (a text file)
        assert self._process.stdin
        return self._process.stdin

    def _line(self, seconds: float) -> str:
        """One line of it; nothing where it does not come in time."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return ""
        return self._process.stdout.readline()


@dataclass(frozen=True)
class _Count:
    """What a ledger counts of the launches of one living process."""

    waits: int
    wakeups: int


_Counts = Mapping[str, Mapping[int, _Count]]
"""Of each process, by the name of its share and by its pid."""


class _Running:
    """One run being measured."""

    def __init__(self, run: Run, sms: int, place: Place) -> None:
        self._run = run
        self._model = MODELS.get(sms, MODELS[80])
        self._place = place

    def measure(self) -> Record:
        """Run it.

        Raises:
            VcudaError: a client could not be started.

        """
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vcuda-cores-")))
            clients: list[_Client] = []
            for member in self._run.members:
                command, environment = self._start(member, directory)
                log = directory / f"{member.name}.log"
                clients.append(stack.enter_context(_Client(member, command, environment, log)))
                clients[-1].ready()
            with self._timeline(directory) as timeline:
                for client in clients:
                    client.say("go")
                time.sleep(self._run.warm_seconds)
                before, waited_ns, from_ns = self._counts(directory), _waited_ns(), time.monotonic_ns()
                happened_ns = self._pass(clients, directory)
                to_ns, waited_to_ns, after = time.monotonic_ns(), _waited_ns(), self._counts(directory)
                for client in clients:
                    client.say("stop")
                reports = {client.member.name: client.reports() for client in clients}
            curves = timeline.curves()
        had = {
            client.member.name: _had(client, curves, reports[client.member.name], before, after)
            for client in clients
        }
        for client in clients:  # one more program in a share: what it has is the share's
            if client.member.beside:
                host = had[client.member.beside]
                both = summed([host.curve, had[client.member.name].curve])
                had[client.member.beside] = replace(host, curve=both)
        return Record(
            run=self._run,
            from_ns=from_ns,
            to_ns=to_ns,
            had=had,
            happened_ns=happened_ns,
            pressure=None
            if waited_ns is None or waited_to_ns is None
            else (waited_to_ns - waited_ns) / (to_ns - from_ns),
        )

    def _pass(self, clients: Sequence[_Client], directory: Path) -> int | None:
        """Let the measured time pass; when what was to happen in it did."""
        end = time.monotonic() + self._run.seconds
        happened_ns = None
        if self._run.kill:
            name, after = self._run.kill
            time.sleep(after)
            happened_ns = time.monotonic_ns()
            for client in clients:
                if client.member.name == name:
                    client.kill()
        if self._run.change:
            name, after, cores = self._run.change
            time.sleep(after)
            happened_ns = time.monotonic_ns()
            change(Registry(directory / "run"), name, core_ppm=round(cores * PPM / 100))
        time.sleep(max(0, end - time.monotonic()))
        return happened_ns

    def _timeline(self, directory: Path) -> Timeline:
        if self._place.uuid:
            return NvmlTimeline(self._place.uuid)
        stat = libraries.simulator() / "simgpu-stat"
        return SimulatedTimeline(stat, directory / "sim", directory / "looks")

    # ---- starting ----

    def _start(self, member: Member, directory: Path) -> tuple[list[str], dict[str, str]]:
        """The command and the environment of a member's client."""
        client = [str(workload()), *member.load.arguments()]
        if member.beside:
            return client, self._beside(member.beside, directory)
        environment = {**_clean(), "VCUDA_RUNTIME_DIR": str(directory / "run")}
        if self._place.simulated:
            environment["SIMGPU_DIR"] = str(directory / "sim")
        if member.cores is None:
            return client, self._plain(environment)
        options = ["--cores", f"{member.cores:g}", "--memory", member.memory, "--name", member.name]
        if self._place.simulated:
            options += ["--sim", self._model]
        else:
            options += ["--card", str(self._place.uuid)]
        if member.ceiling is not None:
            options += ["--cores-max", f"{member.ceiling:g}"]
        if member.priority is not None:
            options += ["--priority", member.priority]
        return [sys.executable, "-P", "-m", "vcuda", "run", *options, "--", *client], environment

    def _plain(self, environment: dict[str, str]) -> dict[str, str]:
        """Without the shim."""
        if self._place.uuid:
            return {**environment, "CUDA_VISIBLE_DEVICES": self._place.uuid}
        Path(environment["SIMGPU_DIR"]).mkdir(exist_ok=True)
        library_path = str(libraries.simulator())
        return {**environment, "LD_LIBRARY_PATH": library_path, "SIMGPU_CARDS": self._model}

    def _beside(self, name: str, directory: Path) -> dict[str, str]:
        """In the share that a member of this name has: what its own program has in its environment."""
        for each in (directory / "run" / "shares").glob("*/share.json"):
            if json.loads(each.read_text(encoding="utf-8"))["name"] == name:
                content = json.loads(each.read_text(encoding="utf-8"))
                shares = {
                    "LD_PRELOAD": str(libraries.shim()),
                    "VCUDA_GRANT_DIR": str(each.parent),
                    "CUDA_VISIBLE_DEVICES": content["card_uuid"],
                }
                base = {**_clean(), "SIMGPU_DIR": str(directory / "sim")}
                return {**(self._plain(base) if self._place.simulated else base), **shares}
        raise VcudaError(f"the share {name!r} is not there")

    # ---- counting ----

    def _counts(self, directory: Path) -> _Counts:
        """What the ledgers count now."""
        if not (directory / "run").exists():
            return {}
        return {
            each.share.name: {
                process.pid: _Count(process.cards[0].waits, process.cards[0].wakeups)
                for process in each.processes
            }
            for each in report.shares(Registry(directory / "run"))
        }


def _had(
    client: _Client,
    curves: Mapping[int, Curve],
    reports: tuple[Report, ...],
    before: _Counts,
    after: _Counts,
) -> Had:
    name = client.member.name
    own = [curves[pid] for pid in client.pids if pid in curves]
    stayed = sorted(before.get(name, {}).keys() & after.get(name, {}).keys())
    return Had(
        member=client.member,
        curve=summed(own) if own else Curve(()),
        reports=reports,
        waits=sum(after[name][pid].waits - before[name][pid].waits for pid in stayed) if stayed else None,
        wakeups=sum(after[name][pid].wakeups - before[name][pid].wakeups for pid in stayed)
        if stayed
        else None,
    )


def _waited_ns() -> int | None:
    """For how long something has waited for a processor, ever; None where the host does not say."""
    try:
        line = PRESSURE.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    return int(line.rpartition("total=")[2]) * 1000


def _clean() -> dict[str, str]:
    """The environment without what would lead a client elsewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in _OURS and not name.startswith(("VCUDA_", "SIMGPU_"))
    }

"""`make demo-cluster`: pods in shares of simulated cards, on a real Kubernetes that lives on this machine.

Brings up the cluster of the tests with two simulated 16-GiB V100, installs all of vcuda, and runs what users
do: each row of the tables says what was asked, what a program in a real container got, and whether that is
what was expected. Exits with 1 if any of it is not.
"""

import json
import shlex
import sys
import threading
import time
from dataclasses import dataclass, field

from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace
from rich.console import Console
from rich.table import Table

from tests.cluster.installation import NAMES, Installation
from tests.cluster.machine import CannotRunContainers, Cluster, pods
from vcuda import libraries
from vcuda.units import format_size

CARDS = "V100-SXM2-16GB,V100-SXM2-16GB"
IMAGE = "demo:test"
SECONDS = 20
POINTS = 2.0
"""By which the core share of a run may be off: what is in the program's queue at its end has not run yet."""
FILL = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
total, free, context, at = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p(), ctypes.c_uint64()
cuda.cuInit(0)
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
cuda.cuCtxSetCurrent(context)
cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
fits = cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(free.value // 2**21 * 2**21 - 2**21))
print(total.value, fits, cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(2**23)), flush=True)
"""
"""A program: the size of its card, whether what is free can be had, and whether more can."""
HOLD = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, at = ctypes.c_void_p(), ctypes.c_uint64()
cuda.cuInit(0)
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
cuda.cuCtxSetCurrent(context)
print(cuda.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(3 << 30)), flush=True)
sys.stdin.readline()
"""
"""A program: takes 3 GiB and holds them until its input ends."""
OUT_OF_MEMORY = 2


@dataclass
class Scenario:
    """One table: a title, and a row for each claim."""

    title: str
    rows: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def claim(self, asked: str, got: str, expected: str, ok: bool) -> None:
        self.rows.append((asked, got, expected, ok))

    def show(self, console: Console) -> bool:
        table = Table("asked", "got", "expected", "ok", title=self.title, title_justify="left", min_width=80)
        for asked, got, expected, ok in self.rows:
            table.add_row(asked, got, expected, "[green]yes" if ok else "[red]NO")
        console.print(table)
        return all(ok for *_, ok in self.rows)


class Scene:
    """A namespace on the cluster, and the pods of one scenario in it."""

    def __init__(self, installation: Installation, name: str) -> None:
        self.installation = installation
        self.namespace = f"demo-{name}"
        installation.client.create(Namespace(metadata=ObjectMeta(name=self.namespace)))

    def put(self, name: str, asks: dict[str, int], *command: str) -> None:
        made = pods.pod(name, *command, namespace=self.namespace, image=IMAGE, resources=asks)
        self.installation.client.create(made, namespace=self.namespace)

    def card(self, name: str) -> str:
        """The card of a pod that runs, by the grant on the node's disk."""
        found = pods.wait_phase(self.installation.client, name, "Running", namespace=self.namespace)
        return next(each.cards[0][0] for each in self.installation.held() if each.uid == found.metadata.uid)

    def lines(self, name: str) -> list[str]:
        """What a pod printed, once it has ended well."""
        client, namespace = self.installation.client, self.namespace
        pods.wait_phase(client, name, "Succeeded", namespace=namespace, timeout_s=120)
        return pods.log(client, name, namespace=namespace).splitlines()

    def end(self) -> None:
        """Remove its pods."""
        pods.delete(
            self.installation.client, *self.installation.pods(self.namespace), namespace=self.namespace
        )


def _works(seconds: int) -> tuple[str, ...]:
    busy = f"(echo go; sleep {seconds + 1}) | cores mode=queue ns=200000 blocks=640 seconds={seconds}"
    return "sh", "-c", f"python3 -c {shlex.quote(FILL)} && {busy}"


def _percent(report: str) -> float:
    """The part of the time in which a program's kernels ran, by its own count: up to 0.2 s too much."""
    (found,) = json.loads(report)
    return 100 * found["work_ns"] / (found["ended_ns"] - found["began_ns"])


def shares(installation: Installation) -> Scenario:
    """A job that has a card alone, and two that share the other one."""
    made = Scenario(f"1. A whole card, and 40 % and 30 % of another one, over {SECONDS} s")
    scene = Scene(installation, "shares")
    asked = {"whole": (100, 64), "forty": (40, 24), "thirty": (30, 24)}
    for name, (cores, units) in asked.items():
        scene.put(name, {NAMES.core: cores, NAMES.memory: units}, *_works(SECONDS))
    cards = {name: scene.card(name) for name in asked}
    for name, (cores, units) in asked.items():
        first, *_, report = scene.lines(name)
        total, fits, beyond = map(int, first.split())
        percent = _percent(report)
        text = f"core {cores}, memory {units}"
        alone = list(cards.values()).count(cards[name]) == 1
        made.claim(text, "a card alone" if alone else "a card with another", "", alone == (cores == 100))
        size = units * 2**28
        held = (fits, beyond) == (0, OUT_OF_MEMORY) and (cores == 100 or total == size)
        got = f"{format_size(total)}, {'OUT_OF_MEMORY beyond' if beyond == OUT_OF_MEMORY else 'more'}"
        made.claim(text, got, "the card" if cores == 100 else format_size(size), held)
        made.claim(text, f"{percent:.1f} % of the time", f"{cores} %", abs(percent - cores) <= POINTS)
    scene.end()
    return made


def other_names(installation: Installation) -> Scenario:
    """Two jobs that ask as they did of another system."""
    made = Scenario("2. Two of aliyun.com/gpu-mem: 8065")
    scene = Scene(installation, "gpushare")
    for name in ("one", "two"):
        scene.put(name, {"aliyun.com/gpu-mem": 8065}, *_works(2))
    cards = {scene.card(name) for name in ("one", "two")}
    made.claim("both", f"{len(cards)} card", "the same card", len(cards) == 1)
    for name in ("one", "two"):
        total, fits, beyond = map(int, scene.lines(name)[0].split())
        ok = (total, fits, beyond) == (8065 * 2**20, 0, OUT_OF_MEMORY)
        made.claim("8065", f"{total / 2**20:.0f} MiB, to the byte", "8065 MiB", ok)
    scene.end()
    return made


def users(installation: Installation) -> Scenario:
    """A machine that several people develop on: each has a pod that stays, and starts programs in it."""
    made = Scenario("4. Two users of one card, each with two programs in a share of 4 GiB")
    scene = Scene(installation, "users")
    for user in ("anna", "ben"):
        scene.put(user, {NAMES.core: 40, NAMES.memory: 16}, "sleep", "3600")
    made.claim("both", "", "the same card", len({scene.card(user) for user in ("anna", "ben")}) == 1)
    hold = f"python3 -c {shlex.quote(HOLD)}"
    script = f"(sleep 5 | {hold}) & sleep 2; {hold} </dev/null; wait"
    said: dict[str, list[str]] = {}

    def work(user: str) -> None:
        command = ("exec", f"--namespace={scene.namespace}", user, "--", "sh", "-c", script)
        said[user] = installation.cluster.kubectl(*command).split()

    _at_once([threading.Thread(target=work, args=(user,)) for user in ("anna", "ben")])
    for user, found in said.items():
        ok = found == ["0", str(OUT_OF_MEMORY)]
        made.claim(f"{user}: 3 GiB, and 3 GiB more", " then ".join(found), "0 then 2 (out of memory)", ok)
    scene.end()
    return made


def order(installation: Installation) -> Scenario:
    """More than there is, asked for at once."""
    count = 12
    made = Scenario(f"5. {count} pods of 33 % from four clients at once, for two cards")
    scene = Scene(installation, "order")
    names = [f"p{index:02}" for index in range(count)]

    def create(mine: list[str]) -> None:
        for name in mine:
            scene.put(name, {NAMES.core: 33, NAMES.memory: 16}, "sleep", "3")

    _at_once([threading.Thread(target=create, args=(names[index::4],)) for index in range(4)])
    for name in names:
        scene.lines(name)
    found = installation.pods(scene.namespace).values()
    by_arrival = sorted(found, key=lambda pod: int(pod["metadata"]["annotations"][NAMES.arrival]))
    bound = [
        each["lastTransitionTime"]
        for pod in by_arrival
        for each in pod["status"]["conditions"]
        if each["type"] == "PodScheduled"
    ]
    made.claim(f"{count} pods", f"{len(bound)} ran", f"{count}", len(bound) == count)
    made.claim(
        "in order", "in order of arrival" if bound == sorted(bound) else "not", "", bound == sorted(bound)
    )
    scene.end()
    return made


def _at_once(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    """Run all of it; the exit status."""
    console = Console()
    began = time.monotonic()
    try:
        with Cluster() as cluster:
            console.print(f"a Kubernetes with one node: up in {cluster.started_in_s:.0f} s")
            cluster.image(IMAGE, {"/bin/cores": libraries.directory() / "bench" / "cores"})
            installation = Installation(cluster, cards=CARDS)
            console.print("vcuda: webhook, controller and node agent run; two simulated V100-SXM2-16GB")
            good = True
            for scenario in (shares, other_names, users, order):
                console.print(f"[dim]{scenario.__doc__}")
                good = scenario(installation).show(console) and good
            installation.close()
    except CannotRunContainers as error:
        console.print(f"demo-cluster: {error}")
        return 1
    console.print(f"{'all as expected' if good else 'NOT as expected'}; {time.monotonic() - began:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""What users do on a cluster, each thing that they are promised a claim: asked, got, expected, kept or not.

For the demo, and for the tests. Programs in the containers are unmodified: Python on NVIDIA's bindings, and a
loop of kernels in C. How much of a card's time one had is what the program itself counts: the length of its
kernels is known, and its queue holds no more than 0.2 s of them.
"""

import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import Namespace, Node
from rich.console import Console
from rich.table import Table

from tests.cluster.installation import NAMES, Site
from tests.cluster.machine import NODE, Cluster, packages, pods, until
from vcuda import libraries
from vcuda.kube.names import MEMORY_UNIT_BYTES
from vcuda.kube.nodes import decode_cards

CARDS = "V100-SXM2-16GB,V100-SXM2-16GB"
IMAGE = "scenarios:test"
OUT_OF_MEMORY = 2
_CLIENT = "/usr/local/bin/in_a_pod.py"
_PROGRAM = f"python3 {_CLIENT}"
_HELD = 3 << 30


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How long shares of time are looked at, and by how many points they may be off."""

    seconds: int = 20
    above: float = 2.0
    """What is in a program's queue at its end has not run yet."""
    below: float = 2.0


@dataclass(frozen=True)
class Claim:
    """One row."""

    asked: str
    got: str
    expected: str
    kept: bool


@dataclass
class Scenario:
    """One table: a title, and a row for each claim."""

    title: str
    claims: list[Claim] = field(default_factory=list[Claim])

    def claim(self, asked: str, got: str, expected: str, *, kept: bool) -> None:
        """Add a row."""
        self.claims.append(Claim(asked, got, expected, kept))

    def show(self, console: Console) -> None:
        """Print it."""
        table = Table("asked", "got", "expected", "ok", title=self.title, title_justify="left", min_width=80)
        for each in self.claims:
            table.add_row(each.asked, each.got, each.expected, "[green]yes" if each.kept else "[red]NO")
        console.print(table)


class Scene:
    """A namespace on the cluster, and the pods of one scenario in it."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.namespace = f"{name}-{uuid.uuid4().hex[:6]}"
        site.client.create(Namespace(metadata=ObjectMeta(name=self.namespace)))

    def put(self, name: str, asks: Mapping[str, int], *command: str) -> None:
        """Create a pod."""
        made = pods.pod(
            name,
            *command,
            namespace=self.namespace,
            image=IMAGE,
            resources=dict(asks),
            env={"PYTHONPATH": packages.PACKAGES},
        )
        self.site.client.create(made, namespace=self.namespace)

    def card(self, name: str) -> str:
        """The card of a pod that runs, by the grant on the node's disk."""
        found = pods.wait_phase(self.site.client, name, "Running", namespace=self.namespace)
        return next(each.cards[0][0] for each in self.site.held() if each.uid == found.metadata.uid)

    def lines(self, name: str) -> list[str]:
        """What a pod printed, once it has ended well."""
        pods.wait_phase(self.site.client, name, "Succeeded", namespace=self.namespace, timeout_s=120)
        return pods.log(self.site.client, name, namespace=self.namespace).splitlines()

    def memory(self, name: str) -> tuple[int, int, int]:
        """What a pod's first program saw of its card: its size, whether that can be had, whether more."""
        total, fits, beyond = map(int, self.lines(name)[0].split())
        return total, fits, beyond

    def end(self) -> None:
        """Remove its pods, and wait until nothing is left of them on the node."""
        pods.delete(self.site.client, *self.site.pods(self.namespace), namespace=self.namespace)
        self.site.client.delete(Namespace, self.namespace)
        until("nothing is left", lambda: not self.site.held())


def make_image(cluster: Cluster) -> None:
    """Give the node the image with the programs."""
    files: dict[str, Path | bytes | str] = {
        "/bin/cores": libraries.directory() / "bench" / "cores",
        _CLIENT: Path(__file__).parent / "clients" / "in_a_pod.py",
    }
    cluster.image(IMAGE, files | packages.installed("cuda-bindings", "cuda-pathfinder"))


def shares(site: Site, rules: Rules) -> Scenario:
    """A job that has a card alone, and two that share the other one."""
    made = Scenario(f"1. A whole card, and 40 % and 30 % of another one, over {rules.seconds} s")
    scene = Scene(site, "shares")
    text = (site.client.get(Node, NODE).metadata.annotations or {})[NAMES.cards]
    sizes = {card.uuid: card.memory_bytes for card in decode_cards(text).cards}
    asked = {"whole": (100, 64), "forty": (40, 24), "thirty": (30, 24)}
    for name, (cores, units) in asked.items():
        scene.put(name, {NAMES.core: cores, NAMES.memory: units}, *_works(rules.seconds))
    cards = {name: scene.card(name) for name in asked}
    for name, (cores, units) in asked.items():
        text = f"core {cores}, memory {units}"
        alone = list(cards.values()).count(cards[name]) == 1
        got = "a card alone" if alone else "a card with another"
        made.claim(
            text, got, "a card alone" if cores == 100 else "the same card", kept=alone == (cores == 100)
        )
        size = sizes[cards[name]] if cores == 100 else units * MEMORY_UNIT_BYTES
        _claim_memory(made, text, scene.memory(name), size)
        percent = _percent(scene.lines(name)[-1])
        made.claim(
            text,
            f"{percent:.1f} % of the time",
            f"{cores} %",
            kept=cores - rules.below <= percent <= cores + rules.above,
        )
    scene.end()
    return made


def other_names(site: Site, rules: Rules) -> Scenario:
    """Two jobs that ask as they did of another system."""
    del rules
    made = Scenario("2. Two of aliyun.com/gpu-mem: 8065")
    scene = Scene(site, "gpushare")
    for name in ("one", "two"):
        scene.put(name, {"aliyun.com/gpu-mem": 8065}, *_works(2))
    cards = {scene.card(name) for name in ("one", "two")}
    made.claim("both", f"{len(cards)} card", "1 card", kept=len(cards) == 1)
    for name in ("one", "two"):
        _claim_memory(made, "8065", scene.memory(name), 8065 << 20)
    scene.end()
    return made


def users(site: Site, rules: Rules) -> Scenario:
    """A machine that several people develop on: each has a pod that stays, and starts programs in it."""
    del rules
    made = Scenario("4. Two users of one card, each with two programs in a share of 4 GiB")
    scene = Scene(site, "users")
    people = ("anna", "ben")
    for user in people:
        scene.put(user, {NAMES.core: 40, NAMES.memory: 16}, "sleep", "3600")
    cards = {scene.card(user) for user in people}
    made.claim("both", f"{len(cards)} card", "1 card", kept=len(cards) == 1)
    hold = f"{_PROGRAM} hold {_HELD}"
    script = f"(sleep 8 | {hold}) & sleep 3; {hold} </dev/null; wait"
    said: dict[str, list[str]] = {}

    def work(user: str) -> None:
        command = ("exec", f"--namespace={scene.namespace}", user, "--", "sh", "-c", script)
        said[user] = site.cluster.kubectl(*command).split()

    _at_once([threading.Thread(target=work, args=(user,)) for user in people])
    # Of 4 GiB, the first one has 3, so the second one cannot; the other user's programs count elsewhere.
    for user in people:
        made.claim(
            f"{user}: 3 GiB, and 3 GiB more",
            " then ".join(said.get(user, [])),
            f"0 then {OUT_OF_MEMORY} (out of memory)",
            kept=said.get(user) == ["0", str(OUT_OF_MEMORY)],
        )
    scene.end()
    return made


def order(site: Site, rules: Rules) -> Scenario:
    """Twice of what there is, asked for at once; each pod ends by itself."""
    del rules
    count = 12
    made = Scenario(f"5. {count} pods of 33 % from four clients at once, for two cards")
    scene = Scene(site, "order")
    names = [f"p{index:02}" for index in range(count)]

    def create(mine: list[str]) -> None:
        for name in mine:
            scene.put(name, {NAMES.core: 33, NAMES.memory: 16}, "sleep", "3")

    _at_once([threading.Thread(target=create, args=(names[index::4],)) for index in range(4)])
    for name in names:
        scene.lines(name)
    found = site.pods(scene.namespace).values()
    by_arrival = sorted(found, key=lambda pod: int(pod["metadata"]["annotations"][NAMES.arrival]))
    bound = [
        each["lastTransitionTime"]
        for pod in by_arrival
        for each in pod["status"]["conditions"]
        if each["type"] == "PodScheduled"
    ]
    made.claim(f"{count} pods", f"{len(bound)} ran", f"{count} ran", kept=len(bound) == count)
    in_order = bound == sorted(bound)
    made.claim("first come, first served", "so" if in_order else "not so", "so", kept=in_order)
    scene.end()
    return made


ALL = (shares, other_names, users, order)


def _works(seconds: int) -> tuple[str, ...]:
    """A container's command: take all memory that can be had, then keep the card at work."""
    busy = f"(echo go; sleep {seconds + 1}) | cores mode=queue ns=200000 blocks=640 seconds={seconds}"
    return "sh", "-c", f"{_PROGRAM} && {busy}"


def _claim_memory(made: Scenario, asked: str, seen: tuple[int, int, int], size: int) -> None:
    """That a program sees a card of `size` bytes, can have all of it, and no more."""
    total, fits, beyond = seen
    more = "no more" if beyond == OUT_OF_MEMORY else "more can be had"
    got = f"{total:,} bytes{', not all of it' if fits else ''}, {more}"
    kept = (total, fits, beyond) == (size, 0, OUT_OF_MEMORY)
    made.claim(asked, got, f"{size:,} bytes, no more", kept=kept)


def _percent(report: str) -> float:
    """The part of the time in which a program's kernels ran, by its own count: up to 0.2 s too much."""
    (found,) = json.loads(report)
    return 100 * found["work_ns"] / (found["ended_ns"] - found["began_ns"])


def _at_once(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

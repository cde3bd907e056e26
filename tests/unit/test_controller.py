"""The controller against a small API server: what it writes, and that no trouble makes it write wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.controller import ControllerMetrics, ControllerSettings, run
from admission.controller.keys import PUBLIC
from admission.controller.state import State
from tests.api_server import ApiServer, Asked, Refused
from tests.kube_objects import GIB, NAMES, container, node, pod
from vcuda.kube.placements import CardShare, PodPlacement, decode, encode
from vcuda.kube.placing import Reason
from vcuda.kube.pods import condition_of

SYSTEM = "vcuda-system"
KEY = "vcuda-placement-key"
_LONG_S = 40


def settings(server: ApiServer, who: str, **changed: Any) -> ControllerSettings:
    return ControllerSettings(
        kubeconfig=server.kubeconfig(who),
        identity=who,
        **{
            "lease_s": 1.0,
            "renew_s": 0.6,
            "retry_s": 0.1,
            "back_off_s": 0.2,
            "tell_s": 0.0,
            "patience_s": 0.0,
            "watch_s": 5.0,
            **changed,
        },
    )


class Controllers:
    """Controllers of one test. What is started ends with the test."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.metrics: dict[str, ControllerMetrics] = {}

    def start(self, who: str = "one", **changed: Any) -> None:
        self.metrics[who] = ControllerMetrics()
        self._tasks[who] = asyncio.create_task(
            run(settings(self._server, who, **changed), metrics=self.metrics[who])
        )

    async def kill(self, who: str) -> None:
        """Nothing of it reaches the server any more, as after SIGKILL; its lease is not given back."""
        self._server.dead.add(who)
        await self.stop(who)

    async def stop(self, who: str) -> None:
        task = self._tasks.pop(who)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def close(self) -> None:
        for who in list(self._tasks):
            await self.kill(who)

    def check(self) -> None:
        """See that none has failed."""
        for task in self._tasks.values():
            if task.done():
                task.result()


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[tuple[ApiServer, Controllers]]:
    async with ApiServer(directory) as server:
        controllers = Controllers(server)
        try:
            yield server, controllers
            controllers.check()
        finally:
            await controllers.close()


async def until(condition: Callable[[], object], controllers: Controllers | None = None) -> None:
    """Wait for what comes unless something is stuck."""
    async with asyncio.timeout(_LONG_S):
        while not condition():
            if controllers is not None:
                controllers.check()
            await asyncio.sleep(0.005)


def placement(server: ApiServer, name: str, namespace: str = "team") -> PodPlacement | None:
    """What a pod was placed on, with the signature checked as a node does."""
    found = server.get("pods", namespace, name)
    text = found["metadata"]["annotations"].get(NAMES.placement)
    if text is None:
        return None
    pem = server.get("configmaps", SYSTEM, KEY)["data"][PUBLIC]
    key: Any = serialization.load_pem_public_key(pem.encode())
    return decode(text, found["metadata"]["uid"], key)


def placed(server: ApiServer) -> set[str]:
    return {
        each["metadata"]["name"]
        for each in server.all("pods")
        if NAMES.placement in each["metadata"]["annotations"]
    }


def check_books(server: ApiServer) -> None:
    """Counted from pods and nodes alone: nothing beyond a card, nobody on a card that one has alone."""
    cards: dict[str, list[Any]] = {}
    for each in server.all("pods"):
        found = placement(server, each["metadata"]["name"], each["metadata"]["namespace"])
        gated = bool(each["spec"].get("schedulingGates"))
        assert (found is None) == gated, "a placement without the gate taken off, or the other way round"
        if found is None:
            continue
        terms = each["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert all(
            {"key": "metadata.name", "operator": "In", "values": [found.node]} in term["matchFields"]
            for term in terms["nodeSelectorTerms"]
        )
        for share in (share for shares in found.containers.values() for share in shares):
            cards.setdefault(share.uuid, []).append(share)
    for shares in cards.values():
        assert sum(share.cores for share in shares) <= 100
        assert sum(share.memory_bytes for share in shares) <= 16 * GIB
        assert len(shares) == 1 or not any(share.whole for share in shares)


def check_each_placed_once(server: ApiServer) -> None:
    """Over the whole history, no pod had two placements."""
    seen: dict[str, set[str]] = {}
    for _, plural, _, each in server.history:
        text = each["metadata"].get("annotations", {}).get(NAMES.placement) if plural == "pods" else None
        if text is not None:
            seen.setdefault(each["metadata"]["uid"], set()).add(text)
    assert all(len(texts) == 1 for texts in seen.values())


def condition(server: ApiServer, name: str) -> dict[str, Any]:
    return dict(condition_of(server.get("pods", "team", name), NAMES))


def events(server: ApiServer, name: str) -> list[str]:
    return [each["reason"] for each in server.all("events") if each["regarding"]["name"] == name]


def play(directory: Path, story: Callable[[ApiServer, Controllers], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with cluster(directory) as (server, controllers):
            await story(server, controllers)

    asyncio.run(tell())


def test_pods_are_placed_signed_and_told(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16, 16]))
        server.put(pod("whole", 100, 64))
        server.put(pod("half", 40, 24))
        server.put(pod("third", 30, 24))
        controllers.start()
        await until(
            lambda: (
                all(condition(server, name).get("status") == "True" for name in placed(server))
                and len(placed(server)) == 3
            ),
            controllers,
        )
        check_books(server)
        whole, half, third = (placement(server, name) for name in ("whole", "half", "third"))
        assert whole is not None
        assert half is not None
        assert third is not None
        assert whole.containers["main"][0].whole
        assert half.containers["main"][0].uuid == third.containers["main"][0].uuid
        assert half.containers["main"][0].uuid != whole.containers["main"][0].uuid
        assert (half.containers["main"][0].cores, half.containers["main"][0].memory_bytes) == (40, 6 * GIB)
        assert condition(server, "half")["reason"] == "Placed"
        assert condition(server, "half")["message"] == "on node n1; main: card 1 40% 6GiB"
        assert events(server, "half") == ["Placed"]
        found = controllers.metrics["one"].registry
        assert found.get_sample_value("vcuda_queue_placements_total") == 3
        assert found.get_sample_value("vcuda_queue_wait_seconds_count") == 3

    play(tmp_path, story)


def test_placed_pod_that_is_never_bound_is_evicted_if_it_will_be_made_anew(tmp_path: Path) -> None:
    """As the scheduler tells it: it keeps the time of the condition that said that the pod was gated."""

    def unschedulable(found: dict[str, Any]) -> None:
        scheduled = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/1 nodes are available: 1 Insufficient cpu.",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        found["status"].setdefault("conditions", []).append(scheduled)

    def names(server: ApiServer) -> set[str]:
        return {each["metadata"]["name"] for each in server.all("pods")}

    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": True}
        for name in ("owned", "bare", "bound", "late"):
            made = pod(name, 20, 8)
            if name != "bare":
                made["metadata"]["ownerReferences"] = [owner]
            server.put(made)
        controllers.start(unbound_s=2.0)
        await until(lambda: len(placed(server)) == 4, controllers)
        server.edit("pods", "team", "bound", lambda found: found["spec"].update(nodeName="n1"))
        began = asyncio.get_running_loop().time()
        for name in ("owned", "bare", "bound", "late"):
            server.edit("pods", "team", name, unschedulable)
        await asyncio.sleep(0.5)

        # It was bound after all: what is evicted is no longer what was seen.
        async def binds(asked: Asked) -> None:
            if asked.path.endswith("/late/eviction"):
                server.before = None
                server.edit("pods", "team", "late", lambda found: found["spec"].update(nodeName="n1"))

        server.before = binds
        await until(lambda: events(server, "owned")[-1:] == ["Unbound"], controllers)
        await until(lambda: events(server, "bare")[-1:] == ["Unbound"], controllers)
        await until(lambda: server.before is None, controllers)
        assert asyncio.get_running_loop().time() - began >= 2.0
        assert names(server) == {"bare", "bound", "late"}
        (note,) = [
            each["note"]
            for each in server.all("events")
            if each["regarding"]["name"] == "bare" and each["reason"] == "Unbound"
        ]
        assert note == (
            "was placed on node n1, where the scheduler cannot bind it: 0/1 nodes are available: "
            "1 Insufficient cpu.; delete it to free the share that it holds"
        )
        server.put(pod("next", 40, 8))  # in the room of the one that was evicted
        await until(lambda: "next" in placed(server), controllers)
        check_books(server)

    play(tmp_path, story)


def test_who_waits_is_told_where_and_why_and_goes_when_there_is_room(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        server.put(pod("runs", 60, 24))
        server.put(pod("big", 50, 24))
        server.put(pod("small", 10, 4))
        server.put(pod("giant", 50, 400))
        server.put(pod("elsewhere", 50, 8, nodeSelector={"disk": "fast"}))
        server.put(pod("later", 10, 4, gates=(NAMES.gate, "other/gate")))
        controllers.start()
        await until(lambda: condition(server, "small") and condition(server, "later"), controllers)
        assert placed(server) == {"runs"}
        assert condition(server, "big")["reason"] == "NoRoom"
        assert condition(server, "big")["message"] == (
            "position 1 in queue team; no room now (cards: 1 CoresTaken); "
            "waits for card 0 of node n1, kept for it"
        )
        assert condition(server, "small")["reason"] == "BehindOthers"
        assert (
            condition(server, "small")["message"]
            == "position 2 in queue team, of which team/big is the first"
        )
        assert condition(server, "giant")["reason"] == "Unmeetable"
        assert "1 CardTooSmall" in condition(server, "giant")["message"]
        assert f"1 {Reason.NODE_SELECTED_AGAINST}" in condition(server, "elsewhere")["message"]
        assert condition(server, "later")["reason"] == "OtherGates"
        assert events(server, "giant") == ["Unmeetable"]
        assert events(server, "big") == ["Waiting"]
        registry = controllers.metrics["one"].registry
        await until(lambda: registry.get_sample_value("vcuda_queue_pods", {"queue": "team"}) == 5)
        assert registry.get_sample_value("vcuda_queue_waiting_pods", {"reason": "Unmeetable"}) == 2
        server.delete("pods", "team", "runs")
        await until(lambda: placed(server) == {"big", "small"}, controllers)
        server.put(node("n2", [16], labels={"disk": "fast"}))
        await until(lambda: placed(server) == {"big", "small", "elsewhere"}, controllers)
        await until(lambda: condition(server, "small").get("status") == "True", controllers)
        assert events(server, "small") == ["Waiting", "Placed"]
        check_books(server)
        check_each_placed_once(server)

    play(tmp_path, story)


def test_affinity_is_narrowed_in_every_term_and_keeps_what_was_asked(tmp_path: Path) -> None:
    wanted = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]},
                {"matchExpressions": [{"key": "zone", "operator": "Exists"}], "matchFields": []},
            ]
        }
    }

    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16], labels={"zone": "a"}))
        server.put(node("n2", [16], labels={"zone": "b"}))
        server.put(pod("p", 10, 4, affinity={"nodeAffinity": wanted, "podAntiAffinity": {}}))
        controllers.start()
        await until(lambda: placed(server) == {"p"}, controllers)
        check_books(server)
        affinity = server.get("pods", "team", "p")["spec"]["affinity"]
        assert affinity["podAntiAffinity"] == {}
        terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
            "nodeSelectorTerms"
        ]
        assert [term["matchExpressions"] for term in terms] == [
            [{"key": "zone", "operator": "In", "values": ["b"]}],
            [{"key": "zone", "operator": "Exists"}],
        ]

    play(tmp_path, story)


def test_changed_pod_is_placed_from_its_fresh_version(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        left = itertools.count()

        async def before(asked: Asked) -> None:
            if asked.places and next(left) < 3:
                server.edit("pods", "team", "p", lambda found: found["metadata"]["labels"].update(new="x"))

        server.put(node("n1", [16]))
        server.put(pod("p", 50, 24))
        server.before = before
        controllers.start()
        await until(lambda: placed(server) == {"p"}, controllers)
        check_books(server)
        assert server.get("pods", "team", "p")["metadata"]["labels"]["new"] == "x"
        conflicts = controllers.metrics["one"].registry.get_sample_value("vcuda_queue_conflicts_total")
        assert conflicts == sum(asked.places for asked in server.asked) - 1 >= 1

    play(tmp_path, story)


def test_pod_that_is_deleted_while_it_is_placed_holds_nothing(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        async def before(asked: Asked) -> None:
            if asked.places and ("pods", "team", "first") in server.objects:
                server.delete("pods", "team", "first")

        server.put(node("n1", [16]))
        server.put(pod("first", 80, 40))
        server.put(pod("second", 80, 40))
        server.before = before
        controllers.start()
        await until(lambda: placed(server) == {"second"}, controllers)
        check_books(server)

    play(tmp_path, story)


def test_recreated_pod_of_the_same_name_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        done = []

        async def before(asked: Asked) -> None:
            if asked.places and not done:
                done.append(True)
                server.delete("pods", "team", "p")
                again = pod("p", 20, 8)
                again["metadata"]["uid"] = "another"
                server.put(again)

        server.put(node("n1", [16]))
        server.put(pod("p", 80, 40))
        server.before = before
        controllers.start()
        await until(lambda: placed(server) == {"p"}, controllers)
        found = placement(server, "p")
        assert found is not None
        assert found.uid == "another"
        assert found.containers["main"][0].cores == 20

    play(tmp_path, story)


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_lost_request_or_answer_places_once(tmp_path: Path, lost: str) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        cut = []

        async def hook(asked: Asked) -> None:
            if asked.places and len(cut) < 2:
                cut.append(asked)
                raise ConnectionError

        if lost == "request":
            server.before = hook
        else:
            server.after = hook
        server.put(node("n1", [16]))
        for name in ("a", "b"):
            server.put(pod(name, 80, 40, queue=name))
        controllers.start()
        await until(lambda: len(placed(server)) == 1 and condition(server, "b"), controllers)
        assert placed(server) == {"a"}
        check_books(server)
        check_each_placed_once(server)

    play(tmp_path, story)


def test_who_stands_behind_one_that_is_decided_anew_goes_after_it(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        done = []

        async def before(asked: Asked) -> None:
            if asked.places and not done:
                done.append(True)
                server.edit(
                    "pods", "team", "first", lambda found: found["spec"].update(nodeSelector={"disk": "fast"})
                )

        server.put(node("n1", [16]))
        server.put(node("n2", [16], labels={"disk": "fast"}))
        server.put(pod("first", 60, 24))
        server.put(pod("second", 30, 8))
        server.before = before
        controllers.start()
        await until(lambda: placed(server) == {"first", "second"}, controllers)
        found = placement(server, "first")
        assert found is not None
        assert found.node == "n2"
        order = [asked.path.rsplit("/", 1)[1] for asked in server.asked if asked.places]
        assert order == ["first", "first", "second"]

    play(tmp_path, story)


def test_old_news_of_a_pod_change_nothing() -> None:
    """What the watch tells late, of before a placement or of a pod that is gone, is not believed."""
    key = Ed25519PrivateKey.generate()
    state = State(names=NAMES, key=key.public_key(), policy="binpack")
    state.see_node(node("n1", [16]))
    old = pod("p", 60, 24)
    old["metadata"]["resourceVersion"] = "9"
    state.see_pod(old)
    share = CardShare(uuid="n1-0", cores=60, cores_max=60, memory_bytes=6 * GIB)
    uid = old["metadata"]["uid"]
    new = pod("p", 60, 24, gates=())
    new["metadata"]["resourceVersion"] = "10"
    text = encode(PodPlacement(uid=uid, node="n1", containers={"main": (share,)}), key)
    new["metadata"]["annotations"][NAMES.placement] = text
    state.wrote_pod(new)
    state.see_pod(old)
    assert state.cluster.node_of(uid) == "n1"
    assert len(state.line) == 0
    state.forget_pod(uid)
    state.wrote_pod(new)
    assert state.cluster.node_of(uid) is None


def test_refused_placement_steps_aside_and_is_tried_again(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        deny = [True]

        async def before(asked: Asked) -> None:
            if asked.places and deny[0] and asked.path.endswith("/first"):
                raise Refused(422, "policy says no")

        server.put(node("n1", [16]))
        server.put(pod("first", 80, 40))
        server.put(pod("second", 80, 40))
        server.before = before
        controllers.start(refused_s=0.5)
        await until(lambda: placed(server) == {"second"} and condition(server, "first"), controllers)
        await until(lambda: "policy says no" in condition(server, "first")["message"], controllers)
        deny[0] = False
        server.delete("pods", "team", "second")
        await until(lambda: placed(server) == {"first"}, controllers)
        check_books(server)

    play(tmp_path, story)


def test_forgotten_versions_are_listed_again(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        server.put(pod("a", 50, 24))
        controllers.start()
        await until(lambda: placed(server) == {"a"}, controllers)
        server.put(pod("b", 50, 24))  # may be told yet, or not
        server.delete("pods", "team", "a")
        server.put(pod("c", 50, 24))
        server.forget_history()
        server.cut_watches()
        await until(lambda: placed(server) == {"b", "c"}, controllers)
        check_books(server)
        lists = [asked for asked in server.asked if asked.method == "GET" and asked.path.endswith("/v1/pods")]
        assert len(lists) >= 3, "list and watch at the start, and a list more"

    play(tmp_path, story)


def test_server_that_was_away_is_caught_up_with(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        server.put(pod("a", 80, 40))
        server.put(pod("b", 80, 40))
        controllers.start()
        await until(lambda: placed(server) == {"a"}, controllers)
        await server.stop()
        await asyncio.sleep(1.5)  # longer than the lease
        server.delete("pods", "team", "a")
        server.put(pod("c", 20, 8))
        await server.start()
        await until(lambda: placed(server) == {"b", "c"}, controllers)
        check_books(server)
        check_each_placed_once(server)

    play(tmp_path, story)


def test_second_leader_takes_over_from_one_that_is_killed_between_any_two_requests(tmp_path: Path) -> None:
    """Before each of its requests, and after each but before the answer: the outcome is always the same."""

    async def story(server: ApiServer, controllers: Controllers, kill_at: int, after: bool) -> bool:
        server.put(node("n1", [16]))
        server.put(node("n2", [16]))
        for name, cores, queue in (("a", 60, "x"), ("b", 100, "x"), ("c", 60, "y"), ("d", 30, "y")):
            server.put(pod(name, cores, 24 if cores < 100 else 0, queue=queue))
        count = itertools.count()
        killed = asyncio.Event()

        async def hook(asked: Asked) -> None:
            if asked.who == "one" and not killed.is_set() and next(count) == kill_at:
                server.dead.add("one")
                killed.set()

        if after:
            server.after = hook
        else:
            server.before = hook
        controllers.start("one", retry_s=0.3)
        told = asyncio.create_task(
            until(lambda: all(condition(server, name) for name in "abcd"), controllers)
        )
        died = asyncio.create_task(killed.wait())
        await asyncio.wait([told, died], return_when=asyncio.FIRST_COMPLETED)
        reached = killed.is_set()
        told.cancel()
        died.cancel()
        if not reached:
            return False
        await controllers.kill("one")
        server.objects.pop(("leases", SYSTEM, "vcuda-controller"), None)  # rather than wait for its end
        controllers.start("two")
        await until(
            lambda: (
                {name: condition(server, name).get("reason") for name in "abcd"}
                == {"a": "Placed", "b": "Placed", "c": "NoRoom", "d": "BehindOthers"}
            ),
            controllers,
        )
        assert placed(server) == {"a", "b"}
        check_books(server)
        check_each_placed_once(server)
        return True

    async def all_of_them() -> list[int]:
        points = []
        for after in (False, True):
            for kill_at in itertools.count():
                async with cluster(tmp_path) as (server, controllers):
                    if not await story(server, controllers, kill_at, after):
                        break
            points.append(kill_at)
        return points

    assert min(asyncio.run(all_of_them())) > 12, "lease, key, lists, placements and conditions are more"


def test_leader_that_was_held_up_places_nothing_twice(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        held_up = asyncio.Event()

        async def before(asked: Asked) -> None:
            if asked.who != "one":
                return
            if held_up.is_set() and "/leases" in asked.path:
                raise Refused(503, "held up")
            if asked.places:
                held_up.set()
                async with asyncio.timeout(_LONG_S):
                    while not placed(server):
                        await asyncio.sleep(0.01)

        server.put(node("n1", [16]))
        server.put(pod("p", 60, 24))
        server.before = before
        controllers.start("one", request_s=60)
        await until(held_up.is_set, controllers)
        controllers.start("two")
        await until(lambda: condition(server, "p"), controllers)
        server.put(pod("q", 30, 8))
        await until(lambda: placed(server) == {"p", "q"}, controllers)
        check_books(server)
        check_each_placed_once(server)
        assert [asked.who for asked in server.asked if asked.places and asked.path.endswith("/q")] == ["two"]
        lease = server.get("leases", SYSTEM, "vcuda-controller")
        assert lease["spec"]["holderIdentity"] == "two"
        assert lease["spec"]["leaseTransitions"] == 2

    play(tmp_path, story)


def test_lease_is_given_back_at_the_end_and_taken_at_once(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        controllers.start("one", lease_s=3600.0, renew_s=3000.0)
        await until(lambda: ("configmaps", SYSTEM, KEY) in server.objects, controllers)
        controllers.start("two", lease_s=3600.0, renew_s=3000.0)
        await asyncio.sleep(0.3)
        assert server.get("leases", SYSTEM, "vcuda-controller")["spec"]["holderIdentity"] == "one"
        await controllers.stop("one")
        server.put(pod("p", 60, 24))
        await until(lambda: placed(server) == {"p"}, controllers)
        assert server.get("leases", SYSTEM, "vcuda-controller")["spec"]["holderIdentity"] == "two"

    play(tmp_path, story)


def test_key_is_made_once_and_its_public_half_restored(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        controllers.start("one")
        await until(lambda: ("configmaps", SYSTEM, KEY) in server.objects, controllers)
        secret = server.get("secrets", SYSTEM, KEY)
        public = server.get("configmaps", SYSTEM, KEY)["data"][PUBLIC]
        await controllers.stop("one")
        server.edit("configmaps", SYSTEM, KEY, lambda found: found["data"].update({PUBLIC: "another"}))
        controllers.start("two")
        await until(lambda: server.get("configmaps", SYSTEM, KEY)["data"][PUBLIC] == public, controllers)
        assert server.get("secrets", SYSTEM, KEY) == secret

    play(tmp_path, story)


def test_nothing_is_placed_without_a_usable_key(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16]))
        server.put(pod("p", 60, 24))
        broken = {
            "kind": "Secret",
            "metadata": {"name": KEY, "namespace": SYSTEM},
            "data": {"private.pem": "eA=="},
        }
        server.put(broken)
        controllers.start("one")
        await until(
            lambda: sum(asked.path.endswith(f"secrets/{KEY}") for asked in server.asked) >= 3, controllers
        )
        assert not placed(server)
        assert server.get("secrets", SYSTEM, KEY)["data"] == broken["data"]
        server.delete("secrets", SYSTEM, KEY)
        await until(lambda: placed(server) == {"p"}, controllers)

    play(tmp_path, story)


def test_unbelievable_placements_of_bound_pods_count_as_taken(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16, 16]))
        garbage = pod("garbage", 80, 24, gates=(), nodeName="n1")
        unbound = pod("unbound", 80, 24, gates=())
        for forged in (garbage, unbound):
            forged["metadata"]["annotations"][NAMES.placement] = "x.y"
            server.put(forged)
        server.put(pod("none", 10, 4, gates=(), nodeName="n1"))
        server.put(pod("whole", 100))
        server.put(pod("p", 25, 4))
        controllers.start("one")
        await until(lambda: condition(server, "p"), controllers)
        found = placement(server, "whole")
        assert found is not None
        assert found.containers["main"][0].uuid == "n1-1"
        assert condition(server, "p")["reason"] == "NoRoom"
        assert "(cards: 1 CardTakenWhole, 1 CoresTaken)" in condition(server, "p")["message"]

    play(tmp_path, story)


def test_moved_shares_are_counted_where_they_are(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16, 16]))
        server.put(pod("a", 60, 24))
        controllers.start("one")
        await until(lambda: placed(server) == {"a"}, controllers)
        uid = server.get("pods", "team", "a")["metadata"]["uid"]
        server.put(node("n1", [16, 16], moved={uid: {"main": ["n1-1"]}}))
        await asyncio.sleep(0.2)
        server.put(pod("b", 60, 24))
        await until(lambda: placed(server) == {"a", "b"}, controllers)
        found = placement(server, "b")
        assert found is not None
        assert found.containers["main"][0].uuid == "n1-0"

    play(tmp_path, story)


def test_burst_of_many_queues_is_placed_in_order_within_each(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        for index in range(10):
            server.put(node(f"n{index}", [16] * 8))
        controllers.start("one")
        for index in range(200):
            server.put(pod(f"p{index:03}", 25, 8, queue=f"q{index % 4}"))
            if index % 20 == 0:
                await asyncio.sleep(0.01)
        await until(lambda: len(placed(server)) == 200, controllers)
        check_books(server)
        check_each_placed_once(server)
        order: dict[str, list[str]] = {}
        for asked in server.asked:
            if asked.places:
                name = asked.path.rsplit("/", 1)[1]
                order.setdefault(f"q{int(name[1:]) % 4}", []).append(name)
        assert all(names == sorted(names) for names in order.values())
        assert Counter(map(len, order.values())) == {50: 4}

    play(tmp_path, story)


def test_pods_with_several_containers_get_shares_of_one_node(tmp_path: Path) -> None:
    async def story(server: ApiServer, controllers: Controllers) -> None:
        server.put(node("n1", [16, 16]))
        server.put(pod("p", containers=[container("a", 60, 40), container("b", 60, 40), container("plain")]))
        controllers.start("one")
        await until(lambda: placed(server) == {"p"}, controllers)
        found = placement(server, "p")
        assert found is not None
        assert {name: [share.uuid for share in shares] for name, shares in found.containers.items()} == {
            "a": ["n1-0"],
            "b": ["n1-1"],
        }

    play(tmp_path, story)

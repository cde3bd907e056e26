"""The queue by examples: who goes, who waits, what is kept for whom, and what those who wait are told."""

from __future__ import annotations

from typing import Any

import pytest

from admission.controller.words import coarse, standings
from admission.placing.cluster import Cluster, Holder, Reservation
from admission.placing.queue import Line, Turn, Wait, turn
from tests.kube_objects import NAMES, container, node, pod
from vcuda.kube.eligibility import node_facts
from vcuda.kube.pods import pod_facts


class Scene:
    """A cluster and its queues."""

    def __init__(self, *nodes: dict[str, Any]) -> None:
        self.cluster, self.line = Cluster(), Line()
        for each in nodes:
            self.cluster.set_node(node_facts(each, NAMES))

    def come(self, *pods: dict[str, Any]) -> Scene:
        for each in pods:
            self.line.put(pod_facts(each, NAMES))
        return self

    def turn(self, **options: int) -> Turn:
        found = turn(self.line, self.cluster, **options)
        for each in found.placed:
            self.line.drop(each.pod.uid)
            self.cluster.book(
                each.pod.uid, each.choice.node, Holder(placement=each.placement, amounts=each.pod.amounts)
            )
        return found

    def gone(self, **options: int) -> list[str]:
        return [each.pod.name for each in self.turn(**options).placed]

    def end(self, name: str) -> None:
        assert self.cluster.unbook(f"uid-team-{name}")

    def waits(self) -> dict[str, tuple[Wait, int]]:
        held = self.turn().held
        return {
            each.pod.name: (each.wait, each.position)
            for each in standings(self.line.queues(), held, lambda _: None)
        }


def test_nobody_passes_within_a_queue() -> None:
    scene = Scene(node("n", [16])).come(pod("a", 60, 8), pod("big", 60, 8), pod("small", 10, 1))
    assert scene.gone() == ["a"]
    assert scene.waits() == {"big": (Wait.NO_ROOM, 1), "small": (Wait.BEHIND, 2)}
    scene.end("a")
    assert scene.gone() == ["big", "small"]


def test_queues_do_not_wait_for_each_other_where_there_is_room_for_both() -> None:
    scene = Scene(node("n", [16, 16]))
    scene.come(pod("a", 60, 8), pod("b", 60, 8), pod("big", 60, 8), pod("other", 30, 8, queue="other"))
    found = scene.turn()
    assert [each.pod.name for each in found.placed] == ["a", "b", "other"]
    kept = found.held["uid-team-big"].reservation
    assert kept is not None
    assert found.placed[2].choice.shares["main"][0].uuid != f"n-{kept.cards[0]}"


def test_card_is_kept_from_those_who_come_later_in_any_queue() -> None:
    scene = Scene(node("n", [16])).come(pod("a", 60, 8), pod("whole", 100))
    assert scene.gone() == ["a"]
    scene.come(*(pod(f"small{index}", 10, 1, queue=f"q{index}") for index in range(5)))
    assert scene.gone() == []
    scene.end("a")
    assert scene.gone() == ["whole"]


def test_earlier_pod_of_another_queue_keeps_first() -> None:
    scene = Scene(node("n", [16, 16])).come(pod("a", 100), pod("b", 100))
    scene.turn()
    scene.come(pod("late", 100, queue="x", arrival=9), pod("early", 100, queue="y", arrival=5))
    held = scene.turn().held
    assert held["uid-team-early"].reservation == Reservation(node="n", cards=(0,))
    assert held["uid-team-late"].reservation == Reservation(node="n", cards=(1,))
    scene.end("b")
    assert scene.gone() == ["early"]


def test_nearest_card_is_kept() -> None:
    scene = Scene(node("n", [16, 16, 16]))
    scene.come(pod("a", 90, 8), pod("b", 50, 8), pod("c", 70, 8))
    assert len(scene.gone()) == 3
    held = scene.come(pod("d", 60, 8)).turn().held
    assert held["uid-team-d"].reservation == Reservation(node="n", cards=(1,))


def test_pod_that_no_node_could_hold_blocks_nobody_and_is_tried_again_when_nodes_change() -> None:
    scene = Scene(node("n", [16])).come(
        pod("giant", 10, 100), pod("small", 10, 4), pod("odd", 100, 0, nodeSelector={"a": "b"})
    )
    assert scene.gone() == ["small"]
    assert scene.waits() == {"giant": (Wait.UNMEETABLE, 0), "odd": (Wait.UNMEETABLE, 0)}
    scene.cluster.set_node(node_facts(node("m", [80]), NAMES))
    assert scene.gone() == ["giant"]


def test_pod_that_is_set_aside_comes_first_again() -> None:
    scene = Scene(node("n", [16], ready=False)).come(pod("first", 60, 8), pod("second", 60, 8))
    assert scene.gone() == []
    scene.cluster.set_node(node_facts(node("n", [16]), NAMES))
    assert scene.gone() == ["first"]


def test_pod_with_other_gates_is_not_in_line_yet() -> None:
    scene = Scene(node("n", [16])).come(pod("gated", 60, 8, gates=(NAMES.gate, "x/y")), pod("next", 60, 8))
    assert scene.gone() == ["next"]
    assert scene.waits() == {"gated": (Wait.OTHER_GATES, 0)}
    scene.come(pod("gated", 60, 8, arrival=1))
    scene.come(pod("later", 60, 8))
    assert scene.waits() == {"gated": (Wait.NO_ROOM, 1), "later": (Wait.BEHIND, 2)}


def test_pod_that_asks_for_what_cannot_be_blocks_nobody() -> None:
    scene = Scene(node("n", [16])).come(pod("wrong", 150, 8), pod("next", 60, 8))
    assert scene.gone() == ["next"]
    assert scene.waits() == {"wrong": (Wait.INVALID, 0)}


def test_order_is_creation_then_stamp_then_uid() -> None:
    scene = Scene(node("n", [16]))
    scene.come(
        pod("d", 10, 1, second=2, arrival=1),
        pod("c", 10, 1, second=1, arrival=9),
        pod("b", 10, 1, second=1, arrival=5),
        pod("a", 10, 1, second=1, arrival=5),
    )
    assert scene.gone() == ["a", "b", "c", "d"]


def test_turn_can_end_early_and_go_on() -> None:
    scene = Scene(node("n", [16])).come(*(pod(f"p{index}", 10, 1) for index in range(5)))
    found = scene.turn(most=3)
    assert found.more
    assert [each.pod.name for each in found.placed] == ["p0", "p1", "p2"]
    assert scene.gone(most=3) == ["p3", "p4"]


def test_node_beside_its_cards_is_kept_as_well() -> None:
    """Who waits for CPUs on a node gets them, though pods with few CPUs could go to its other card."""

    def want(name: str, cpu: str, queue: str = "team") -> dict[str, Any]:
        return pod(name, queue=queue, containers=[container("main", 10, 1, cpu=cpu)])

    scene = Scene(node("n", [16, 16], cpu="8")).come(want("a", "6"), want("b", "4"), want("c", "1", "other"))
    assert scene.gone() == ["a"]
    assert scene.waits()["c"] == (Wait.NO_ROOM, 1)
    scene.end("a")
    assert scene.gone() == ["b", "c"]


def test_several_containers_wait_for_one_node() -> None:
    scene = Scene(node("n", [16, 16]), node("m", [16, 16])).come(
        pod("a", 60, 8), pod("b", 60, 8), pod("c", 60, 8)
    )
    assert len(scene.gone()) == 3
    scene.come(
        pod("both", containers=[container("x", 90, 8), container("y", 90, 8)]), pod("s", 40, 4, queue="s")
    )
    found = scene.turn()
    kept = found.held["uid-team-both"].reservation
    assert kept == Reservation(node="n", cards=(0, 1))
    assert [each.choice.node for each in found.placed] == ["m"]


@pytest.mark.parametrize(
    ("position", "told"),
    [(1, "1"), (20, "20"), (21, "about 30"), (100, "about 100"), (101, "about 200"), (1234, "about 1300")],
)
def test_far_positions_are_told_coarsely(position: int, told: str) -> None:
    assert coarse(position) == told

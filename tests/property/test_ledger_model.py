"""Every interleaving of a small model of the ledger, with kills and stops at each step, keeps its promises.

And the walk would notice: each order of steps that the decision calls wrong is caught.
"""

from __future__ import annotations

import pytest

from tests.property.ledger_model import BrokenPromiseError, Rules, Scene, walk, wrong

SCENES = {
    "three want more than there is, one may be killed": Scene(
        programs=((("reserve", 60),), (("reserve", 10),), (("reserve", 60),)), kills=1, thefts=2
    ),
    "two want more than there is, and give back": Scene(
        programs=((("reserve", 60), ("release", 60)), (("reserve", 60), ("release", 60))),
        slots=2,
        kills=1,
        thefts=3,
    ),
    "memory changes hands while a third sums it up": Scene(
        programs=((("reserve", 60), ("release", 60)), (("reserve", 40),), (("reserve", 50),)),
        nobody_died=True,
        thefts=1,
    ),
    "two threads of one process beside another process": Scene(
        programs=((("reserve", 60), ("release", 60)), (("reserve", 30),), (("reserve", 50),)),
        threads_of_first=2,
        slots=2,
        nobody_died=True,
        thefts=1,
    ),
    "two need what a dead process held": Scene(
        programs=((("reserve", 50),), (("reserve", 50),)), dead_bytes=(100,), kills=1, thefts=1
    ),
    "a newcomer takes a dead process's slot while another takes back what it held": Scene(
        programs=((("attach", 0), ("reserve", 60)), (("reserve", 50),)),
        dead_bytes=(60,),
        slots=2,
        kills=1,
        thefts=1,
    ),
    "a newcomer finds the slot of one that dies while another needs what it held": Scene(
        programs=((("reserve", 60),), (("attach", 0),), (("reserve", 50),)), slots=2, kills=1, thefts=1
    ),
    "a charge that cannot be refused, while memory changes hands": Scene(
        programs=((("reserve", 50), ("release", 50)), (("reserve", 50),), (("charge", 50), ("release", 50))),
        nobody_died=True,
    ),
}

WRONG = {
    "fence after the swap of the lock": (
        wrong(fence_before_swap=False),
        "three want more than there is, one may be killed",
    ),
    "fence read after the lease was taken": (
        wrong(fence_read_before_lease=False),
        "three want more than there is, one may be killed",
    ),
    "no second sum where nothing was found to take back": (
        wrong(sum_again_in_any_case=False),
        "two need what a dead process held",
    ),
    "a refusal believed although the lease was lost": (
        wrong(refusal_needs_fence=False),
        "memory changes hands while a third sums it up",
    ),
    "the dead taken back under a lock that another may hold": (
        wrong(reclaim_without_lock=False),
        "two need what a dead process held",
    ),
    "the owner looked for before the word is read": (
        wrong(word_read_before_owner_sought=False),
        "a newcomer takes a dead process's slot while another takes back what it held",
    ),
    "a slot owned before it is emptied": (
        wrong(emptied_before_owned=False),
        "a newcomer finds the slot of one that dies while another needs what it held",
    ),
    "a fence that a new owner does not raise": (
        wrong(new_owner_raises_fence=False, reclaim_raises_fence=False),
        "a newcomer takes a dead process's slot while another takes back what it held",
    ),
    "a charge without the lease": (
        wrong(charge_under_lease=False),
        "a charge that cannot be refused, while memory changes hands",
    ),
}


@pytest.mark.parametrize("scene", SCENES)
def test_no_interleaving_breaks_a_promise(scene: str) -> None:
    assert walk(SCENES[scene]) > 500


@pytest.mark.parametrize("order", WRONG)
def test_a_wrong_order_is_caught(order: str) -> None:
    rules, scene = WRONG[order]
    assert rules != Rules()
    with pytest.raises(BrokenPromiseError):
        walk(SCENES[scene], rules)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_interleaving_of_a_larger_scene_breaks_a_promise() -> None:
    scene = Scene(
        programs=((("reserve", 60), ("release", 60)), (("reserve", 10),), (("reserve", 60),)),
        kills=2,
        thefts=3,
    )
    assert walk(scene) > 100_000

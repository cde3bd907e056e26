"""The node's pure decisions, one by one: whose a call is, exchanges, accounts, what is withdrawn."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest

from deviceplugin._proto.device_plugin_pb2 import ContainerAllocateResponse
from deviceplugin.account import Listed, account_of, answers, read_checkpoint
from deviceplugin.allocation import Allocation, Refused, allocate
from deviceplugin.starting import Answered, Start, Stop, start
from deviceplugin.state import Account, Held, NodePod, Owner, Resource, Ticket, View
from deviceplugin.units import offer
from vcuda.kube.asks import Ask, PodAsk
from vcuda.kube.names import Names
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import CardShare, PodPlacement

UNIT = 2**28
CORE, MEMORY = Resource.CORE, Resource.MEMORY
CARDS = [NodeCard(uuid=f"GPU-{n}", index=n, model="V100", memory_bytes=16 * UNIT) for n in range(2)]


def pod(name: str, card: str, *, cores: int = 50, units: int = 8, second: int = 1, **changes) -> NodePod:
    share = CardShare(uuid=card, cores=cores, cores_max=cores, memory_bytes=units * UNIT)
    made = NodePod(
        uid=f"uid-{name}",
        namespace="default",
        name=name,
        created=(f"{second:03}", "", name),
        over=False,
        ask=PodAsk(containers=(Ask(container="main", cores=cores, memory_units=units),)),
        placement=PodPlacement(uid=f"uid-{name}", node="n", containers={"main": (share,)}),
    )
    return replace(made, **changes)


def view(*pods: NodePod, tickets=(), held=(), listed=None, cards=CARDS, moved=None) -> View:
    names = [each.name for each in pods] if listed is None else listed
    return View(
        cards=cards,
        pods={each.uid: each for each in pods},
        tickets=tickets,
        account=Account(listed=frozenset(("default", name) for name in names), held=tuple(held)),
        moved=moved or {},
        unit_bytes=UNIT,
    )


def ids(resource: Resource, *numbers: int) -> frozenset[str]:
    return frozenset(f"{resource}-{number}" for number in numbers)


def ticket(of: NodePod, *, owner: NodePod | None = None, name: str = "t", cards=None, **more) -> Ticket:
    (shares,) = of.placement.containers.values()
    if cards is not None:
        shares = tuple(replace(share, uuid=card) for share, card in zip(shares, cards, strict=True))
    given = {CORE: ids(CORE, *range(50)), MEMORY: ids(MEMORY, *range(8))}
    return Ticket(
        name=name,
        ids=more.get("ids", given),
        shares=shares,
        priority=0,
        meant=of.owner("main"),
        owner=None if owner is None else owner.owner("main"),
        asked_ns=1,
    )


def has(who: NodePod, given) -> list[Held]:
    return [Held(owner=who.owner("main"), resource=each, ids=found) for each, found in given.items()]


def test_the_pod_that_the_kubelet_lists_is_served_not_the_earliest() -> None:
    early, late = pod("early", "GPU-0", second=1), pod("late", "GPU-1", second=2)
    found = allocate(view(early, late, listed=["late"]), CORE, ids(CORE, *range(50)))
    assert isinstance(found, Allocation)
    assert (found.ticket.meant, found.ticket.cards) == (late.owner("main"), ("GPU-1",))


def test_second_resource_completes_the_ticket_of_whom_the_first_is() -> None:
    one, two = pod("one", "GPU-0"), pod("two", "GPU-1", second=2)
    half = ticket(two, ids={CORE: ids(CORE, *range(50))})
    found = allocate(view(one, two, tickets=[half], held=has(two, half.ids)), MEMORY, ids(MEMORY, *range(8)))
    assert isinstance(found, Allocation)
    assert found.ticket == replace(half, ids={**half.ids, MEMORY: ids(MEMORY, *range(8))})


def test_who_asks_another_number_or_has_a_fault_is_not_served() -> None:
    other = pod("other", "GPU-0", cores=30)
    forged = pod("forged", "GPU-0", fault="placement: was not written by the controller", placement=None)
    found = allocate(view(other, forged), CORE, ids(CORE, *range(50)))
    assert isinstance(found, Refused)
    assert found.pods == (forged,)
    assert "default/forged: placement: was not written by the controller" in found.text


def test_without_the_kubelets_account_nobody_is_served() -> None:
    blind = replace(view(pod("one", "GPU-0")), account=Account(known=False))
    found = allocate(blind, CORE, ids(CORE, *range(50)))
    assert isinstance(found, Refused)
    assert found.reason == "KubeletSilent"


def test_ids_that_are_given_out_anew_void_an_older_ticket() -> None:
    old, new = pod("old", "GPU-0", over=True), pod("new", "GPU-1")
    before = ticket(old, owner=old)
    found = allocate(view(old, new, tickets=[before], listed=["new"]), CORE, before.ids[CORE])
    assert isinstance(found, Allocation)
    assert found.void == (before,)
    assert found.ticket.name == ""


def test_container_starts_with_its_own_cards() -> None:
    one = pod("one", "GPU-0")
    made = ticket(one)
    found = start(view(one, tickets=[made], held=has(one, made.ids)), CORE, made.ids[CORE])
    assert isinstance(found, Start)
    assert found.moved is None
    assert found.tickets == (replace(made, owner=one.owner("main")),)


def test_equals_that_were_served_in_another_order_exchange_their_cards() -> None:
    one, two = pod("one", "GPU-0"), pod("two", "GPU-1", second=2)
    made = ticket(one)  # thought for one, and it is two's
    found = start(view(one, two, tickets=[made], held=has(two, made.ids)), CORE, made.ids[CORE])
    assert isinstance(found, Start)
    assert found.moved == {"uid-two": {"main": ("GPU-0",)}, "uid-one": {"main": ("GPU-1",)}}
    assert found.tickets[0].owner == two.owner("main")
    # And the other one is given what was exchanged for its own.
    after = view(
        one, two, tickets=found.tickets, held=has(two, made.ids), moved=found.moved, listed=["one", "two"]
    )
    given = allocate(after, CORE, ids(CORE, *range(50, 100)))
    assert isinstance(given, Allocation)
    assert (given.ticket.meant, given.ticket.cards) == (one.owner("main"), ("GPU-1",))


def test_exchange_that_does_not_fit_is_refused() -> None:
    one, two = pod("one", "GPU-0"), pod("two", "GPU-1", cores=80, second=2)
    fills = pod("fills", "GPU-0", second=3)
    made, filled = ticket(one), ticket(fills, owner=fills, name="f", ids={CORE: ids(CORE, 99)})
    found = start(
        view(one, two, fills, tickets=[made, filled], held=has(two, made.ids)), CORE, made.ids[CORE]
    )
    assert isinstance(found, Stop)
    assert found.refused.reason == "CardsExchanged"
    assert found.void == ()


def test_card_that_is_held_is_not_given_twice() -> None:
    one, two = pod("one", "GPU-0", cores=60), pod("two", "GPU-0", cores=60, second=2)
    first, second = ticket(one, owner=one, name="a"), ticket(two, name="b", ids={CORE: ids(CORE, 80)})
    found = start(view(one, two, tickets=[first, second], held=has(two, second.ids)), CORE, second.ids[CORE])
    assert isinstance(found, Stop)
    assert found.refused.reason == "CardFull"


def test_nothing_starts_anew_on_a_card_that_is_not_well_and_what_ran_starts_again() -> None:
    broken = [replace(CARDS[0], healthy=False), CARDS[1]]
    one = pod("one", "GPU-0")
    for owner, starts in ((None, False), (one, True)):
        made = ticket(one, owner=owner)
        found = start(view(one, tickets=[made], held=has(one, made.ids), cards=broken), CORE, made.ids[CORE])
        assert isinstance(found, Start) is starts


def test_forged_pod_that_was_served_never_starts_and_its_ticket_is_void() -> None:
    honest = pod("honest", "GPU-0")
    forged = pod("forged", "GPU-0", fault="has no placement", placement=None)
    made = ticket(honest)
    found = start(view(honest, forged, tickets=[made], held=has(forged, made.ids)), CORE, made.ids[CORE])
    assert isinstance(found, Stop)
    assert (found.refused.pods, found.void) == ((forged,), (made,))


def test_ticket_is_made_again_from_the_answer_that_the_kubelet_keeps() -> None:
    one = pod("one", "GPU-0")
    given = {CORE: ids(CORE, *range(50))}
    answer = Answered(owner=one.owner("main"), name="before", cards=("GPU-0",))
    found = start(view(one, held=has(one, given)), CORE, given[CORE], [answer])
    assert isinstance(found, Start)
    assert (found.tickets[0].name, found.tickets[0].cards) == ("before", ("GPU-0",))
    nothing = start(view(one, held=has(one, given)), CORE, given[CORE])
    assert isinstance(nothing, Stop)
    assert nothing.refused.reason == "TicketLost"


def checkpoint(*entries: tuple[str, str, str, list[str]]) -> str:
    answer = ContainerAllocateResponse(envs={"VCUDA_TICKET": "t", "NVIDIA_VISIBLE_DEVICES": "GPU-0,GPU-1"})
    return json.dumps(
        {
            "Data": {
                "PodDeviceEntries": [
                    {
                        "PodUID": uid,
                        "ContainerName": container,
                        "ResourceName": resource,
                        "DeviceIDs": {"0": given[:1], "1": given[1:]},
                        "AllocResp": base64.b64encode(answer.SerializeToString()).decode(),
                    }
                    for uid, container, resource, given in entries
                ]
            }
        }
    )


def test_init_container_is_known_by_the_checkpoint_alone() -> None:
    one = pod("one", "GPU-0")
    kept = read_checkpoint(
        checkpoint(
            ("uid-one", "init", "vcuda.dev/vcuda-core", ["core-1", "core-2"]),
            ("uid-one", "init", "nvidia.com/gpu", ["x"]),
            ("uid-gone", "main", "vcuda.dev/vcuda-core", ["core-3"]),
        ),
        Names(),
    )
    listed = [Listed(namespace="default", pod="one", container="main", ids={})]
    account = account_of(listed, kept, {one.uid: one})
    assert account.holders(CORE, ids(CORE, 1, 2)) == [Owner(uid="uid-one", container="init")]
    assert account.holders(CORE, ids(CORE, 3)) == []
    (answer,) = answers(kept, account, CORE, ids(CORE, 1, 2))
    assert (answer.name, answer.cards) == ("t", ("GPU-0", "GPU-1"))


def test_pod_of_the_same_name_and_ids_as_an_old_one_is_not_taken_for_it() -> None:
    old, new = pod("same", "GPU-0", uid="uid-old", over=True), pod("same", "GPU-0", uid="uid-new")
    kept = read_checkpoint(checkpoint(("uid-old", "main", "vcuda.dev/vcuda-core", ["core-1"])), Names())
    listed = [Listed(namespace="default", pod="same", container="main", ids={CORE: ids(CORE, 1)})]
    assert account_of(listed, kept, {"uid-new": new}).holders(CORE, ids(CORE, 1))[0].uid == "uid-new"
    both = account_of(listed, kept, {"uid-new": new, "uid-old": old})
    assert both.holders(CORE, ids(CORE, 1))[0].uid == "uid-old"  # as the kubelet wrote it down


def test_checkpoint_that_cannot_be_read_says_nothing() -> None:
    for text in ("", "[]", "{}", '{"Data": null}', '{"Data": {"PodDeviceEntries": [{"PodUID": 1}]}}', "\x00"):
        assert read_checkpoint(text, Names()) == []


def test_ids_are_withdrawn_from_those_on_the_broken_card_and_from_nobody_else() -> None:
    broken = [replace(CARDS[0], healthy=False), CARDS[1]]
    one, two = pod("one", "GPU-0"), pod("two", "GPU-1")
    on_broken = ticket(one, ids={CORE: frozenset({"core-0150", "core-0151"})})
    on_other = ticket(two, ids={CORE: frozenset(f"core-{n:04}" for n in range(100))})
    found = offer(broken, CORE, tickets=[on_broken, on_other], unit_bytes=UNIT, nominal=True)
    assert len(found.ids) == 200
    assert len(found.withdrawn) == 100
    assert found.withdrawn >= on_broken.ids[CORE]
    assert not found.withdrawn & on_other.ids[CORE]
    assert offer(CARDS, CORE, tickets=[], unit_bytes=UNIT, nominal=True).withdrawn == frozenset()


def test_as_much_memory_is_offered_as_may_be_asked_with_a_whole_card() -> None:
    card = [NodeCard(uuid="GPU-0", index=0, model="V100", memory_bytes=63 * UNIT)]
    assert len(offer(card, MEMORY, tickets=[], unit_bytes=UNIT, nominal=True).ids) == 72
    assert len(offer(card, MEMORY, tickets=[], unit_bytes=UNIT, nominal=False).ids) == 63


@pytest.mark.parametrize("resource", [CORE, MEMORY])
def test_pod_that_was_started_or_is_leaving_is_the_last_to_be_meant(resource: Resource) -> None:
    old, new = pod("old", "GPU-0", second=1, spent=True), pod("new", "GPU-1", second=2)
    count = 50 if resource is CORE else 8
    found = allocate(view(old, new), resource, ids(resource, *range(count)))
    assert isinstance(found, Allocation)
    assert found.ticket.meant.uid == new.uid
    found = allocate(view(old), resource, ids(resource, *range(count)))
    assert isinstance(found, Allocation)
    assert found.ticket.meant.uid == old.uid


@pytest.mark.parametrize("alive", [True, False])
def test_ids_that_are_given_out_twice_take_nothing_from_who_lives(alive: bool) -> None:
    first, second = pod("first", "GPU-0", second=1), pod("second", "GPU-1", second=2)
    had = ticket(first, owner=first)
    holds = [Held(owner=first.owner("main"), resource=each, ids=had.ids[each]) for each in (CORE, MEMORY)]
    seen = view(first, second, tickets=[had], held=holds if alive else ())
    found = allocate(seen, CORE, had.ids[CORE])
    assert isinstance(found, Allocation)
    if alive:
        assert found.ticket.meant.uid == second.uid
        assert found.void == ()

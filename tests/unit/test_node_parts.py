"""Parts of the node side by themselves: pods read, settings, answers, grants, books, metrics, processes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deviceplugin.delivery import Delivery, grant_of
from deviceplugin.inventory import Use
from deviceplugin.metrics import CardState, NodeCollector, Sources
from deviceplugin.pods import Trust, read_pod, reduced
from deviceplugin.processes import outside, pod_of
from deviceplugin.server import Counts
from deviceplugin.settings import SettingsError, read_settings
from deviceplugin.shares import Reading
from deviceplugin.state import Owner, Resource, Ticket
from deviceplugin.tickets import Books, lock
from vcuda import grant as grants
from vcuda.kube import placements
from vcuda.kube.names import Names
from vcuda.kube.nodes import NodeCard
from vcuda.kube.placements import CardShare, PodPlacement
from vcuda.kube.placing import CardRoom

KEY = Ed25519PrivateKey.generate()
TRUST = Trust(node="n", names=Names(), key=KEY.public_key())
SHARE = CardShare(uuid="GPU-0", cores=30, cores_max=60, memory_bytes=2**31)
OWNER = Owner(uid="u", container="main", namespace="default", pod="one")
TICKET = Ticket(
    name="t",
    ids={Resource.CORE: frozenset({"core-1"})},
    shares=(SHARE,),
    priority=1,
    meant=OWNER,
    owner=OWNER,
)


def pod(annotation: str | None, **limits: str) -> dict[str, Any]:
    asks = {"vcuda.dev/vcuda-core": "30", "vcuda.dev/vcuda-memory": "8", **limits}
    return {
        "metadata": {
            "uid": "u",
            "name": "one",
            "namespace": "default",
            "annotations": {} if annotation is None else {"vcuda.dev/placement": annotation},
            "managedFields": ["long"],
        },
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"limits": asks}}]},
        "status": {"phase": "Pending", "conditions": ["long"]},
    }


def placed(key: Ed25519PrivateKey = KEY, **changes: Any) -> str:
    content = PodPlacement(uid="u", node="n", containers={"main": (SHARE,)})
    return placements.encode(replace(content, **changes), key)


@pytest.mark.parametrize(
    ("annotation", "fault"),
    [
        (placed(), None),
        (None, "has no placement"),
        ("garbage", "was not written by the controller"),
        (placed(Ed25519PrivateKey.generate()), "was not written by the controller"),
        (placed(uid="another"), "is of the pod with uid another"),
        (placed(node="m"), "is on node m, the pod on n"),
        (placed(containers={}), "has 0 cards for container main, which asks 1"),
        (placed(containers={"main": (SHARE, SHARE)}), "has 2 cards for container main, which asks 1"),
    ],
)
def test_placement_is_believed_only_as_the_controller_wrote_it(
    annotation: str | None, fault: str | None
) -> None:
    found = read_pod(pod(annotation), TRUST)
    assert found is not None
    assert (found.placement is None) == (fault is not None)
    assert (found.fault is None) if fault is None else (fault in (found.fault or ""))
    assert read_pod(reduced(pod(annotation)), TRUST) == found


def test_nothing_is_believed_without_the_key_and_a_pod_that_asks_nothing_is_nobodys() -> None:
    found = read_pod(pod(placed()), replace(TRUST, key=None))
    assert found is not None
    assert "public key is not known" in (found.fault or "")
    none = {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "main"}]}, "status": {}}
    assert read_pod(none, TRUST) is None


def test_where_the_node_places_a_pod_needs_no_placement_and_a_forged_one_is_no_better() -> None:
    by_node = replace(TRUST, required=False)
    assert read_pod(pod(None), by_node).fault is None
    assert read_pod(pod(placed(Ed25519PrivateKey.generate())), by_node).fault is not None


def test_settings_come_from_flags_then_environment_then_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "file"\npolicy = "spread"\ndomain = "file.dev"\n')
    monkeypatch.setenv("VCUDA_NODE_CONFIG", str(file))
    monkeypatch.setenv("VCUDA_NODE_DOMAIN", "env.dev")
    monkeypatch.setenv("VCUDA_NODE_NAME", "env")
    found = read_settings(["--name", "flag", "--memory-unit", "1GiB"])
    assert (found.name, found.domain, found.policy, found.memory_unit) == ("flag", "env.dev", "spread", 2**30)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "name: Field required"),
        (["--name", "n", "--memory-unit", "big"], "memory_unit: 'big' is not a size"),
        (["--name", "n", "--metrics-address", "nowhere"], "'nowhere' is not ADDRESS:PORT"),
        (["--name", "n", "--simulated", "T4", "--cdi-kind", "a/b"], "goes with neither"),
        (["--name", "n", "--domain", "no/slash"], "domain: String should match"),
    ],
)
def test_setting_that_cannot_be_is_named(
    flags: list[str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VCUDA_NODE_CONFIG", raising=False)
    with pytest.raises(SettingsError, match=re.escape(text)):
        read_settings(flags)


def test_container_is_given_its_cards_and_no_others(tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (dev / name).touch()
    delivery = Delivery(run=tmp_path / "run", host=Path("/run/vcuda-node"), dev_dir=dev)
    delivery.install()
    answer = delivery.answer(TICKET, {"GPU-0": 3, "GPU-1": 0})
    assert answer.devices == ("/dev/nvidia3", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert answer.variables["CUDA_VISIBLE_DEVICES"] == "GPU-0"
    writable = [mount.container for mount in answer.mounts if not mount.read_only]
    assert writable == ["/run/vcuda/ledger"]
    assert replace(delivery, cdi_kind="nvidia.com/gpu").answer(TICKET, {}).cdi == ("nvidia.com/gpu=GPU-0",)


def test_library_has_a_path_of_its_own_and_comes_back_where_an_old_answer_names_it(tmp_path: Path) -> None:
    delivery = Delivery(run=tmp_path, host=Path("/run/vcuda-node"))
    delivery.install()
    (library,) = (tmp_path / "lib").iterdir()
    before = (library / "libvcuda.so").stat()
    delivery.install()
    assert (library / "libvcuda.so").stat().st_ino == before.st_ino
    delivery.restore(
        ["/run/vcuda-node/lib/shim-of-before/ld.so.preload", "/etc/passwd", "/run/vcuda-node/lib/../x"]
    )
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == sorted(
        [library.name, "shim-of-before"]
    )
    assert (tmp_path / "lib" / "shim-of-before" / "libvcuda.so").exists()


def test_grant_says_what_was_placed() -> None:
    (card,) = grant_of(TICKET, {}).cards
    assert (card.memory_bytes, card.core_ppm, card.core_max_ppm, card.priority) == (
        2**31,
        300_000,
        600_000,
        1,
    )
    long = replace(OWNER, pod="p" * 200)
    grant = grant_of(replace(TICKET, owner=long, shares=(replace(SHARE, cores=0, cores_max=100),)), {})
    assert len(grant.name) <= 63
    assert grant.cards[0].core_ppm == 1
    grants.encode(grant)


def test_books_survive_and_what_is_half_made_does_not(tmp_path: Path) -> None:
    said: list[str] = []
    books = Books(tmp_path / "shares", say=said.append)
    made = books.put(replace(TICKET, name=""))
    books.grant(made, grant_of(made, {}))
    ledger = books.mounted(made) / "ledger"
    inode = ledger.stat().st_ino
    for name in (".new-x", ".old-y"):
        (tmp_path / "shares" / name).mkdir()
    (tmp_path / "shares" / "strange").mkdir()
    again = Books(tmp_path / "shares", say=said.append)
    assert again.tickets == (made,)
    assert len(said) == 1
    assert "strange" in said[0]
    again.grant(made, grant_of(made, {}))
    assert ledger.stat().st_ino == inode
    again.remove(made)
    assert sorted(path.name for path in (tmp_path / "shares").iterdir()) == ["strange"]
    held = lock(tmp_path)
    assert held is not None
    assert lock(tmp_path) is None


def test_metrics_are_those_of_the_reference() -> None:
    card = NodeCard(uuid="GPU-0", index=0, model="V100", memory_bytes=2**34)
    reading = Reading(
        owner=OWNER,
        uuid="GPU-0",
        memory_limit_bytes=2**31,
        memory_used_bytes=5,
        core_share=0.3,
        core_ns=2_500_000_000,
        wait_ns=500_000_000,
        refused=3,
    )
    counts = Counts()
    counts.add(Resource.CORE, "Allocate", "ok", 0.25)
    room = CardRoom(card=card).with_share(SHARE)
    sources = Sources(
        node="n",
        shares=lambda: [reading],
        cards=lambda: [
            CardState(room=room, use=Use(used_bytes=7, utilisation=0.5, processes={}), outside=[(1, 9)])
        ],
        counts=lambda: [counts],
        state=lambda: {"registered": True, "synced": True, "contested": False},
    )
    registry = CollectorRegistry()
    registry.register(NodeCollector(sources))
    found: dict[str, float] = {}
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found[sample.name] = sample.value
            labels[sample.name] = set(sample.labels)
    assert found["vcuda_container_core_seconds_total"] == 2.5
    assert found["vcuda_container_core_wait_seconds_total"] == 0.5
    assert found["vcuda_container_allocations_refused_total"] == 3
    assert found["vcuda_card_free_bytes"] == 2**34 - 2**31
    assert found["vcuda_card_outside_bytes"] == 9
    assert labels["vcuda_container_core_seconds_total"] == {"namespace", "pod", "container", "card", "node"}
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "metrics.md").read_text()
    assert set(re.findall(r"^\| `(vcuda_\w+)`", reference, re.MULTILINE)) == set(found)


def test_process_is_outside_that_no_ledger_accounts_for() -> None:
    assert outside([(3, 20), (1, 10), (2, 30)], {1, 2}) == [(3, 20)]
    assert outside([], {1}) == []


def test_pod_of_a_process_is_in_its_cgroup(tmp_path: Path) -> None:
    uid = "0a1b2c3d-0000-4000-8000-0123456789ab"
    for pid, path in (
        (1, f"/kubepods/burstable/pod{uid}/x"),
        (2, f"/kubepods.slice/kubepods-pod{uid.replace('-', '_')}.slice/x"),
        (3, "/user.slice"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(f"0::{path}\n")
    assert [pod_of(pid, tmp_path) for pid in (1, 2, 3, 4)] == [uid, uid, None, None]


def test_ticket_is_kept_as_it_was(tmp_path: Path) -> None:
    books = Books(tmp_path, say=print)
    made = books.put(TICKET)
    content = json.loads((tmp_path / "t" / "ticket.json").read_text())
    assert content["owner"] == {"uid": "u", "container": "main", "namespace": "default", "pod": "one"}
    assert Books(tmp_path, say=print).tickets == (made,)

"""What the controller knows: pods and nodes as the API last told, and what follows for cluster and queues.

A pod holds what the placement on it says, once its gate is gone. Where that cannot be believed, unknown means
taken: a pod that is bound holds what its placement claims, if that can be read and is of this node, else all
that it asks, as well as that fits. One that is bound without any placement gets nothing from the node agent,
and holds no card.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from admission.placing.cluster import Cluster, Holder
from admission.placing.queue import Line
from vcuda.apiserver import Json
from vcuda.kube.asks import PodAsk, mapping
from vcuda.kube.eligibility import node_facts
from vcuda.kube.names import Names
from vcuda.kube.placements import PlacementError, PodPlacement, decode
from vcuda.kube.pods import PodFacts, condition_of, pod_facts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A pod as it was last seen."""

    json: Json
    facts: PodFacts
    placement: PodPlacement | None
    """That the controller wrote, once it holds."""


class State:
    """Pods, nodes, cluster and queues; changed by what the API tells, and by what was written there."""

    def __init__(self, *, names: Names, key: Ed25519PublicKey, policy: str) -> None:
        self.names = names
        self.cluster = Cluster(policy=policy)
        self.line = Line()
        self.news = asyncio.Event()
        """Something has changed that may let a pod go; whoever looks into the queues clears it."""
        self.news.set()
        self.untold: set[str] = set()
        """Pods that are placed, and do not say so."""
        self._key = key
        self._pods: dict[str, Known] = {}
        self._refused: dict[str, tuple[PodFacts, str]] = {}

    @property
    def pods(self) -> Mapping[str, Known]:
        """All pods that are there, by uid."""
        return self._pods

    def see_pod(self, pod: Json) -> None:
        """A pod as the API tells of it; what is older than what is known already is passed over."""
        facts = pod_facts(pod, self.names)
        known = self._pods.get(facts.uid)
        if known is not None and _older(pod, known.json):
            return
        refused = self._refused.get(facts.uid)
        if refused is not None and replace(refused[0], fault="") == facts:
            facts = replace(facts, fault=refused[1])
        elif refused is not None:
            del self._refused[facts.uid]
        placement, holder = self._held(facts)
        self._pods[facts.uid] = Known(pod, facts, placement)
        if holder is None:
            self._note(self.cluster.unbook(facts.uid))
        else:
            before = self.cluster.node_of(facts.uid)
            node = placement.node if placement is not None else str(facts.node)
            self.cluster.book(facts.uid, node, holder)
            self._note(before != node)
        if facts.waits:
            self._note(self.line.put(facts))
        else:
            self._note(self.line.drop(facts.uid))
        if placement is not None and not facts.over and condition_of(pod, self.names).get("status") != "True":
            self.untold.add(facts.uid)
        else:
            self.untold.discard(facts.uid)

    def wrote_pod(self, pod: Json) -> None:
        """A pod as the API answered to a write; nothing, if it was deleted before the answer came."""
        if str(mapping(pod.get("metadata")).get("uid")) in self._pods:
            self.see_pod(pod)

    def forget_pod(self, uid: str) -> None:
        """A pod is gone."""
        self._pods.pop(uid, None)
        self._refused.pop(uid, None)
        self.untold.discard(uid)
        self._note(self.cluster.unbook(uid))
        self._note(self.line.drop(uid))

    def unplaced(self, uid: str) -> None:
        """What was booked for a pod was not written: it holds nothing, and waits as before."""
        known = self._pods.get(uid)
        if known is None or known.placement is None:
            self.cluster.unbook(uid)
        self.news.set()

    def refuse(self, uid: str, why: str) -> None:
        """The API does not take a pod's placement: it steps aside until it changes, or is tried anew."""
        known = self._pods.get(uid)
        if known is not None and known.facts.waits:
            self._refused[uid] = known.facts, why
            facts = replace(known.facts, fault=why)
            self._pods[uid] = replace(known, facts=facts)
            self.line.put(facts)
            self.news.set()

    def try_anew(self, uid: str) -> None:
        """A pod that was refused is in line again."""
        if self._refused.pop(uid, None) is not None and uid in self._pods:
            self.see_pod(self._pods[uid].json)
            self.news.set()

    def see_node(self, node: Json) -> None:
        """A node as the API tells of it."""
        facts = node_facts(node, self.names)
        if facts.fault and self.names.cards in mapping(mapping(node.get("metadata")).get("annotations")):
            _LOG.warning("node %s: %s", facts.name, facts.fault)
        self._note(self.cluster.set_node(facts))

    def forget_node(self, name: str) -> None:
        """A node is gone."""
        self._note(self.cluster.remove_node(name))

    def _note(self, news: bool, /) -> None:
        if news:
            self.news.set()

    def _held(self, facts: PodFacts) -> tuple[PodPlacement | None, Holder | None]:
        """The placement that holds, and what is to be booked."""
        if facts.over or facts.gated:
            return None, None
        if facts.placement is not None:
            try:
                placement = decode(facts.placement, facts.uid, self._key)
            except PlacementError as error:
                if facts.node is not None:
                    _LOG.warning("pod %s: %s; what it could hold counts as taken", facts.who, error)
                    return None, Holder(placement=_claimed(facts), amounts=facts.amounts)
                return None, None
            return placement, Holder(placement=placement, amounts=facts.amounts)
        return None, None if facts.node is None else Holder(placement=None, amounts=facts.amounts)


class PodSink:
    """Pods of a watch, into the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.listed = False

    def replace(self, objects: Sequence[Json]) -> None:
        """These are all."""
        found = {str(mapping(pod.get("metadata")).get("uid")) for pod in objects}
        for uid in [uid for uid in self._state.pods if uid not in found]:
            self._state.forget_pod(uid)
        for pod in objects:
            self._state.see_pod(pod)
        self.listed = True

    def changed(self, found: Json) -> None:
        """One is new, or different."""
        self._state.see_pod(found)

    def deleted(self, found: Json) -> None:
        """One is gone, or has lost the label by which it is watched."""
        self._state.forget_pod(str(mapping(found.get("metadata")).get("uid")))


class NodeSink:
    """Nodes of a watch, into the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.listed = False

    def replace(self, objects: Sequence[Json]) -> None:
        """These are all."""
        found = {str(mapping(node.get("metadata")).get("name")) for node in objects}
        for name in [name for name in self._state.cluster.nodes if name not in found]:
            self._state.forget_node(name)
        for node in objects:
            self._state.see_node(node)
        self.listed = True

    def changed(self, found: Json) -> None:
        """One is new, or different."""
        self._state.see_node(found)

    def deleted(self, found: Json) -> None:
        """One is gone."""
        self._state.forget_node(str(mapping(found.get("metadata")).get("name")))


def _claimed(facts: PodFacts) -> PodPlacement | PodAsk:
    """What a bound pod could hold whose placement is not to be believed."""
    try:
        placement = decode(facts.placement or "", facts.uid, None)
    except PlacementError:
        return facts.ask
    return placement if placement.node == facts.node else facts.ask


def _older(pod: Json, known: Json) -> bool:
    """Whether a version was before another one. The API's versions are numbers of one sequence."""
    version, other = (
        str(mapping(each.get("metadata")).get("resourceVersion") or "") for each in (pod, known)
    )
    return version.isdecimal() and other.isdecimal() and int(version) < int(other)

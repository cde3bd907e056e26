"""Pods that are placed and that the scheduler cannot bind there: their shares are given back.

What pods without a share take of a node, placement does not know. A gate cannot be put back on a pod, nor
its affinity be widened: so one that somebody will make anew, such as a Deployment, is evicted after a while,
and queues again. One that nobody would make anew is left to its owner, who is told.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from admission.controller.lease import Lease
from admission.controller.patches import event_of
from admission.controller.settings import ControllerSettings
from admission.controller.state import Known, State
from vcuda.apiserver import Api, ApiError, Json, path_of
from vcuda.kube.asks import mapping
from vcuda.kube.eligibility import objects

_LOG = logging.getLogger(__name__)
EVENT = "Unbound"


class Unbound:
    """Looks for such pods, in the background."""

    def __init__(self, api: Api, state: State, lease: Lease, *, settings: ControllerSettings) -> None:
        self._api = api
        self._state = state
        self._lease = lease
        self._settings = settings
        self._since: dict[str, float] = {}
        """When each was first seen so: a condition keeps its time while its status stays the same."""
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look, until cancelled."""
        if self._settings.unbound_s == 0:
            return
        while True:
            await asyncio.sleep(min(10.0, self._settings.unbound_s / 4))
            now = time.monotonic()
            found = {
                uid: why for uid, known in self._state.pods.items() if (why := unbindable(known)) is not None
            }
            self._since = {uid: self._since.get(uid, now) for uid in found}
            self._told &= found.keys()
            for uid, why in found.items():
                known = self._state.pods.get(uid)
                late = now - self._since[uid] >= self._settings.unbound_s
                if late and known is not None and uid not in self._told and self._lease.sure:
                    await self._end(uid, known, why)

    async def _end(self, uid: str, known: Known, why: str) -> None:
        facts, placement = known.facts, known.placement
        owned = any(
            each.get("controller") is True for each in objects(_metadata(known).get("ownerReferences"))
        )
        node = placement.node if placement is not None else ""
        then = (
            "evicted, so that its owner makes it anew"
            if owned
            else "delete it to free the share that it holds"
        )
        note = f"was placed on node {node}, where the scheduler cannot bind it: {why}; {then}"
        self._told.add(uid)
        try:
            if owned:
                await self._api.create(
                    path_of("namespaces", facts.namespace, "pods", facts.name, "eviction"), eviction(known)
                )
            _LOG.warning("pod %s: %s", facts.who, note)
            event = event_of(
                known.json,
                name=f"{time.time_ns():x}",
                instance=self._settings.identity,
                reason=EVENT,
                note=note,
                warning=True,
            )
            await self._api.create(
                path_of("namespaces", facts.namespace, "events", group="events.k8s.io"), event
            )
        except ApiError as error:  # it is bound by now, or gone; or a budget or the API wants it later
            if not owned:
                return
            self._told.discard(uid)
            _LOG.info("pod %s: not evicted: %s", facts.who, error)


def unbindable(known: Known) -> str | None:
    """Why the scheduler cannot bind a placed pod, in its own words; None of any other pod."""
    facts = known.facts
    deleted = _metadata(known).get("deletionTimestamp") is not None
    if known.placement is None or facts.node is not None or facts.over or deleted:
        return None
    for condition in objects(mapping(known.json.get("status")).get("conditions")):
        if (condition.get("type"), condition.get("reason")) == ("PodScheduled", "Unschedulable"):
            return str(condition.get("message") or "it does not say why")
    return None


def eviction(known: Known) -> Json:
    """The eviction of a pod that is still as it was seen: one that was bound since is another version."""
    metadata = _metadata(known)
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata.get("name"), "namespace": metadata.get("namespace")},
        "deleteOptions": {
            "preconditions": {"uid": metadata.get("uid"), "resourceVersion": metadata.get("resourceVersion")}
        },
    }


def _metadata(known: Known) -> Mapping[str, Any]:
    return mapping(known.json.get("metadata"))

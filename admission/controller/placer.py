"""Looks into the queues whenever something has changed, and writes who goes where.

Decisions are made one after the other, in `turn`; writing them overlaps between queues, and is in order
within each. While anything is being written nothing new is decided. What was asked of the API and was not
answered is found out before anything else of that queue is done: the pod itself tells whether it was placed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from admission.controller.backoff import BackOff
from admission.controller.lease import Lease
from admission.controller.metrics import ControllerMetrics
from admission.controller.patches import placement_patch
from admission.controller.settings import ControllerSettings
from admission.controller.state import State
from admission.placing.queue import Held, Placed, turn
from vcuda.apiserver import CONFLICT, NOT_FOUND, Api, ApiError, Json, path_of
from vcuda.kube.placements import encode
from vcuda.kube.pods import pod_facts

_LOG = logging.getLogger(__name__)
_GATHER_S = 0.005
"""From the first news to the look into the queues: what comes in a burst is looked at together."""


class Placer:
    """The one that places, as long as it leads."""

    def __init__(
        self,
        api: Api,
        state: State,
        lease: Lease,
        *,
        key: Ed25519PrivateKey,
        settings: ControllerSettings,
        metrics: ControllerMetrics,
        looked: Callable[[dict[str, Held]], None],
    ) -> None:
        self._api = api
        self._state = state
        self._lease = lease
        self._key = key
        self._settings = settings
        self._metrics = metrics
        self._looked = looked
        self._limit = asyncio.Semaphore(settings.patches)

    async def run(self) -> None:
        """Place, until cancelled.

        Raises:
            LeaseLostError: others may place.

        """
        while True:
            await self._state.news.wait()
            await asyncio.sleep(_GATHER_S)
            self._lease.check()
            self._state.news.clear()
            start = time.perf_counter()
            found = turn(self._state.line, self._state.cluster, most=self._settings.batch)
            self._metrics.turned(time.perf_counter() - start)
            by_queue: dict[str, list[Placed]] = {}
            for each in found.placed:
                by_queue.setdefault(each.pod.queue, []).append(each)
            async with asyncio.TaskGroup() as group:
                for queue in by_queue.values():
                    group.create_task(self._write_queue(queue))
            if found.more:
                self._state.news.set()
            else:
                self._looked(found.held)

    async def _write_queue(self, placed: Sequence[Placed]) -> None:
        """Write the placements of one queue in order. One that fails keeps those behind it waiting, too."""
        for index, each in enumerate(placed):
            async with self._limit:
                done = await self._write(each)
            if not done:
                for behind in placed[index:]:
                    self._state.unplaced(behind.pod.uid)
                return

    async def _write(self, placed: Placed) -> bool:
        """Place one pod. Whether it is placed.

        Raises:
            LeaseLostError: before that was known.

        """
        pod = placed.pod
        known = self._state.pods.get(pod.uid)
        if known is None:
            return False  # deleted meanwhile
        fresh: Json | None = known.json
        back_off = BackOff(self._settings.back_off_s)
        placement = encode(placed.placement, self._key)
        while True:
            self._lease.check()
            if fresh is None or not self._as_decided(fresh, placed):
                return self._is_placed(pod.uid)
            try:
                written = await self._api.patch(
                    path_of("namespaces", pod.namespace, "pods", pod.name),
                    placement_patch(
                        fresh, names=self._state.names, node=placed.choice.node, placement=placement
                    ),
                    kind="merge",
                    timeout_s=self._settings.patch_s,
                )
            except ApiError as error:
                if error.status == CONFLICT:
                    self._metrics.conflict()
                elif error.refused:
                    self._refuse(placed, error)
                    return False
                elif error.status != NOT_FOUND:
                    _LOG.warning("pod %s: %s; trying again", pod.who, error)
                    await back_off.pause()
                fresh = await self._fresh(placed, back_off)
                continue
            self._state.wrote_pod(written)
            self._count(placed)
            return True

    async def _fresh(self, placed: Placed, back_off: BackOff) -> Json | None:
        """The pod as it is in the API now; None if it is gone."""
        pod = placed.pod
        while True:
            self._lease.check()
            try:
                found = await self._api.get(path_of("namespaces", pod.namespace, "pods", pod.name))
            except ApiError as error:
                if error.status == NOT_FOUND:
                    self._state.forget_pod(pod.uid)
                    return None
                await back_off.pause()
                continue
            self._state.wrote_pod(found)
            facts = pod_facts(found, self._state.names)
            if facts.uid != pod.uid:
                self._state.forget_pod(pod.uid)
                return None
            if self._is_placed(pod.uid):  # it was done, and the answer was lost
                self._count(placed)
                return None
            return found

    def _as_decided(self, found: Json, placed: Placed) -> bool:
        """Whether a pod still asks what was decided, and waits for it."""
        facts, pod = pod_facts(found, self._state.names), placed.pod
        return facts.waits and (facts.uid, facts.queue, facts.ask, facts.rules, facts.amounts, ()) == (
            pod.uid,
            pod.queue,
            pod.ask,
            pod.rules,
            pod.amounts,
            facts.other_gates,
        )

    def _is_placed(self, uid: str) -> bool:
        known = self._state.pods.get(uid)
        return known is not None and known.placement is not None

    def _refuse(self, placed: Placed, error: ApiError) -> None:
        _LOG.warning("pod %s: its placement was refused: %s", placed.pod.who, error)
        self._metrics.refused()
        self._state.refuse(placed.pod.uid, f"its placement was refused: {error}")
        loop = asyncio.get_running_loop()
        loop.call_later(self._settings.refused_s, self._state.try_anew, placed.pod.uid)

    def _count(self, placed: Placed) -> None:
        created_s, stamp_ns, _ = placed.pod.arrival
        self._metrics.placed(stamp_ns, created_s)
        _LOG.info("pod %s: placed on %s", placed.pod.who, placed.choice.node)

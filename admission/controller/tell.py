"""Tells pods where they stand: our condition in their status, and Events when that changes in kind.

Nothing depends on it: what was not told, because a process died or the API was away, is told by whoever comes
next, since what a pod says of itself is compared with what it should say.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable

from admission.controller.lease import Lease
from admission.controller.metrics import ControllerMetrics
from admission.controller.patches import condition_patch, event_of
from admission.controller.settings import ControllerSettings
from admission.controller.state import Known, State
from admission.controller.words import Word, event_reason, placed, standings
from admission.placing.queue import Held, aside
from vcuda.apiserver import NOT_FOUND, Api, ApiError, path_of
from vcuda.kube.pods import PodFacts, condition_of

_LOG = logging.getLogger(__name__)
_LEAST_S = 0.25
"""Between two looks at all pods."""
_AT_ONCE = 8


class Teller:
    """Writes conditions and Events, in the background."""

    def __init__(
        self,
        api: Api,
        state: State,
        lease: Lease,
        *,
        settings: ControllerSettings,
        metrics: ControllerMetrics,
    ) -> None:
        self._api = api
        self._state = state
        self._lease = lease
        self._settings = settings
        self._metrics = metrics
        self._held: dict[str, Held] = {}
        self._due = False
        self._told_at: dict[str, float] = {}
        self._first_seen: dict[str, float] = {}

    def looked(self, held: dict[str, Held]) -> None:
        """The queues were looked into: why those who were tried stay."""
        self._held = held
        self._due = True

    async def run(self) -> None:
        """Tell, until cancelled. Each pod at most every `tell_s`; what is new by then is what it is told."""
        while True:
            start = time.monotonic()
            if self._due or self._state.untold:
                self._due = False
                await self._tell(self._words())
            await asyncio.sleep(max(_LEAST_S, 5 * (time.monotonic() - start)))

    def _words(self) -> Iterable[tuple[str, Word]]:
        """Whom to tell what: those who go first, then the first of the queues."""
        now = time.monotonic()
        state = self._state
        found: list[tuple[str, Word]] = []
        for uid in list(state.untold):
            placement = state.pods[uid].placement
            if placement is None:
                continue
            node = state.cluster.nodes.get(placement.node)
            cards = node.cards.cards if node is not None and node.cards is not None else ()
            found.append((uid, placed(placement, {card.uuid: card.index for card in cards})))
        queues = state.line.queues()
        standing = standings(queues, self._held, self._aside)
        self._metrics.waiting(
            {queue: len(pods) for queue, pods in queues.items()}, Counter(each.wait for each in standing)
        )
        waiting = {each.pod.uid for each in standing}
        self._first_seen = {uid: self._first_seen.get(uid, now) for uid in waiting}
        self._told_at = {uid: at for uid, at in self._told_at.items() if uid in state.pods}
        for each in standing:
            since = now - self._told_at.get(each.pod.uid, -math.inf)
            waits = now - self._first_seen[each.pod.uid]
            if waits >= self._settings.patience_s and since >= self._settings.tell_s:
                found.append((each.pod.uid, each.word))
            else:
                self._due = True  # later
        return found

    def _aside(self, pod: PodFacts) -> Held | None:
        return aside(pod, self._state.line.request(pod.uid), self._state.cluster)

    async def _tell(self, words: Iterable[tuple[str, Word]]) -> None:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def one(uid: str, word: Word) -> None:
            async with limit:
                known = self._state.pods.get(uid)
                if known is None or word.placed != (known.placement is not None) or not self._lease.sure:
                    return
                try:
                    await self._write(uid, known, word)
                except ApiError as error:
                    if error.status != NOT_FOUND:
                        self._due = True
                        _LOG.info("pod %s: not told: %s", known.facts.who, error)

        await asyncio.gather(*(one(uid, word) for uid, word in words))

    async def _write(self, uid: str, known: Known, word: Word) -> None:
        names = self._state.names
        patch = condition_patch(
            known.json, names=names, placed=word.placed, reason=word.reason, message=word.message
        )
        if patch is None:
            return
        self._told_at[uid] = time.monotonic()
        namespace, name = known.facts.namespace, known.facts.name
        before = str(condition_of(known.json, names).get("reason") or "")
        if event_reason(before) != word.event:
            event = event_of(
                known.json,
                name=f"{time.time_ns():x}",
                instance=self._settings.identity,
                reason=word.event,
                note=word.message,
                warning=word.warning,
            )
            await self._api.create(path_of("namespaces", namespace, "events", group="events.k8s.io"), event)
        written = await self._api.patch(
            path_of("namespaces", namespace, "pods", name, "status"), patch, kind="strategic-merge"
        )
        self._state.wrote_pod(written)

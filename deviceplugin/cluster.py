"""What the node knows of the cluster, and says to it: its pods, the controller's key, its own Node, Events.

Any of it may be away for any time. What was known stays known; what was to be said is said later, or, for
Events, given up.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from deviceplugin.allocation import Refused
from deviceplugin.pods import Trust, read_pod, reduced
from deviceplugin.state import NodePod
from vcuda.apiserver import GONE, NOT_FOUND, Api, ApiError, Json, path_of
from vcuda.kube.asks import mapping
from vcuda.kube.nodes import Moved, NodeCard, NodeCards, NodeError, decode_moved, encode_cards, encode_moved

_LOG = logging.getLogger(__name__)
KEY = "public.pem"
"""In the data of the ConfigMap."""
WATCH_SECONDS = 240
_AGAIN_SECONDS = 1.0
_AGAIN_MOST_SECONDS = 15.0
_REFRESH_SECONDS = 3.0
_PUBLISH_SECONDS = 5.0
_KEY_SECONDS = 30.0
_EVENTS_WAITING = 200
_LOOK_SECONDS = 0.02
_EVENT_AGAIN_SECONDS = 300.0
"""The same Event about the same pod is sent so often, at most."""
_MESSAGE = 1000


class Cluster:
    """The cluster, as one node sees it; the desk's `Api`."""

    def __init__(
        self,
        server: Api,
        *,
        trust: Trust,
        key: tuple[str, str],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._server = server
        self._trust = trust
        self._key = key
        self._key_text: str | None = None
        self._changed = changed
        self._raw: dict[str, Mapping[str, Any]] = {}
        self._pods: dict[str, NodePod] = {}
        self._names: dict[str, tuple[str, str]] = {}
        self._version = ""
        self._moved: Moved | None = None
        self._cards: str | None = None
        self._said: str | None = None
        self._synced = False
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_EVENTS_WAITING)
        self._told: dict[tuple[str, str, str], float] = {}
        self._wake_cards = asyncio.Event()

    # ---- what the desk asks ----

    @property
    def pods(self) -> Mapping[str, NodePod]:
        """The pods of this node that ask for cards, by uid."""
        return self._pods

    @property
    def names(self) -> Collection[tuple[str, str]]:
        """Namespace and name of all pods of this node, whatever they ask for."""
        return set(self._names.values())

    @property
    def moved(self) -> Moved:
        """The node's annotation, as it was last read or written."""
        return self._moved or {}

    @property
    def synced(self) -> bool:
        """Whether pods, key and annotation were ever read."""
        return self._synced and self._moved is not None

    async def refresh(self) -> bool:
        """Ask for the pods once more; whether that could be done."""
        try:
            async with asyncio.timeout(_REFRESH_SECONDS):
                await self._read_key()  # there may be another one since
                if self._moved is None:
                    await self._read_node()
                found, _ = await self._server.list_all(path_of("pods"), fieldSelector=self._selector)
        except (ApiError, TimeoutError):
            return False
        self._replace(found)
        return True

    async def publish(self, moved: Moved) -> bool:
        """Write the annotation; whether that could be done."""
        if self._moved is None:
            return False  # what it says is not known: it must not be written over
        text = encode_moved(moved) if moved else None
        try:
            async with asyncio.timeout(_PUBLISH_SECONDS):
                await self._annotate({self._trust.names.moved: text})
        except (ApiError, TimeoutError) as error:
            _LOG.warning("moved shares cannot be published: %s", error or "no answer in time")
            return False
        self._moved = moved
        return True

    def report(self, refused: Refused) -> None:
        """Have an Event made for each pod of a refusal; for the node, if there is none."""
        if not refused.pods:
            self.say(refused.reason, refused.text)
        for pod in refused.pods:
            self.say(refused.reason, pod.fault or refused.text, pod=pod)

    # ---- what others say ----

    def say(self, reason: str, message: str, *, pod: NodePod | None = None) -> None:
        """Have an Event made of this, unless it was a moment ago."""
        who = self._trust.node if pod is None else pod.uid
        now = time.monotonic()
        if now - self._told.get((who, reason, message), -_EVENT_AGAIN_SECONDS) < _EVENT_AGAIN_SECONDS:
            return
        self._told[who, reason, message] = now
        for old in [each for each, at in self._told.items() if now - at > _EVENT_AGAIN_SECONDS]:
            del self._told[old]
        with contextlib.suppress(asyncio.QueueFull):
            self._events.put_nowait(self._event(reason, message, pod))

    def offer(self, cards: Sequence[NodeCard], *, unit_bytes: int, served: bool) -> None:
        """Have these cards published as the node's, as soon as that can be."""
        text = encode_cards(NodeCards(cards=tuple(cards), memory_unit_bytes=unit_bytes, served=served))
        if text != self._cards:
            self._cards = text
            self._wake_cards.set()

    async def offered(self) -> None:
        """Wait until what was offered last is published."""
        while self._said != self._cards:
            await asyncio.sleep(_LOOK_SECONDS)

    async def run(self) -> None:
        """Follow pods and key, publish cards, send Events; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(self._follow_pods))
            tasks.create_task(self._again(self._follow_key))
            tasks.create_task(self._again(self._publish_cards))
            tasks.create_task(self._send_events())

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()

    # ---- pods ----

    @property
    def _selector(self) -> str:
        return f"spec.nodeName={self._trust.node}"

    async def _follow_pods(self) -> None:
        if self._moved is None:
            await self._read_node()
        if not self._version:
            found, self._version = await self._server.list_all(path_of("pods"), fieldSelector=self._selector)
            self._replace(found)
            self._synced = True
        try:
            changes = self._server.watch(
                path_of("pods"), version=self._version, seconds=WATCH_SECONDS, fieldSelector=self._selector
            )
            async for kind, found in changes:
                self._version = str(mapping(mapping(found).get("metadata")).get("resourceVersion") or "")
                if kind == "DELETED":
                    self._forget(str(found["metadata"]["uid"]))
                elif kind != "BOOKMARK":
                    self._take(found)
        except ApiError as error:
            if error.status == GONE or not self._version:
                self._version = ""
                return
            raise

    def _replace(self, found: Sequence[Json]) -> None:
        uids = {str(each["metadata"]["uid"]) for each in found}
        for uid in [uid for uid in self._names if uid not in uids]:
            self._forget(uid)
        for each in found:
            self._take(each)

    def _take(self, found: Json) -> None:
        uid = str(found["metadata"]["uid"])
        self._names[uid] = (str(found["metadata"]["namespace"]), str(found["metadata"]["name"]))
        pod = read_pod(found, self._trust)
        if pod is None:
            return
        self._raw[uid] = reduced(found)
        if self._pods.get(uid) != pod:
            self._pods[uid] = pod
            self._changed()

    def _forget(self, uid: str) -> None:
        self._names.pop(uid, None)
        self._raw.pop(uid, None)
        if self._pods.pop(uid, None) is not None:
            self._changed()

    # ---- the controller's key ----

    async def _follow_key(self) -> None:
        await self._read_key()
        await asyncio.sleep(_KEY_SECONDS if self._key_text else _AGAIN_SECONDS)

    async def _read_key(self) -> None:
        namespace, name = self._key
        try:
            found = await self._server.get(path_of("namespaces", namespace, "configmaps", name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return  # the controller was never there; or it was, and its key counts until there is another
            raise
        text = str(mapping(mapping(found).get("data")).get(KEY) or "")
        if not text or text == self._key_text:
            return
        try:
            key = load_pem_public_key(text.encode())
        except ValueError as error:
            raise ApiError(f"ConfigMap {namespace}/{name}: {KEY} is no key: {error}") from error
        if not isinstance(key, Ed25519PublicKey):
            raise ApiError(f"ConfigMap {namespace}/{name}: {KEY} is not an Ed25519 key")
        self._key_text = text
        self._trust = replace(self._trust, key=key)
        for uid, raw in self._raw.items():
            pod = read_pod(raw, self._trust)
            if pod is not None:
                self._pods[uid] = pod
        self._changed()

    # ---- the node ----

    async def _read_node(self) -> None:
        found = await self._server.get(path_of("nodes", self._trust.node))
        annotations = mapping(mapping(mapping(found).get("metadata")).get("annotations"))
        try:
            self._moved = decode_moved(annotations.get(self._trust.names.moved))
        except NodeError as error:
            _LOG.error("%s; it is taken for empty", error)
            self._moved = {}

    async def _publish_cards(self) -> None:
        await self._wake_cards.wait()
        self._wake_cards.clear()
        text = self._cards
        if text is not None and text != self._said:
            try:
                await self._annotate({self._trust.names.cards: text})
            except ApiError:
                self._wake_cards.set()
                raise
            self._said = text

    async def _annotate(self, annotations: Mapping[str, str | None]) -> None:
        body = {"metadata": {"annotations": dict(annotations)}}
        await self._server.patch(path_of("nodes", self._trust.node), body, kind="merge")

    # ---- Events ----

    def _event(self, reason: str, message: str, pod: NodePod | None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        about: dict[str, str] = {"apiVersion": "v1", "kind": "Node", "name": self._trust.node}
        namespace = "default"
        if pod is not None:
            namespace = pod.namespace
            about = {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": pod.name,
                "uid": pod.uid,
                "namespace": namespace,
            }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "vcuda-node-", "namespace": namespace},
            "involvedObject": about,
            "reason": reason,
            "message": message[:_MESSAGE],
            "type": "Warning",
            "source": {"component": "vcuda-node", "host": self._trust.node},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }

    async def _send_events(self) -> None:
        while True:
            event = await self._events.get()
            namespace = event["metadata"]["namespace"]
            try:
                await self._server.create(path_of("namespaces", namespace, "events"), event)
            except ApiError as error:
                _LOG.info("an Event is not sent: %s", error)

    async def _again(self, step: Callable[[], Awaitable[None]]) -> None:
        """Do it again and again; after a fault, wait longer each time."""
        pause = _AGAIN_SECONDS
        while True:
            try:
                await step()
                pause = _AGAIN_SECONDS
            except ApiError as error:
                _LOG.warning("%s; trying again in %.0f s", error, pause)
                await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 (no secret)
                pause = min(2 * pause, _AGAIN_MOST_SECONDS)
